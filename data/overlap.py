"""Texts that are both trained on and tested, found by what they say rather than by id or file."""

import re
from collections.abc import Iterable
from functools import lru_cache

_WORD = re.compile(r"\w+")


@lru_cache(maxsize=50_000)
def normalise(text: str) -> str:
    """The words and numbers of a text in lower case, without punctuation and spacing."""
    return " ".join(_WORD.findall(text.lower()))


def find_overlap(trained: Iterable[str], tested: Iterable[str]) -> list[str]:
    """The texts of `tested` whose words and numbers are those of a text in `trained`."""
    known = {normalise(text) for text in trained}
    return [text for text in tested if normalise(text) in known]
