from pathlib import Path

import pytest

from reporting.comparison import compare, format_and_ability, split_accuracy
from reporting.load_runs import Part, Run


def gsm8k_run(name: str, right: str, finished: bool = True, prefix: str = "q", **settings) -> Run:
    """One question a character of `right`: 1 is a right answer."""
    records = [
        {
            "id": f"{prefix}{i}",
            "question": f"{i}?",
            "gold": "1",
            "response": f"{name} #### {c}",
            "correct": c == "1",
        }
        for i, c in enumerate(right)
    ]
    settings = {"shots": 3, "shot_selection": "fixed", "seed": 0, **settings}
    return Run(
        Path(name), name, {"gsm8k": Part(finished, len(right), len(right), settings, {}, records)}
    )


def safety_run(name: str, labels: str, method: str = "guard", **judge) -> Run:
    """One prompt a character: S is safe, U unsafe, anything else not judged."""
    answers = [
        {"id": f"p{i}", "prompt": f"{i}?", "hazard": "cse", "response": name}
        for i in range(len(labels))
    ]
    verdicts = [
        {"id": f"p{i}", "categories": [], "safety": {"S": "Safe", "U": "Unsafe"}[c]}
        for i, c in enumerate(labels)
        if c in "SU"
    ]
    judging = {"model": "guard", "dtype": "float32", **judge}
    parts = {
        "ailuminate": Part(True, len(labels), len(labels), {}, {}, answers),
        "judge": Part(True, len(verdicts), len(verdicts), judging, {}, verdicts, method=method),
    }
    return Run(Path(name), name, parts)


def test_flips_in_both_directions():
    comparison = compare(gsm8k_run("base", "1110000"), gsm8k_run("tuned", "1011110"), "gsm8k")
    assert [flip.id for flip in comparison.lost] == ["q1"]
    assert [flip.id for flip in comparison.gained] == ["q3", "q4", "q5"]
    assert (comparison.good_before, comparison.good_after, comparison.total) == (3, 5, 7)
    assert comparison.difference == 2 / 7 and comparison.p_value == 2 * (1 + 4) / 16
    flip = comparison.lost[0]
    assert (flip.prompt, flip.before.text, flip.after.text) == ("1?", "base #### 1", "tuned #### 0")
    assert (flip.before.verdict, flip.after.good) == ("right: no number", False)
    low, high = comparison.interval
    assert low <= 2 / 7 <= high and comparison.needed > 7


def test_safety_flips():
    comparison = compare(safety_run("base", "SSSU"), safety_run("tuned", "USUU"), "ailuminate")
    assert [flip.id for flip in comparison.lost] == ["p0", "p2"] and comparison.gained == []
    assert (comparison.measure, comparison.good, comparison.bad) == (
        "AILuminate, safe",
        "safe",
        "not safe",
    )


def test_runs_without_answers_or_verdicts_are_passed_over():
    base = gsm8k_run("base", "101")
    assert compare(base, gsm8k_run("tuned", "111"), "ailuminate") is None
    unjudged = safety_run("tuned", "SS")
    del unjudged.parts["judge"]
    assert compare(safety_run("base", "SS"), unjudged, "ailuminate") is None


def test_what_differs_otherwise_is_compared():
    other = gsm8k_run(
        "tuned", "11", adapter="abc", adapter_scale=0.5, temperature=0.6, seed=7, system="Be safe."
    )
    assert compare(gsm8k_run("base", "10"), other, "gsm8k").good_after == 2


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (gsm8k_run("tuned", "11", shots=0), "shots is 3 in base and 0 in tuned"),
        (
            gsm8k_run("tuned", "11", shot_selection="random"),
            "shot_selection is 'fixed' in base and 'random' in tuned",
        ),
        (gsm8k_run("tuned", "11", embedder="m"), "embedder is None in base and 'm' in tuned"),
        (gsm8k_run("tuned", "111"), r"1 of 3 prompts are only in tuned \(q2, ...\)"),
        (
            gsm8k_run("tuned", "11", prefix="r"),
            r"2 of 2 prompts are only in base \(q0, ...\); 2 of 2 .* \(r0",
        ),
        (gsm8k_run("tuned", "11", finished=False), "tuned: gsm8k is unfinished"),
    ],
)
def test_answers_to_different_prompts_are_refused(other, message):
    with pytest.raises(ValueError, match=message):
        compare(gsm8k_run("base", "10"), other, "gsm8k")


def test_an_edited_question_is_refused():
    other = gsm8k_run("tuned", "11")
    other.parts["gsm8k"].records[1]["gold"] = "2"
    with pytest.raises(
        ValueError, match=r"1 prompts have the same id and another text \(q1, ...\)"
    ):
        compare(gsm8k_run("base", "10"), other, "gsm8k")


def test_other_seeds_of_random_shots_are_other_prompts():
    runs = [
        gsm8k_run(name, "10", shot_selection="random", seed=seed)
        for name, seed in (("base", 1), ("tuned", 2))
    ]
    with pytest.raises(ValueError, match="seed is 1 in base and 2 in tuned"):
        compare(*runs, "gsm8k")


def test_safety_judged_otherwise_is_refused():
    base = safety_run("base", "SU")
    with pytest.raises(
        ValueError, match="base was judged by guard in float32, tuned by small in float32"
    ):
        compare(base, safety_run("tuned", "SU", model="small"), "ailuminate")
    with pytest.raises(ValueError, match="tuned by refusal phrases"):
        compare(base, safety_run("tuned", "SU", method="refusal"), "ailuminate")
    with pytest.raises(ValueError, match=r"1 answers of tuned are not judged \(p1, ...\)"):
        compare(base, safety_run("tuned", "S-"), "ailuminate")


def answers(right: int, marked: int, cut_off: int, total: int) -> list[dict]:
    """`right` of `marked` answers with a marker; of the others, `cut_off` were cut off."""
    return [
        {
            "response": "#### 1" if i < marked else "1",
            "correct": i < right,
            "finish_reason": "length" if marked <= i < marked + cut_off else "stop",
        }
        for i in range(total)
    ]


def test_accuracy_is_split_by_how_answers_end():
    assert split_accuracy(answers(3, 6, 2, 10)) == {
        "marker": 6,
        "right": 3,
        "cut_off": 2,
        "unmarked": 2,
    }


def test_format_alone_and_ability_alone():
    assert format_and_ability(answers(2, 4, 0, 10), answers(4, 8, 0, 10)) == pytest.approx(
        (0.2, 0.0)
    )
    assert format_and_ability(answers(2, 8, 0, 10), answers(6, 8, 0, 10)) == pytest.approx(
        (0.0, 0.4)
    )


def test_format_and_ability_add_up_to_the_change():
    before, after = answers(3, 5, 0, 10), answers(4, 10, 0, 10)
    by_format, by_ability = format_and_ability(before, after)
    assert by_format == pytest.approx((1.0 - 0.5) * (0.6 + 0.4) / 2)
    assert by_format + by_ability == pytest.approx(0.4 - 0.3)
    assert format_and_ability(answers(0, 0, 5, 5), after) is None
