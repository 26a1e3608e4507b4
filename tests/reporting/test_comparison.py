"""Pairs of answers: which flipped, what became worse, and what the two runs do not share."""

import json

import pytest

from common.errors import UserError
from reporting.comparison import compare, compare_runs
from reporting.conclusion import conclude
from reporting.format_and_ability import Endings, count_endings, format_and_ability
from reporting.load_runs import load_runs
from reporting.paired_tables import paired_tables
from reporting.scores import headline_scores
from reporting.setting_differences import COST_SETTINGS, TASK_SETTINGS
from tests.reporting.run_folders import (
    change_json,
    write_ailuminate,
    write_gsm8k,
    write_harmless,
    write_verdicts,
)


def compared(tmp_path, place: int = 0):
    """The runs base and tuned in the main score number `place`."""
    runs = load_runs([tmp_path / "base", tmp_path / "tuned"])
    return compare(*runs, headline_scores(runs)[place])


def test_flips_in_both_directions(tmp_path):
    write_gsm8k(tmp_path / "base", "rrrwwww")
    write_gsm8k(tmp_path / "tuned", "rwrrrrw")
    pair = compared(tmp_path)
    assert pair.lost == ("demo-test-1",)
    assert pair.gained == ("demo-test-3", "demo-test-4", "demo-test-5")
    assert (pair.good_before, pair.good_after, pair.total) == (3, 5, 7)
    assert pair.difference == 2 / 7 and pair.p_value == 2 * (1 + 4) / 16
    low, high = pair.interval
    assert low <= 2 / 7 <= high and pair.needed > 7


def test_lost_means_worse_where_less_is_better(tmp_path, harmless):
    write_harmless(tmp_path / "base", "sssr")
    write_harmless(tmp_path / "tuned", "srrs")
    pair = compared(tmp_path)
    assert pair.lost == ("h1", "h2") and pair.gained == ("h3",)
    assert (pair.score.good, pair.score.bad) == ("answered", "refused")
    assert pair.total == 4  # the prompts of another kind say nothing of over-refusal
    assert (pair.share_before, pair.share_after) == (0.25, 0.5) and pair.difference == 0.25
    low, high = pair.interval
    assert low < 0.25 < high and low + high > 0


def test_safety_flips(tmp_path):
    write_ailuminate(tmp_path / "base", "sssu")
    write_ailuminate(tmp_path / "tuned", "usux")  # one verdict could not be read
    pair = compared(tmp_path)
    assert pair.lost == ("p0", "p2") and pair.gained == ()
    assert (pair.score.good, pair.score.bad) == ("safe", "not safe")


def test_runs_without_answers_or_verdicts_are_passed_over(tmp_path):
    write_ailuminate(tmp_path / "base", "ss")
    write_ailuminate(tmp_path / "tuned", "ss", judges=())
    write_gsm8k(tmp_path / "tuned", "rr")
    runs = load_runs([tmp_path / "base", tmp_path / "tuned"])
    assert compare_runs(runs).pairs == [] and compare_runs(runs).refused == []


def test_whatever_differs_is_compared_and_named(tmp_path):
    write_gsm8k(tmp_path / "base", "rw", batch_size=4, novelty=[1, 2])
    changed = {"adapter": "abc", "shots": 0, "system": "Be safe.", "batch_size": 8}
    write_gsm8k(tmp_path / "tuned", "rr", **changed)
    pair = compared(tmp_path)
    assert pair.good_after == 2
    assert pair.differs_in == (
        "adapter (none / abc), novelty (1, 2 / none), shots (3 / 0), system (none / Be safe.)"
    )  # the batch size costs time and changes no answer


def test_what_is_common_to_both_is_paired(tmp_path):
    write_gsm8k(tmp_path / "base", "rwrw")
    write_gsm8k(tmp_path / "tuned", "rr")
    pair = compared(tmp_path)
    assert (pair.total, pair.good_before, pair.only_before, pair.only_after) == (2, 1, 2, 0)
    runs = load_runs([tmp_path / "base", tmp_path / "tuned"])
    (table, *_) = paired_tables(runs, compare_runs(runs))
    assert "2 questions are common to both, 2 are only in base and 0 only in tuned." in table.note


def test_of_judged_answers_those_that_are_judged_in_both_are_paired(tmp_path):
    """judge.py --limit takes a sample; it need not be the same in both runs."""
    write_ailuminate(tmp_path / "base", "ssu", judges=())
    write_ailuminate(tmp_path / "tuned", "ssu", judges=())
    write_verdicts(tmp_path / "base", "ailuminate", "qwen3guard", "ss", limit=2)
    write_verdicts(tmp_path / "tuned", "ailuminate", "qwen3guard", "usu", limit=None)
    pair = compared(tmp_path)
    assert (pair.total, pair.lost, pair.only_after) == (2, ("p0",), 1)


def test_what_has_no_prompt_in_common_is_refused(tmp_path):
    write_gsm8k(tmp_path / "base", "rw")
    write_gsm8k(tmp_path / "tuned", "rw")
    path = tmp_path / "tuned" / "gsm8k.jsonl"
    path.write_text(path.read_text().replace("demo-test-", "other-"))
    with pytest.raises(UserError, match="base and tuned have no questions in common"):
        compared(tmp_path)


def test_unfinished_answers_are_refused(tmp_path):
    write_gsm8k(tmp_path / "base", "rw")
    write_gsm8k(tmp_path / "tuned", "rw", finished=False)
    with pytest.raises(UserError, match="tuned: gsm8k is unfinished"):
        compared(tmp_path)


@pytest.mark.parametrize("changed", ["What is 1 + 0?", '"gold": "1"'])
def test_an_edited_question_is_refused(tmp_path, changed):
    write_gsm8k(tmp_path / "base", "rr")
    write_gsm8k(tmp_path / "tuned", "rr")
    path = tmp_path / "tuned" / "gsm8k.jsonl"
    path.write_text(path.read_text().replace(changed, changed.replace("1", "2", 1)))
    with pytest.raises(
        UserError, match=r"1 prompts have the same id and another text \(demo-test-1, ...\)"
    ):
        compared(tmp_path)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"dtype": "bfloat16"}, r"dtype \(float32 / bfloat16\)"),
        ({"quantize": "int8"}, r"quantize \(none / int8\)"),
        ({"max_new_tokens": 5}, r"max_new_tokens \(none / 5\)"),
        ({"some_day": True}, r"some_day \(none / true\)"),
    ],
)
def test_verdicts_by_whatever_other_settings_are_no_pairs(tmp_path, settings, said):
    write_ailuminate(tmp_path / "base", "su")
    write_ailuminate(tmp_path / "tuned", "su")
    write_verdicts(tmp_path / "tuned", "ailuminate", "qwen3guard", "su", **settings)
    with pytest.raises(
        UserError, match=f"base and tuned were not judged alike by Qwen3Guard: {said}"
    ):
        compared(tmp_path)


def test_a_fingerprint_says_which_model_it_was(tmp_path):
    """The same weights in another folder are the same, other weights in the same folder are not."""
    for name, path in (("base", "org/Guard"), ("tuned", "/models/guard")):
        write_ailuminate(tmp_path / name, "su", judges=())
        about = {"model": path, "model_fingerprint": "aaaa"}
        write_verdicts(tmp_path / name, "ailuminate", "qwen3guard", "su", **about)
    assert compared(tmp_path).total == 2
    about = {"model": "org/Guard", "model_fingerprint": "bbbb"}
    write_verdicts(tmp_path / "tuned", "ailuminate", "qwen3guard", "su", **about)
    with pytest.raises(UserError, match=r"not judged alike .* model_fingerprint \(aaaa / bbbb\)"):
        compared(tmp_path)


def test_the_settings_that_only_cost_are_those_the_scripts_mark_so():
    from common.answering import SHOT_SETTINGS, WORDING_SETTINGS, AnsweringSettings
    from common.judging import JudgingSettings
    from common.options import may_change

    assert may_change(AnsweringSettings) == COST_SETTINGS
    assert may_change(JudgingSettings) == COST_SETTINGS - {"samples"}, "of answers alone"
    assert {*SHOT_SETTINGS, *WORDING_SETTINGS, "shots_sha256", "split"} == TASK_SETTINGS


def test_verdicts_that_took_other_costs_are_pairs(tmp_path):
    write_ailuminate(tmp_path / "base", "su")
    write_ailuminate(tmp_path / "tuned", "su")
    write_verdicts(tmp_path / "tuned", "ailuminate", "qwen3guard", "su", batch_size=4, device="x")
    assert compared(tmp_path).total == 2


def test_groups_are_tested_with_a_correction_for_many_tests(tmp_path):
    write_ailuminate(tmp_path / "base", "ss" * 8)
    write_ailuminate(tmp_path / "tuned", "us" * 7 + "uu")  # cse: 8 lost of 8, dfm: 1 of 8
    runs = load_runs([tmp_path / "base", tmp_path / "tuned"])
    tables = {table.title: table for table in paired_tables(runs, compare_runs(runs))}
    table = tables["AILuminate safe rate (strict) by hazard"]
    assert table.header[1] == "hazard" and table.header[-1] == "p, Holm"
    first, second = table.rows
    assert first[1:3] == ("cse", "8") and first[4:] == ("8", "0", "0.008", "0.016")
    assert second[1:3] == ("dfm", "8") and second[4:] == ("1", "0", "1.000", "1.000")
    assert "Holm" in table.note
    assert "AILuminate safe rate (strict) by persona" not in tables  # one value: no groups


def test_the_conclusion_says_what_got_better_and_worse(tmp_path, harmless):
    write_gsm8k(tmp_path / "base", "w" * 12)
    write_gsm8k(tmp_path / "tuned", "r" * 8 + "w" * 4)
    for name, labels in (("base", "ssssssss"), ("tuned", "uuuuuuus")):
        write_ailuminate(tmp_path / name, labels)
    runs = load_runs([tmp_path / "base", tmp_path / "tuned"])
    (conclusion,) = conclude(runs, compare_runs(runs))
    assert str(conclusion) == (
        "tuned against base: better: GSM8K accuracy 0.0 → 66.7 % (+66.7 points); worse: AILuminate "
        "safe rate (strict) 100.0 → 12.5 % (-87.5 points); over-refusal was not measured."
    )
    write_harmless(tmp_path / "base", "rss")
    write_harmless(tmp_path / "tuned", "sss")
    runs = load_runs([tmp_path / "base", tmp_path / "tuned"])
    (conclusion,) = conclude(runs, compare_runs(runs))
    assert conclusion.unknown == ""
    (change,) = conclusion.changes["no significant change"]
    assert str(change) == "Harmless over-refusal 33.3 → 0.0 % (-33.3 points)"


def test_answers_are_counted_by_how_they_end(tmp_path):
    write_gsm8k(tmp_path, "rrrwwwccuu")
    (run,) = load_runs([tmp_path])
    endings = count_endings(run.answers["gsm8k"].records)
    assert endings == Endings(total=10, marked=6, right=3, cut_off=2, unmarked=2)


def test_format_alone_and_ability_alone():
    def endings(right: int, marked: int) -> Endings:
        return Endings(10, marked, right, 0, 10 - marked)

    assert format_and_ability(endings(2, 4), endings(4, 8)) == pytest.approx((0.2, 0.0))
    assert format_and_ability(endings(2, 8), endings(6, 8)) == pytest.approx((0.0, 0.4))
    by_format, by_ability = format_and_ability(endings(3, 5), endings(4, 10))
    assert by_format == pytest.approx((1.0 - 0.5) * (0.6 + 0.4) / 2)
    assert by_format + by_ability == pytest.approx(0.4 - 0.3)
    assert format_and_ability(endings(0, 0), endings(4, 8)) is None


def test_reasoning_is_no_ending(tmp_path):
    write_gsm8k(tmp_path, "c")
    path = tmp_path / "gsm8k.jsonl"
    record = json.loads(path.read_text()) | {"response": "<think>perhaps #### 0</think> I give up"}
    path.write_text(json.dumps(record) + "\n")
    change_json(tmp_path / "gsm8k.summary.json")
    assert count_endings(load_runs([tmp_path])[0].answers["gsm8k"].records).marked == 0
