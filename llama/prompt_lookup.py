"""Prompt-lookup decoding (Saxena 2023): draft a sequence's next tokens from its own text.

The model verifies a draft in one forward pass.
Source: https://github.com/apoorvumang/prompt-lookup-decoding
"""

from collections.abc import Iterable

NGRAM_SIZES = (3, 2)  # lengths of the n-grams looked up, the first one that occurred before counts
# After so many right drafts in a row so many tokens are drafted at once.
STREAK_TO_DRAFT_LENGTH = ((32, 31), (8, 15))
MAX_DRAFT_TOKENS = STREAK_TO_DRAFT_LENGTH[0][1]


class Drafter:
    """The text of one sequence, and where each of its n-grams occurred last."""

    def __init__(self, tokens: Iterable[int]) -> None:
        self.tokens: list[int] = []
        # The place of the token that followed the latest occurrence of an n-gram.
        self.following: dict[tuple[int, ...], int] = {}
        self.streak = 0  # tokens in a row that were drafted right
        for token in tokens:
            self._add(token)

    def append(self, token: int) -> None:
        """Add a token the model chose, and count whether it is the one a draft would have had."""
        was_right = self.draft(1) == [token]
        self.streak = self.streak + 1 if was_right else 0
        self._add(token)

    def _add(self, token: int) -> None:
        for size in NGRAM_SIZES:
            if len(self.tokens) >= size:
                self.following[tuple(self.tokens[-size:])] = len(self.tokens)
        self.tokens.append(token)

    def draft(self, length: int) -> list[int]:
        """The `length` tokens that followed the latest earlier occurrence of the last n-gram.

        A text that ends in a loop goes around it. Empty if no n-gram occurred before.
        """
        for size in NGRAM_SIZES:
            start = self.following.get(tuple(self.tokens[-size:]))
            if start is not None:
                following = self.tokens[start : start + length]
                return (following * length)[:length]
        return []

    @property
    def trusted_length(self) -> int:
        """The draft length that the streak of right drafts justifies; 0 without a streak."""
        for streak, length in STREAK_TO_DRAFT_LENGTH:
            if self.streak >= streak:
                return length
        return 0
