"""Drafts follow the sequence's own text; a streak of right ones makes them longer."""

import random

import pytest

from llama.prompt_lookup import Drafter


@pytest.mark.parametrize(
    ("tokens", "length", "draft"),
    [
        ([1, 2, 3, 4, 5, 1, 2, 3], 2, [4, 5]),
        ([1, 2, 3, 9, 1, 2, 3, 8, 1, 2, 3], 1, [8]),  # the latest occurrence
        ([7, 2, 3, 4, 8, 2, 3], 1, [4]),  # two tokens will do
        ([5, 6, 5, 6, 5, 6], 5, [5, 6, 5, 6, 5]),  # around the loop
        ([4, 4, 4, 4], 3, [4, 4, 4]),
        ([1, 2, 3, 4], 3, []),
        ([1], 3, []),
    ],
)
def test_draft(tokens, length, draft):
    assert Drafter(tokens).draft(length) == draft


def test_right_drafts_in_a_row_are_trusted():
    drafter = Drafter([1, 2, 3, 4, 1, 2, 3])
    lengths = []
    for token in [4, 1, 2, 3] * 9:
        drafter.append(token)
        lengths.append(drafter.trusted_length)
    assert lengths == [0] * 7 + [15] * 24 + [31] * 5
    drafter.append(9)
    assert drafter.trusted_length == 0


def plain_draft(tokens: list[int], length: int) -> list[int]:
    """What followed the latest earlier occurrence of the last three tokens, or two, by search."""
    for size in (3, 2):
        for end in range(len(tokens) - 1, size - 1, -1):
            if tokens[end - size : end] == tokens[-size:]:
                following = tokens[end : end + length]
                return (following * length)[:length]
    return []


def test_drafts_are_those_of_a_search_through_the_text():
    numbers = random.Random(0)
    for _ in range(40):
        tokens = [numbers.randrange(4) for _ in range(numbers.randrange(30))]
        drafter = Drafter(tokens)
        grown = drafter.copy()
        streak = 0
        for _ in range(30):
            assert grown.draft(5) == plain_draft(tokens, 5)
            token = numbers.choice([*grown.draft(1), numbers.randrange(4)])
            streak = streak + 1 if grown.draft(1) == [token] else 0
            grown.append(token)
            tokens = [*tokens, token]
            assert grown.streak == streak
        assert drafter.tokens == tokens[:-30] and drafter.draft(5) == plain_draft(tokens[:-30], 5)
