"""Votes of several samples in a report: beside the single answers, read and checked."""

import pytest

from common.errors import UserError
from data.records import read_json, write_json
from data.registry import TASKS
from data.voting import summarise_votes
from reporting.load_runs import load_runs
from reporting.votes import votes_table
from tests.reporting.run_folders import write_gsm8k

SUMMARY = "gsm8k-samples.summary.json"


def write_votes(folder, predictions, finished=True):
    """Write the summary of questions with the gold answer 2, a string of predictions each."""
    answers = {}
    for question, votes in enumerate(predictions):
        for number, vote in enumerate(votes):
            name = f"t{question}#{number}"
            about = {"prediction": vote, "gold": "2", "correct": vote == "2"}
            answers[name] = {"id": name, "finish_reason": "stop", **about}
    samples = len(predictions[0])
    summary = {
        "task": "gsm8k-samples",
        "finished": finished,
        "planned": len(predictions) * samples,
        "settings": {"samples": samples, "temperature": 0.7},
        "seconds": 5.0,
        **summarise_votes(TASKS["gsm8k"], answers, samples),
    }
    folder.mkdir(exist_ok=True)
    write_json(folder / SUMMARY, summary)
    return folder


def test_votes_stand_beside_the_single_answers(tmp_path):
    write_gsm8k(tmp_path / "single", "rw")
    write_gsm8k(tmp_path / "both", "rwww")
    write_votes(tmp_path / "both", ["2223", "2333", "3334", "2344"])
    runs = load_runs([tmp_path / "single", tmp_path / "both"])
    assert [part.name for part in runs[1].parts()] == ["gsm8k", "gsm8k-samples"]
    assert runs[1].answers["gsm8k"].rates["accuracy", "number"].rate == 1 / 4
    votes = runs[1].votes["gsm8k"]
    assert votes.majority.count == 1 and votes.samples == 4 and not runs[0].votes
    table = votes_table(runs)
    assert table.header == ("run", "task", "K", "questions", "single", "maj@K", "pass@K")
    [row] = table.rows
    assert row[:4] == ("both", "GSM8K", "4", "4")
    assert [cell.split()[0] for cell in row[4:]] == ["31.2", "25.0", "75.0"]
    assert votes_table(runs[:1]) is None


def test_a_run_of_votes_alone_and_one_that_is_not_finished(tmp_path):
    write_votes(tmp_path / "alone", ["22"])
    write_votes(tmp_path / "running", ["22", "23"], finished=False)
    runs = load_runs([tmp_path / "alone", tmp_path / "running"])
    assert runs[0].votes["gsm8k"].majority.rate == 1
    assert votes_table(runs).rows[1][3] == "running 4/4"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pass": {"1": {"mean": 0.5, "low": 0.4, "high": 0.6}}}, "lacks pass@1 or pass@2"),
        ({"pass": {"1": {"mean": 0.5, "low": 0.6, "high": 0.4}}}, "in pass@1: expected shares"),
        ({"pass": {"all": {"mean": 0.5, "low": 0.4, "high": 0.6}}}, "in pass@all: expected"),
        ({"pass": {"1": {"mean": "half"}}}, "in pass@1: field 'mean' must be a number"),
        ({"maj": {"count": 3, "total": 2}}, "field 'rate' must be"),
        ({"task": "gsm8k"}, "field 'task' must be 'gsm8k-samples'"),
        ({"samples": None}, "field 'samples' must be"),
    ],
)
def test_a_malformed_summary_is_named_with_its_field(tmp_path, change, message):
    path = write_votes(tmp_path / "run", ["22"]) / SUMMARY
    write_json(path, read_json(path) | change)
    with pytest.raises(UserError, match=message) as error:
        load_runs([tmp_path / "run"])
    assert SUMMARY in str(error.value)
