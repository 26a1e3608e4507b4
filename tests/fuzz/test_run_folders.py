"""Run folders edited by hand: every script goes on, or refuses in one line that names the file."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st

import divergence
import experiment
import export
import generate
import judge
import report
import train
from data.records import write_json
from reporting import plot_style
from tests.fuzz.bounds import call, cases, within_bounds
from tests.fuzz.edits import as_text, edit_bytes, edit_json, edit_lines, parsed

pytestmark = pytest.mark.slow
DATA = st.data()
ANSWERING = ["--data", "demo", "--max-new-tokens", "3", "--task", "gsm8k,ailuminate,xstest"]
TRAINING = ["--data", "demo", "--limit", "6", "--validation", "2", "--batch-size", "2"]
TRAINING += ["--checkpoint-every", "1", "--rank", "1", "--steps", "2"]
RECIPE = {"name": "row", "title": "row", "original": {"gsm8k": 43.2}, "recipe": {"title": "row"}}


@pytest.fixture(scope="module")
def finished(chat_checkpoint, tmp_path_factory) -> Path:
    """A run with every file that the scripts leave: trained, answered, judged and measured."""
    run = tmp_path_factory.mktemp("finished") / "run"
    model = ["--model", chat_checkpoint, "--run", run, "--device", "cpu"]
    call(train.main, *model, *TRAINING)
    call(generate.main, *model, *ANSWERING, "--limit", 3)
    for guard in ("refusal-phrases", "refusal-phrases-zou"):
        call(judge.main, "--run", run, "--guard", guard)
    call(divergence.main, "--run", run, "--limit", 2, "--device", "cpu")
    write_json(run / "recipe.json", RECIPE)
    return run


@pytest.fixture
def edited(finished, tmp_path) -> Iterator[Callable[..., Path]]:
    """The run with one or two of its files edited, in the same place for every case."""
    run = tmp_path / "run"

    def edit(draw, pattern: str) -> Path:
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(finished, run)
        names = [str(path.relative_to(run)) for path in sorted(run.rglob(pattern))]
        for _ in range(draw(st.sampled_from([1, 1, 1, 2]))):
            damage(draw, run / draw(st.sampled_from(names)))
        return run

    yield edit


def damage(draw, path: Path) -> None:
    action = draw(st.integers(0, 14))
    if not path.exists():
        return
    content = path.read_bytes()
    if action == 14:
        path.unlink()
    elif action == 13 or path.suffix not in (".json", ".jsonl"):
        path.write_bytes(edit_bytes(draw, content))
    elif path.suffix == ".jsonl":
        path.write_bytes(edit_lines(draw, content.decode("utf-8", "replace").splitlines()))
    else:
        text = as_text(draw, edit_json(draw, parsed(content)))
        path.write_bytes(text.encode("utf-8", "surrogatepass"))


@cases(20)
@hypothesis.given(DATA)
def test_reports(edited, tmp_path, monkeypatch, data):
    monkeypatch.setattr(plot_style, "is_available", lambda: False)
    run = edited(data.draw, "*.json*")
    output = tmp_path / "out"
    with within_bounds("run folder, report", allowed=output):
        call(report.main, run, "--output", output)


@cases(20)
@hypothesis.given(DATA)
def test_judging(edited, data):
    run = edited(data.draw, "ailuminate*")
    options = ["--run", run, "--guard", "refusal-phrases", "--task", "ailuminate"]
    with within_bounds("run folder, judging", allowed=run):
        call(judge.main, *options)


@cases(20)
@hypothesis.given(DATA)
def test_answering(edited, chat_checkpoint, data):
    """One more prompt than there are answers: these are read, and one is answered."""
    pattern = data.draw(st.sampled_from(["gsm8k*", "gsm8k*", "train.summary.json", "adapter/*"]))
    run = edited(data.draw, pattern)
    options = ["--model", chat_checkpoint, "--run", run, "--device", "cpu", *ANSWERING]
    with within_bounds("run folder, answering", allowed=run):
        call(generate.main, *options, "--task", "gsm8k", "--limit", 4)


@cases(20)
@hypothesis.given(DATA)
def test_training(edited, chat_checkpoint, data):
    """The summary of an interrupted training, its newest checkpoint and its log."""
    run = edited(data.draw, "train*")
    shutil.rmtree(run / "adapter")
    for path in sorted((run / "checkpoints").glob("step-*/*"))[-2:]:
        if data.draw(st.booleans()):
            damage(data.draw, path)
    options = ["--model", chat_checkpoint, "--run", run, "--device", "cpu", *TRAINING]
    shutil.rmtree(run / "checkpoints" / "step-00000002", ignore_errors=data.draw(st.booleans()))
    with within_bounds("run folder, training", allowed=run):
        call(train.main, *options)


@cases(10)
@hypothesis.given(DATA)
def test_measuring(edited, data):
    pattern = data.draw(st.sampled_from(["gsm8k.*", "kl*", "adapter/*"]))
    run = edited(data.draw, pattern)
    options = ["--run", run, "--device", "cpu", "--limit", data.draw(st.sampled_from([1, 2]))]
    with within_bounds("run folder, divergence", allowed=run):
        call(divergence.main, *options)


@cases(10)
@hypothesis.given(DATA)
def test_exporting(edited, data):
    pattern = data.draw(st.sampled_from(["train.summary.json", "adapter/*", "*.summary.json"]))
    run = edited(data.draw, pattern)
    output = run.parent / "out"
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir()
    with within_bounds("run folder, export", allowed=output):
        call(export.main, "--run", run, "--to", output / "exported")


@cases(10)
@hypothesis.given(DATA)
def test_planning_an_experiment(edited, chat_checkpoint, tmp_path, data):
    run = edited(data.draw, "*.summary.json")
    recipe = tmp_path / "run.yaml"
    recipe.write_text("title: run\ntrain: {steps: 2}\ngsm8k:\nailuminate:\nxstest:\n")
    options = ["--model", chat_checkpoint, "--data", "demo", "--judge", "refusal", "--dry-run"]
    named = tmp_path / chat_checkpoint.name
    shutil.rmtree(named, ignore_errors=True)
    shutil.move(run, named / "run")
    with within_bounds("run folder, experiment"):
        call(experiment.main, recipe, "--runs", tmp_path, *options)
