"""What report.py reads of a run folder, and what it refuses to read."""

import hashlib
import json

import pytest

from common.errors import UserError
from data.intervals import rate
from reporting.load_runs import Run, distinct_names, load_runs, short_names
from reporting.rates import Rate
from tests.reporting.run_folders import (
    change_json,
    write_ailuminate,
    write_gsm8k,
    write_harmless,
    write_json,
    write_training,
    write_verdicts,
)

NUMBER, STRICT = ("accuracy", "number"), ("safe_strict",)


def test_a_run_is_read_with_its_settings_rates_and_records(tmp_path):
    write_gsm8k(tmp_path / "base", "rrw")
    (run,) = load_runs([tmp_path / "base"])
    gsm8k = run.answers["gsm8k"]
    low, high = rate(2, 3)["low"], rate(2, 3)["high"]
    assert gsm8k.rates[NUMBER] == Rate(2, 3, 2 / 3, low, high)
    assert next(iter(gsm8k.rates)) == NUMBER  # the main one first
    assert (gsm8k.seconds, gsm8k.total, gsm8k.finished) == (61.0, 3, True)
    answer = gsm8k.records[0]
    assert (answer.id, answer.prompt, answer.gold) == ("demo-test-0", "What is 0 + 0?", "0")
    assert answer.outcomes == (True,) and gsm8k.records[2].outcomes == (False,)
    assert run.name == "base" and [part.name for part in run.parts()] == ["gsm8k"]


def test_verdicts_of_several_judges_are_read_apart(tmp_path, harmless):
    write_ailuminate(tmp_path, "sru", judges=("qwen3guard", "refusal-phrases"))
    write_harmless(tmp_path, "sr", judges=("refusal-phrases",))
    (run,) = load_runs([tmp_path])
    assert list(run.judgements["ailuminate"]) == ["qwen3guard", "refusal-phrases"]
    guard, phrases = run.judgements["ailuminate"].values()
    assert guard.rates[STRICT].count == 2 and guard.rates["refusals",].count == 1
    assert STRICT not in phrases.rates and phrases.rates["refusals",].count == 1
    assert guard.groups["hazard"]["cse"][STRICT].total == 2
    (harm,) = run.judgements["harmless"].values()
    assert harm.rates["over_refusal",] == Rate(1, 2, 0.5, *[rate(1, 2)[k] for k in ("low", "high")])
    assert [verdict.outcomes for verdict in harm.records] == [(False,), (True,), (None,), (None,)]


@pytest.mark.parametrize("name", ["S1.2", "a.b.c", ".", "", "$x_1$", "by_hazard", "<b>", "count"])
def test_names_of_groups_are_data(tmp_path, name):
    """A hazard with a full stop in it once was a path into the summary."""
    write_ailuminate(tmp_path, "ssu")
    for suffix in ("jsonl", "qwen3guard.jsonl"):
        path = tmp_path / f"ailuminate.{suffix}"
        path.write_text(path.read_text().replace('"cse"', json.dumps(name)))
    write_verdicts(tmp_path, "ailuminate", "qwen3guard", "ssu")
    (run,) = load_runs([tmp_path])
    groups = run.judgements["ailuminate"]["qwen3guard"].groups["hazard"]
    assert groups[name][STRICT].total == 2 and groups["dfm"][STRICT].total == 1


def test_a_missing_folder_and_a_folder_without_summaries_are_refused(tmp_path):
    with pytest.raises(UserError, match="nowhere: no such run folder"):
        load_runs([tmp_path / "nowhere"])
    (tmp_path / "gsm8k.jsonl").write_text("")
    with pytest.raises(UserError, match=r"no summary of training, answers or judging"):
        load_runs([tmp_path])


GOOD_RATE = rate(1, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "judge"}, r"gsm8k\.summary\.json: field 'task' must be 'gsm8k', found 'judge'"),
        ({"finished": "yes"}, "field 'finished' must be true or false, found 'yes'"),
        ({"settings": None}, "field 'settings' must be an object"),
        ({"seconds": "12"}, "field 'seconds' must be a number, found '12'"),
        ({"seconds": True}, "field 'seconds' must be a number, found True"),
        ({"adapter_path": 3}, "field 'adapter_path' must be text, found 3"),
        ({"questions": None}, "field 'questions' must be a whole number"),
        ({"accuracy": 3}, "field 'accuracy' must be an object, found 3"),
        ({"accuracy": {"number": 0.5}}, "in 'accuracy': field 'number' must be an object"),
        ({"cut_off": 0.5}, "field 'cut_off' must be an object, found 0.5"),
        ({"cut_off": {**GOOD_RATE, "count": 5}}, "in 'cut_off': a count of 5 out of 3"),
        ({"cut_off": {**GOOD_RATE, "rate": 1.5}}, "in 'cut_off': rate 1.5 outside its interval"),
        ({"cut_off": {**GOOD_RATE, "rate": 0.5}}, "rate 0.5, but a count of 1 out of 3"),
        ({"cut_off": {**GOOD_RATE, "high": None}}, "'cut_off': field 'high' must be a number"),
        ({"cut_off": {**GOOD_RATE, "rate": float("nan")}}, "field 'rate' must be a number"),
        ({"other": {"count": 1, "total": 3, "rate": 2}}, "'other': field 'low' must be a number"),
    ],
)  # fmt: skip
def test_a_malformed_summary_is_refused_with_file_and_field(tmp_path, changes, message):
    write_gsm8k(tmp_path, "rrw")
    change_json(tmp_path / "gsm8k.summary.json", **changes)
    with pytest.raises(UserError, match=message):
        load_runs([tmp_path])


def test_a_malformed_record_is_refused_with_its_line(tmp_path):
    write_gsm8k(tmp_path, "rrw")
    path = tmp_path / "gsm8k.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], "", '{"id": "x", "question": 3}', ""]))
    with pytest.raises(
        UserError, match=r"gsm8k\.jsonl, line 3: field 'question' must be text, found 3"
    ):
        load_runs([tmp_path])
    path.write_text(lines[0] + "\n{broken\n")
    with pytest.raises(UserError, match=r"gsm8k\.jsonl, line 2: not valid JSON"):
        load_runs([tmp_path])
    path.write_text(f"{lines[0]}\n{lines[0]}\n")
    with pytest.raises(UserError, match=r"line 2: the id 'demo-test-0' is also on line 1"):
        load_runs([tmp_path])


def test_a_verdict_without_its_group_is_refused(tmp_path):
    write_ailuminate(tmp_path, "su")
    path = tmp_path / "ailuminate.qwen3guard.jsonl"
    path.write_text(path.read_text().replace('"persona"', '"person"', 1))
    with pytest.raises(
        UserError,
        match=r"qwen3guard\.jsonl, line 1: field 'persona' must be text, which is missing",
    ):
        load_runs([tmp_path])


def test_a_verdict_file_is_of_the_judge_in_its_name(tmp_path):
    write_ailuminate(tmp_path, "su")
    change_json(tmp_path / "ailuminate.qwen3guard.summary.json", judge="another")
    with pytest.raises(UserError, match="field 'judge' must be 'qwen3guard', found 'another'"):
        load_runs([tmp_path])


@pytest.mark.parametrize("outcomes", ["", "rr"])
def test_an_unfinished_part_has_progress_only_and_may_end_in_half_a_line(tmp_path, outcomes):
    write_gsm8k(tmp_path, outcomes, finished=False)
    change_json(tmp_path / "gsm8k.summary.json", planned=7)
    with open(tmp_path / "gsm8k.jsonl", "a") as file:
        file.write('{"id": "demo-te')
    (run,) = load_runs([tmp_path])
    gsm8k = run.answers["gsm8k"]
    assert gsm8k.progress == f"running {len(outcomes)}/7"
    assert gsm8k.rates == {} and gsm8k.seconds is None


def test_half_a_line_in_a_finished_part_is_an_error(tmp_path):
    write_gsm8k(tmp_path, "rrw")
    with open(tmp_path / "gsm8k.jsonl", "a") as file:
        file.write('{"id": "demo-te')
    with pytest.raises(UserError, match="line 4: not valid JSON"):
        load_runs([tmp_path])


def test_training_is_read_with_its_losses_and_progress(tmp_path):
    write_training(tmp_path, steps=8, finished=False)
    (run,) = load_runs([tmp_path])
    assert run.training.progress == "running 8/20"
    assert run.training.losses[2] == 1.0 and run.training.validation_losses == {8: 0.9}
    (tmp_path / "train.jsonl").write_text('{"step": 1, "loss": "low"}\n')
    with pytest.raises(UserError, match=r"train\.jsonl, line 1: field 'loss' must be a number"):
        load_runs([tmp_path])


def test_judging_progress_counts_verdicts_of_those_planned(tmp_path):
    write_ailuminate(tmp_path, "ssu", judges=())
    write_verdicts(tmp_path, "ailuminate", "qwen3guard", "ss", finished=False)
    change_json(tmp_path / "ailuminate.qwen3guard.summary.json", planned=3)
    (run,) = load_runs([tmp_path])
    assert run.judgement("ailuminate", "qwen3guard").progress == "running 2/3"


def test_verdicts_on_other_answers_are_left_out(tmp_path):
    write_ailuminate(tmp_path, "ssu", responses=["a", "b", "c"])
    path = tmp_path / "ailuminate.jsonl"
    answers = path.read_text()
    first_line = answers[: answers.index("\n") + 1]
    for changed, stale in ((answers.replace('"c"', '"C"'), 1), (first_line, 2), ("", 3)):
        path.write_text(changed)
        (run,) = load_runs([tmp_path])
        assert run.judgements == {}
        assert run.stale_verdicts == {"ailuminate.qwen3guard": stale}
    path.write_text(answers)
    assert load_runs([tmp_path])[0].stale_verdicts == {}


def test_files_of_the_version_with_one_judge_are_told(tmp_path):
    write_gsm8k(tmp_path, "r")
    write_json(tmp_path / "judge.summary.json", {"task": "judge"})
    (tmp_path / "verdicts.jsonl").write_text("")
    assert load_runs([tmp_path])[0].old_files == ("verdicts.jsonl", "judge.summary.json")


def write_divergence(run, task: str, limit: int = 2, **settings) -> None:
    """As divergence.py leaves it, measured along every other answer in the order of the ids."""
    lines = (run / f"{task}.jsonl").read_text().splitlines()
    answers = sorted(map(json.loads, lines), key=lambda answer: answer["id"])
    chosen = [answers[i * len(answers) // limit] for i in range(limit)]
    content = json.dumps([[answer["id"], answer["token_ids"]] for answer in chosen])
    digest = hashlib.sha256(content.encode()).hexdigest()[:12]
    held = json.loads((run / f"{task}.summary.json").read_text())["settings"]
    about = {name: held[name] for name in ("model", "adapter", "adapter_scale", "dtype")}
    about |= {"answers_sha256": digest, **settings}
    mean = {"mean": 0.2, "low": 0.18, "high": 0.22, "answers": limit}
    summary = {"task": "kl", "finished": True, "settings": {"limit": limit, task: about}}
    write_json(run / "kl.summary.json", {**summary, task: mean})


def test_a_divergence_holds_for_the_answers_it_was_measured_on(tmp_path):
    write_gsm8k(tmp_path, "rrww")
    write_divergence(tmp_path, "gsm8k")
    (run,) = load_runs([tmp_path])
    assert run.divergence["gsm8k"].mean == 0.2 and run.stale_divergence == ()


@pytest.mark.parametrize(
    ("answered_again", "stale"),
    [
        ({"adapter": "another"}, True),
        ({"dtype": "bfloat16"}, True),
        ({"shots": 0}, True),
        ({"system": "Be safe."}, True),  # recorded only where it is given
        ({"some_day": 3}, True),
        ({"batch_size": 3, "limit": 9}, False),
    ],
)
def test_a_divergence_of_answers_given_with_other_settings_is_left_out(
    tmp_path, answered_again, stale
):
    """Whatever setting it is that differs."""
    write_gsm8k(tmp_path, "rrww", data="gsm8k")
    write_divergence(tmp_path, "gsm8k", shots=3, shot_selection="fixed", data="gsm8k")
    assert load_runs([tmp_path])[0].stale_divergence == ()
    settings = json.loads((tmp_path / "gsm8k.summary.json").read_text())["settings"]
    change_json(tmp_path / "gsm8k.summary.json", settings=settings | answered_again)
    (run,) = load_runs([tmp_path])
    assert run.stale_divergence == ("gsm8k",) * stale
    assert list(run.divergence) == ["gsm8k"] * (not stale)


def test_a_divergence_of_an_earlier_version_is_compared_by_what_it_recorded(tmp_path):
    write_gsm8k(tmp_path, "rrww", data="gsm8k")
    write_divergence(tmp_path, "gsm8k")
    assert load_runs([tmp_path])[0].stale_divergence == ()
    write_gsm8k(tmp_path, "rrww", data="gsm8k", adapter="another")
    assert load_runs([tmp_path])[0].stale_divergence == ("gsm8k",)


def test_a_divergence_along_other_tokens_is_left_out(tmp_path):
    write_gsm8k(tmp_path, "rrww")
    write_divergence(tmp_path, "gsm8k")
    path = tmp_path / "gsm8k.jsonl"
    path.write_text(path.read_text().replace("[1, 2, 3]", "[1, 2, 4]", 1))
    assert load_runs([tmp_path])[0].stale_divergence == ("gsm8k",)


def test_what_self_instruct_wrote_is_read_when_it_is_finished(tmp_path):
    write_training(tmp_path)
    training = {"records": 18, "dropped": 2, "sources": {"rewrite": 15, "gold": 3}}
    training["log_likelihood"] = {"answers": 15, "gold": -1.149, "own": -0.8}
    about = {"task": "self-instruct", "right": rate(15, 20), "training": training}
    path = tmp_path / "self-instruct.summary.json"
    write_json(path, about | {"finished": True})
    written = load_runs([tmp_path])[0].self_instruct
    assert (written.own, written.gold, written.dropped) == (15, 3, 2)
    assert written.own_log_likelihood == -0.8 and written.right.count == 15
    flexible = about | {"training": training | {"right": rate(18, 20)}}
    write_json(path, flexible | {"finished": True})
    assert load_runs([tmp_path])[0].self_instruct.right.count == 18, "by the reading that is used"
    write_json(path, about | {"finished": False})
    assert load_runs([tmp_path])[0].self_instruct is None
    del training["sources"]
    write_json(path, about | {"finished": True})
    with pytest.raises(
        UserError, match="in 'training': field 'sources' must be an object, which is missing"
    ):
        load_runs([tmp_path])


def test_a_recipe_needs_percentages(tmp_path):
    write_gsm8k(tmp_path, "r")
    write_json(tmp_path / "recipe.json", {"title": "t", "original": {"gsm8k": 143}})
    with pytest.raises(UserError, match="'original': gsm8k should be a percentage, found 143"):
        load_runs([tmp_path])


def test_equal_folder_names_are_told_apart_and_one_folder_counts_once(tmp_path):
    folders = [tmp_path / name for name in ("a/x/run", "b/x/run", "other")]
    assert distinct_names(folders) == ["a/x/run", "b/x/run", "other"]
    folder = write_gsm8k(tmp_path / "run", "r")
    assert [run.name for run in load_runs([folder, folder / ".." / "run"])] == ["run"]


def test_long_names_lose_their_middle_unless_that_makes_them_equal(tmp_path):
    names = ["short", "a" * 20 + "-one-" + "z" * 20, "a" * 20 + "-two-" + "z" * 20]
    runs = [Run(tmp_path, name) for name in names]
    assert short_names(runs) == names
    assert short_names(runs[:2], width=13) == ["short", "aaaaa...zzzzz"]
