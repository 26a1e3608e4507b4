"""Guessing a row's next tokens from its own text (prompt lookup, Saxena 2023), for the model to
verify in one pass.
"""

from collections.abc import Iterable

SIZES = (3, 2)  # tokens that must have occurred before, in this order
TRUSTED = ((32, 31), (8, 15))  # so many right guesses in a row -> so many tokens guessed at once
LONGEST = TRUSTED[0][1]


class Drafter:
    """The text of one row, and where each of its two- and three-token sequences occurred last."""

    def __init__(self, tokens: Iterable[int]) -> None:
        self.tokens: list[int] = []
        self.following: dict[
            tuple[int, ...], int
        ] = {}  # where what followed the latest occurrence stands
        self.streak = 0
        for token in tokens:
            self._add(token)

    def append(self, token: int) -> None:
        """Add a token the model chose, and count for how many of them in a row the guess was
        right.
        """
        self.streak = self.streak + 1 if self.draft(1) == [token] else 0
        self._add(token)

    def _add(self, token: int) -> None:
        for size in SIZES:
            if len(self.tokens) >= size:
                self.following[tuple(self.tokens[-size:])] = len(self.tokens)
        self.tokens.append(token)

    def draft(self, length: int) -> list[int]:
        """What followed the latest earlier occurrence of the last tokens; text that ends in a loop
        goes around it.

        Empty if the last two tokens never occurred before.
        """
        for size in SIZES:
            start = self.following.get(tuple(self.tokens[-size:]))
            if start is not None:
                return (self.tokens[start : start + length] * length)[:length]
        return []

    @property
    def trusted_length(self) -> int:
        """How long a draft the latest guesses justify, whatever else the machine has to do; 0
        without such a streak.
        """
        return next((length for streak, length in TRUSTED if self.streak >= streak), 0)
