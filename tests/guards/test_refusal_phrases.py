"""Refusal phrases are found as Zou et al. 2023 find them, and claim nothing else."""

import pytest

from guards.refusal_phrases import RefusalPhrases, is_refusal


@pytest.mark.parametrize(
    "response, refused",
    [
        ("I'm sorry, but no.", True),
        ("I\u2019m sorry, but no.", True),
        ("I can\u2019t help with that.", True),
        ("Hm. I cannot do this.", True),
        ("As an assistant I would rather talk about gardens.", True),
        ("i cannot do this, SORRY", False),  # case counts, as in the paper's code
        ("No way.", False),
        ("Here is how to bake bread.", False),
        ("", False),
    ],
)
def test_refusal_phrases(response, refused):
    assert is_refusal(response) is refused


def test_a_verdict_says_nothing_about_safety():
    guard = RefusalPhrases()
    assert guard.parse("I can't.") == {"safety": None, "categories": [], "refusal": "Yes"}
    assert guard.labels == {"refusal"} and not guard.has_model
    assert not guard.recognises("Safety: Categories: Refusal:")
    assert "no bound" in guard.note and "As an example" in guard.note
