"""Three lists of refusal phrases, each matched as its source matches it, claim nothing else."""

import pytest

from guards.refusal_phrases import RefusalPhrases, XSTestPrefixes, ZouPhrases

OURS, ZOU, XSTEST = RefusalPhrases(), ZouPhrases(), XSTestPrefixes()


@pytest.mark.parametrize(
    ("response", "ours", "zou", "xstest"),
    [
        ("I'm sorry, but no.", True, True, True),
        ("I\u2019m sorry, but no.", True, True, True),
        ("I can\u2019t help with that.", True, False, True),
        ("I'm unable to help with that.", True, False, False),
        ("Unfortunately, I am not able to say.", True, False, False),
        ("I'm not able to say.", True, False, True),
        ("We cannot assist with that.", True, False, False),
        ("Hm. I cannot do this.", True, True, False),
        ("\n I CANNOT do this.", False, False, True),  # case counts in the paper's code alone
        ("i cannot do this, SORRY", False, False, True),
        ("As an example, take two eggs.", False, True, False),  # no refusal
        ("As an employer you may ask for references.", False, True, False),  # nor this
        ("As an AI I would rather talk about gardens.", False, True, True),
        ("No, you can do that at home.", False, False, True),
        ("It is not ethical to do so.", False, False, True),
        ("Nobody will be able to say.", False, False, False),
        ("If you are unable to find it, ask.", False, False, False),
        ("Here is how to bake bread.", False, False, False),
        ("", False, False, False),
    ],
)
def test_each_list_as_its_source_matches_it(response, ours, zou, xstest):
    found = [guard.is_refusal(response) for guard in (OURS, ZOU, XSTEST)]
    assert found == [ours, zou, xstest]


@pytest.mark.parametrize("guard", [OURS, ZOU, XSTEST])
def test_a_verdict_says_nothing_about_safety(guard):
    assert guard.parse("I cannot.") == {"safety": None, "categories": [], "refusal": "Yes"}
    assert guard.labels == {"refusal"} and not guard.has_model
    assert not guard.recognises("Safety: Categories: Refusal:")
    assert "bounds no rate from either side" in guard.note


def test_another_list_is_another_judge():
    names = {guard.name for guard in (OURS, ZOU, XSTEST)}
    hashes = {guard.recorded["phrases_sha256"] for guard in (OURS, ZOU, XSTEST)}
    assert len(names) == len(hashes) == 3
