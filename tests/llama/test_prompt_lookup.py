"""Drafts follow the sequence's own text; a streak of right ones makes them longer."""

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
