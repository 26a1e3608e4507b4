"""Prompt-lookup decoding (Saxena 2023): draft a sequence's next tokens from its own text.

The model verifies a draft in one forward pass.
Source: https://github.com/apoorvumang/prompt-lookup-decoding
"""

from collections.abc import Iterable

# After so many right drafts in a row so many tokens are drafted at once.
STREAK_TO_DRAFT_LENGTH = ((32, 31), (8, 15))
MAX_DRAFT_TOKENS = STREAK_TO_DRAFT_LENGTH[0][1]


class Drafter:
    """The text of one sequence, and where each pair and triple of its tokens occurred last.

    A draft continues the last triple as it went on before, or else the last pair.
    """

    def __init__(self, tokens: Iterable[int] = ()) -> None:
        self.tokens: list[int] = []
        # The place of the token that followed the latest occurrence of a pair or triple.
        self.following: dict[tuple[int, ...], int] = {}
        self.last_pair: tuple[int, ...] = ()  # what the text ends in; empty while it is shorter
        self.last_triple: tuple[int, ...] = ()
        self.start: int | None = None  # the place of what a draft begins with
        self.streak = 0  # tokens in a row that were drafted right
        self.read(tokens)

    def copy(self) -> "Drafter":
        """A drafter of the same text, to go on in another way."""
        made = Drafter()
        vars(made).update(vars(self))
        made.tokens, made.following = self.tokens.copy(), self.following.copy()
        return made

    def read(self, tokens: Iterable[int]) -> None:
        """Add tokens that no draft could have known."""
        for token in tokens:
            self._add(token)

    def append(self, token: int) -> None:
        """Add a token the model chose, and count whether it is the one a draft would have had."""
        start = self.start
        was_right = start is not None and self.tokens[start] == token
        self.streak = self.streak + 1 if was_right else 0
        self._add(token)

    def _add(self, token: int) -> None:
        """Note what follows the last pair and triple, and look up what followed the new ones."""
        tokens, following = self.tokens, self.following
        pair, triple = self.last_pair, self.last_triple
        if triple:
            following[triple] = len(tokens)
        if pair:
            following[pair] = len(tokens)
            self.last_triple = triple = (*pair, token)
        if tokens:
            self.last_pair = pair = (tokens[-1], token)
        tokens.append(token)
        start = following.get(triple)
        self.start = following.get(pair) if start is None else start

    def draft(self, length: int) -> list[int]:
        """The `length` tokens that followed the latest earlier occurrence of the text's end.

        A text that ends in a loop goes around it. Empty if its end did not occur before.
        """
        if self.start is None:
            return []
        following = self.tokens[self.start : self.start + length]
        return (following * length)[:length]

    @property
    def trusted_length(self) -> int:
        """The draft length that the streak of right drafts justifies; 0 without a streak."""
        for streak, length in STREAK_TO_DRAFT_LENGTH:
            if self.streak >= streak:
                return length
        return 0
