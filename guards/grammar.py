"""The grammar of a Qwen3Guard-Gen verdict, token by token: what is fixed, and between what the
guard may choose.

    Safety: Unsafe
    Categories: Violent, PII
    Refusal: No

The policy is part of the guard's chat template; for the response of an assistant it asks for these
three lines, with `Categories: None` where nothing is unsafe. The end token follows at once.
"""

from collections.abc import Callable, Iterator

from common.errors import UserError
from guards.verdicts import CATEGORIES, REFUSAL, SAFETY

_SAFETY = [f" {label}\nCategories:" for label in SAFETY]
_FIRST = {f" {name}": name for name in CATEGORIES}
_FURTHER = {f", {name}": name for name in CATEGORIES}


class VerdictGrammar:
    """Says which tokens may follow the beginning of a verdict: a guide for `llama.generate`.

    Any safety label goes with None or with any of the nine categories, each at most once, in any
    order. That is wider than the policy (Safe goes with None, Jailbreak is a category of prompts),
    so that a guard is never kept from saying what it would have said in this form. `encode` turns
    text into token ids, `end` is the id that ends a verdict.

    Raises UserError if the tokens of a verdict are not those of its pieces: then choosing between
    pieces is not what decoding freely does.
    """

    def __init__(self, encode: Callable[[str], list[int]], end: int) -> None:
        pieces = (
            "Safety:",
            *_SAFETY,
            " None",
            *_FIRST,
            *_FURTHER,
            "\nRefusal:",
            *(f" {label}" for label in REFUSAL),
        )
        self._ids = {piece: encode(piece) for piece in pieces}
        self._end = end
        for verdict in verdicts(2):
            text = "".join(verdict)
            if encode(text) != self._encode(verdict):
                raise UserError(
                    f"this tokenizer does not cut a verdict at its labels ({text!r}), so its labels cannot be "
                    "chosen between: use --no-grammar"
                )

    def __call__(self, tokens: list[int]) -> frozenset[int]:
        """The tokens that may follow `tokens`, the beginning of a verdict: one if it is fixed what
        comes next.
        """
        pieces: list[str] = []
        while options := following(pieces):
            # No option's ids begin with another's, because no option's text does.
            done = next(
                (piece for piece in options if tokens[: len(self._ids[piece])] == self._ids[piece]),
                None,
            )
            if done is None:
                begun = len(tokens)
                return frozenset(
                    self._ids[p][begun] for p in options if self._ids[p][:begun] == tokens
                )
            pieces.append(done)
            tokens = tokens[len(self._ids[done]) :]
        return frozenset({self._end})

    def _encode(self, pieces: list[str]) -> list[int]:
        return [token for piece in pieces for token in self._ids[piece]]


def following(pieces: list[str]) -> list[str]:
    """The pieces of text one of which comes next in a verdict; none at its end."""
    last = pieces[-1] if pieces else None
    if last is None:
        return ["Safety:"]
    if last == "Safety:":
        return _SAFETY
    if last in _SAFETY:
        return [" None", *_FIRST]
    if last == " None":
        return ["\nRefusal:"]
    if last in _FIRST or last in _FURTHER:
        named = {_FIRST.get(piece) or _FURTHER.get(piece) for piece in pieces}
        return ["\nRefusal:", *(piece for piece, name in _FURTHER.items() if name not in named)]
    return [f" {label}" for label in REFUSAL] if last == "\nRefusal:" else []


def verdicts(most: int, pieces: tuple[str, ...] = ()) -> Iterator[list[str]]:
    """Every verdict with at most so many categories, as its pieces of text."""
    options = following(list(pieces))
    if not options:
        yield list(pieces)
    categories = sum(piece in _FIRST or piece in _FURTHER for piece in pieces)
    for option in options:
        if categories < most or option not in _FURTHER:
            yield from verdicts(most, (*pieces, option))
