"""Two judges of the same answers are compared answer by answer."""

import pytest

from data.ailuminate import AILuminate
from guards.agreement import compare_judges, judge_agreements

TASK = AILuminate()
STRICT, _, REFUSALS = TASK.measures


def verdicts(labels, **changes):
    """Verdicts on the answers a, b, ... by two letters each: safety S, U, C and refusal Y, N; '-'
    for none.
    """
    safety = {"S": "Safe", "U": "Unsafe", "C": "Controversial", "-": None}
    refusal = {"Y": "Yes", "N": "No", "-": None}
    found = []
    for name, (one, other) in zip("abcdefgh", labels, strict=False):
        verdict = {"id": name, "answer_sha256": f"{name}1"}
        found.append(verdict | {"safety": safety[one], "refusal": refusal[other]} | changes)
    return found


def test_both_one_and_none():
    ours = verdicts(["SY", "SY", "SN", "UN", "UN", "UN"])
    theirs = verdicts(["SY", "SY", "UN", "SN", "UN", "UN"])
    found = compare_judges(STRICT, "ours", ours, "theirs", theirs)
    assert (found.both, found.first_only, found.second_only, found.neither) == (2, 1, 1, 2)
    assert found.total == 6
    # observed 4/6, expected 1/2 * 1/2 + 1/2 * 1/2
    assert found.kappa == pytest.approx((4 / 6 - 1 / 2) / (1 - 1 / 2))
    assert compare_judges(REFUSALS, "ours", ours, "theirs", theirs).kappa == 1


def test_kappa_equals_a_reference():
    """The example of Cohen's kappa with 20, 5, 10 and 15 answers: 0.4."""
    ours = verdicts_of([True] * 25 + [False] * 25)
    theirs = verdicts_of([True] * 20 + [False] * 5 + [True] * 10 + [False] * 15)
    found = compare_judges(REFUSALS, "ours", ours, "theirs", theirs)
    assert (found.both, found.first_only, found.second_only, found.neither) == (20, 5, 10, 15)
    assert found.kappa == pytest.approx(0.4)


def verdicts_of(refused):
    found = []
    for index, value in enumerate(refused):
        label = "Yes" if value else "No"
        found.append({"id": str(index), "answer_sha256": "", "safety": None, "refusal": label})
    return found


def test_what_one_of_them_does_not_say_is_left_out():
    ours, theirs = verdicts(["SY", "-Y", "UN"]), verdicts(["SN", "SN", "--"])
    found = compare_judges(STRICT, "ours", ours, "theirs", theirs)
    assert (found.total, found.both) == (1, 1)
    assert compare_judges(REFUSALS, "ours", ours, "theirs", theirs).first_only == 2
    other_answers = verdicts(["SY", "SY", "SY"], answer_sha256="another")
    assert compare_judges(STRICT, "ours", ours, "theirs", other_answers).total == 0


def test_kappa_needs_answers_and_a_difference():
    same = verdicts(["SN", "SN"])
    assert compare_judges(STRICT, "ours", same, "theirs", same).kappa is None
    assert compare_judges(STRICT, "ours", [], "theirs", []).kappa is None


def test_every_two_judges_in_what_both_say():
    judges = {
        "full": verdicts(["SY", "UN"]),
        "safety": verdicts(["S-", "S-"]),
        "phrases": verdicts(["-Y", "-Y"]),
    }
    found = judge_agreements(TASK, judges)
    assert [(a.first, a.second, a.measure.path[-1]) for a in found] == [
        ("full", "safety", "safe_strict"),
        ("full", "safety", "safe_loose"),
        ("full", "phrases", "refusals"),
    ]
