"""Data that train.py trains on: how they are limited and split."""

import pytest

from common.training_sources import of_first_questions

SEVERAL = [{"question": name, "answer": str(i)} for i, name in enumerate("aabbbc")]


@pytest.mark.parametrize(("limit", "count"), [(None, 6), (1, 2), (2, 5), (3, 6), (9, 6)])
def test_a_limit_counts_questions_not_their_solutions(limit, count):
    assert of_first_questions(SEVERAL, limit) == SEVERAL[:count]
