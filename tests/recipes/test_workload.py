"""The work that a call has before it, counted, and timed by what is finished."""

import pytest

from common.errors import UserError
from data.records import write_json
from data.registry import TASKS
from recipes.overlap import check_overlap
from recipes.schema import load_recipe
from recipes.settings import ExperimentSettings
from recipes.steps import plan, trainings
from recipes.workload import describe_work, work_left

OPTIONS = {
    "train": {"epochs", "steps", "batch-size", "kl-weight"},
    "self-instruct": {"samples"},
    **{task: {"shots"} for task in TASKS},
}
RECIPE = """\
title: row
self-instruct: {samples: 2}
train: [{epochs: 2}, {steps: 5, batch-size: 8}]
gsm8k:
ailuminate:
sweep: [0.5]
"""
EXAMPLES = len(TASKS["gsm8k"].load("demo", "train"))
QUESTIONS = len(TASKS["gsm8k"].load("demo", "test"))


@pytest.mark.parametrize(
    "train",
    [
        *("epochs: ''", "epochs: nan", "epochs: [1]", "kl-weight: [1]"),
        *(f"steps: {'9' * 400}", "steps: [2]", "steps: true", "{steps: 1, batch-size: x}"),
    ],
)
def test_a_number_that_is_none_is_refused_before_anything_is_counted(train, tmp_path):
    path = tmp_path / "row.yaml"
    stage = train if train.startswith("{") else f"{{{train}}}"
    path.write_text(f"title: row\ntrain: {stage}\ngsm8k:\n")
    recipe = load_recipe(path, OPTIONS)
    settings = ExperimentSettings(data="demo", model="m", runs=tmp_path / "runs")
    with pytest.raises(
        UserError, match=r"row\.yaml: (epochs|steps|batch-size|kl-weight): expected"
    ):
        for training in trainings(recipe, settings):
            describe_work(plan(training), "demo", settings.folder)
        check_overlap(recipe, "demo", {})


@pytest.fixture
def steps(tmp_path):
    def make(**changes):
        path = tmp_path / "row.yaml"
        path.write_text(RECIPE)
        recipe = load_recipe(path, OPTIONS)
        settings = ExperimentSettings(data="demo", model="m", runs=tmp_path / "runs", **changes)
        return [step for training in trainings(recipe, settings) for step in plan(training)]

    return make


def test_epochs_steps_samples_scales_and_seeds_count(steps):
    left = work_left(steps(), "demo")
    assert left["self-instruct"] == 2 * EXAMPLES
    assert left["train"] == 2 * EXAMPLES + 5 * 8
    assert left["gsm8k"] == 2 * QUESTIONS, "at two scales"
    left = work_left(steps(seeds=3, train_limit=10, limit=("gsm8k=4", "ailuminate=100000")), "demo")
    assert left["self-instruct"] == 20 and left["train"] == 3 * (20 + 40)
    assert left["gsm8k"] == 3 * 2 * 4
    assert left["ailuminate"] == 3 * 2 * len(TASKS["ailuminate"].load("demo")), "no more than all"


def test_finished_steps_are_done_and_tell_the_time_of_the_others(steps, tmp_path):
    folder = tmp_path / "runs" / "m"
    before = describe_work(steps(), "demo", folder)
    assert before.startswith("To do: ") and "told once a first run in" in before

    finished = {"finished": True, "seconds": 36.0}
    for name, content in {
        "stage-1/train": {"examples_per_second": 2.0},
        "gsm8k": {"questions": 10},
        "self-instruct": {"attempts": 72},
    }.items():
        write_json(folder / "row" / f"{name}.summary.json", finished | content)
    write_json(folder / "row" / "ailuminate.summary.json", {"finished": False, "seconds": 1.0})
    left = work_left(steps(), "demo")
    assert left["train"] == 40 and left["gsm8k"] == QUESTIONS and left["self-instruct"] == 0
    seconds = 40 * 0.5 + QUESTIONS * 3.6
    text = describe_work(steps(), "demo", folder)
    assert f": about {round(seconds / 60)} min at the speed of the runs in" in text
    assert text.endswith("judging not counted, without ailuminate")


def test_nothing_is_said_where_nothing_is_left(tmp_path):
    assert describe_work([], "demo", tmp_path) == ""


def test_data_that_are_not_there_stop_no_listing(steps, tmp_path, monkeypatch):
    monkeypatch.setenv("UNFORGET_DATA", str(tmp_path))
    official = [step for step in steps(limit=("7",)) if step.work and step.work.kind == "gsm8k"]
    assert describe_work(official, "official", tmp_path) == ""
