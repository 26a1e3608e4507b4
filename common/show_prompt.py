"""--show-prompt: a prompt exactly as a model gets it, as text and as token ids."""

from collections.abc import Sequence
from typing import Protocol


class Decoding(Protocol):
    """The part of a tokenizer that is needed here."""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str: ...


def describe_prompt(name: str, ids: Sequence[int], tokenizer: Decoding) -> str:
    """The rendered text with its special tokens, between lines, and then the ids."""
    text = tokenizer.decode(ids, skip_special_tokens=False)
    numbers = " ".join(map(str, ids))
    return f"--- prompt of {name}, {len(ids)} tokens\n{text}\n--- as token ids\n{numbers}\n---"
