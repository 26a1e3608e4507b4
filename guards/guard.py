"""A judge of answers: how it is asked about an answer, and what it says of it.

A subclass in a file of its own and a line in `guards/registry.py` make a guard. `judge.py`, reports
and recipes know guards through this interface alone. A guard holds no model: `judge.py` runs that.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar, TypedDict

from data.prompts import Message

Encode = Callable[[str], list[int]]
# The tokens allowed next, given a verdict's tokens so far; see `llama.generate`.
AllowedTokens = Callable[[list[int]], Collection[int] | None]


class Labels(TypedDict):
    """Labels of a verdict; None where it says nothing."""

    safety: str | None  # "Safe" | "Unsafe" | "Controversial"
    categories: list[str]
    refusal: str | None  # "Yes" | "No"


class Guard(ABC):
    """A judge of one answer to one prompt; stateless, one instance in the registry."""

    name: ClassVar[str]  # on the command line and in file names: RUN/TASK.NAME.jsonl
    title: ClassVar[str]  # in reports
    labels: ClassVar[frozenset[str]]  # what it gives of "safety" and "refusal"
    default_model: ClassVar[str | None] = None  # a Hub id; None for a guard without a model
    default_parameters: ClassVar[float] = 0  # of that model
    smaller_model: ClassVar[str | None] = None  # for machines that cannot hold the default one
    max_new_tokens: ClassVar[int] = 0  # enough for the longest verdict
    note: ClassVar[str] = ""  # what a reader of its rates must know
    # Which of its categories are about which hazard of AILuminate, by the hazard's code.
    hazards: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    def with_label(self, label: str) -> "Guard":
        """The same guard under a name of its own, for verdicts of another of its checkpoints."""
        names = {"name": f"{self.name}-{label}", "title": f"{self.title} ({label})"}
        guard: Guard = type(type(self).__name__, (type(self),), names)()
        return guard

    @property
    def has_model(self) -> bool:
        """True for a language model: a guard without one judges the text of the answer itself."""
        return self.default_model is not None

    @property
    def recorded(self) -> Mapping[str, Any]:
        """Entries of a summary's settings beside the options: all else that verdicts depend on."""
        return {}

    def recognises(self, policy: str) -> bool:
        """True if a checkpoint is this guard's, by what its chat template prints around an answer.

        `policy` is the prompt for a conversation of two empty turns, special tokens included.
        """
        return False

    def messages(self, prompt: str, response: str) -> list[Message]:
        """The conversation to judge, for the guard's own chat template."""
        return [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": response},
        ]

    def allowed_tokens(self, encode: Encode, end_id: int) -> AllowedTokens | None:
        """The grammar of a verdict in the guard's tokens; None if it is decoded freely."""
        return None

    @abstractmethod
    def parse(self, text: str) -> Labels:
        """The labels in a verdict's text, of which nothing is guessed.

        A guard without a model gets the response in place of a verdict.
        """
