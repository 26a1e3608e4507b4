"""Texts that are both trained on and tested, found by what they say rather than by id or file."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

# Of the runs of words that two texts have between them, the share that both have. No question of
# GSM8K's or SVAMP's test set comes nearer than 0.57 to one of GSM8K's training set.
NEAR = 0.8
RUN_LENGTH = 4  # words

_WORD = re.compile(r"\w+")
Shingles = frozenset[tuple[str, ...]]


class TextIndex:
    """Texts by the runs of words in them, to find those that are nearly the same as another one.

    Case, punctuation and spacing do not count.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts
        self.shingles = [_shingles(text) for text in texts]
        self.places: dict[tuple[str, ...], list[int]] = {}
        for place, shingles in enumerate(self.shingles):
            for shingle in shingles:
                self.places.setdefault(shingle, []).append(place)

    def find(self, text: str) -> str | None:
        """The indexed text that says nearly the same as `text`, if there is one."""
        own = _shingles(text)
        shared = Counter(place for shingle in own for place in self.places.get(shingle, ()))
        for place, count in shared.most_common():
            if count >= NEAR * (len(own) + len(self.shingles[place]) - count):
                return self.texts[place]
        return None


def _shingles(text: str) -> Shingles:
    """Every run of RUN_LENGTH words; the whole of a shorter text."""
    words = _WORD.findall(text.lower())
    last = max(1, len(words) - RUN_LENGTH + 1)
    return frozenset(tuple(words[start : start + RUN_LENGTH]) for start in range(last))


def find_overlap(index: TextIndex, tested: Iterable[str]) -> list[tuple[str, str]]:
    """The texts of `tested` that are in the index, nearly or exactly, each with the one there."""
    pairs = []
    for text in tested:
        known = index.find(text)
        if known is not None:
            pairs.append((text, known))
    return pairs
