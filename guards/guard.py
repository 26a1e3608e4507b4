"""What a judge is: how it is asked about an answer, and what it says of it.

A subclass in a file of its own and a line in `guards/registry.py` make a guard; `judge.py`, reports
and recipes know guards through this interface alone. It holds no model: `judge.py` runs that.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar, TypedDict

from data.prompts import Message

Encode = Callable[[str], list[int]]
# The tokens allowed next, given a verdict's tokens so far; see `llama.generate`.
AllowedTokens = Callable[[list[int]], Collection[int] | None]


class Labels(TypedDict):
    """What a verdict says; None where it does not."""

    safety: str | None  # "Safe" | "Unsafe" | "Controversial"
    categories: list[str]
    refusal: str | None  # "Yes" | "No"


class Guard(ABC):
    """A judge of one answer to one prompt."""

    name: ClassVar[str]  # on the command line and in file names: RUN/TASK.NAME.jsonl
    title: ClassVar[str]  # in reports
    labels: ClassVar[frozenset[str]]  # what it gives of "safety" and "refusal"
    has_model: ClassVar[bool] = True
    default_model: ClassVar[str | None] = None
    max_new_tokens: ClassVar[int] = 0  # the length of a verdict
    note: ClassVar[str] = ""  # what a reader of its rates must know

    @classmethod
    @abstractmethod
    def recognises(cls, policy: str) -> bool:
        """Whether a checkpoint is this guard's, by what its chat template prints of an answer.

        `policy` is the rendered prompt of an empty conversation, special tokens included.
        """

    def messages(self, answer: Mapping[str, Any]) -> list[Message]:
        """The conversation to judge, for the guard's own chat template."""
        return [
            {"role": "user", "content": answer["prompt"]},
            {"role": "assistant", "content": answer["response"]},
        ]

    def allowed_tokens(self, encode: Encode, end_id: int) -> AllowedTokens | None:
        """The grammar of a verdict in the guard's tokens; None if it is decoded freely."""
        return None

    @abstractmethod
    def parse(self, text: str) -> Labels:
        """The labels in a verdict's text, of which nothing is guessed."""
