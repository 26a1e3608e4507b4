"""The steps of a recipe: what is called with what, above all over several rounds."""

import pytest

from data.registry import TASKS
from recipes.schema import load_recipe
from recipes.settings import ExperimentSettings
from recipes.steps import plan, trainings

OPTIONS = {
    "train": {"seed", "safe-lora"},
    "self-instruct": {"mode"},
    "own-answers": {"max-new-tokens"},
    **{task: {"shots", "samples"} for task in TASKS},
}
RECIPE = """\
title: row
self-instruct: {mode: sample, rounds: 2}
train: [{seed: 1}, {seed: 2}]
gsm8k:
"""


@pytest.fixture
def planned(tmp_path):
    def make(text=RECIPE, **changes):
        path = tmp_path / "row.yaml"
        path.write_text(text)
        settings = ExperimentSettings(data="demo", model="m", runs=tmp_path, **changes)
        recipe = load_recipe(path, OPTIONS)
        return [plan(training) for training in trainings(recipe, settings)]

    return make


def value(step, option):
    """The value behind an option of a step, None without it."""
    return step.argv[step.argv.index(option) + 1] if option in step.argv else None


def test_each_round_writes_data_with_the_model_of_the_last_and_trains_from_the_base(
    planned, tmp_path
):
    [steps] = planned()
    run = tmp_path / "m" / "row"
    first = run / "round-1"
    made = [step for step in steps if step.script in ("generate", "train")][:-1]
    assert [(step.name, value(step, "--run")) for step in made] == [
        ("self-instruct, round 1", str(first)),
        ("training, round 1, stage 1", str(first / "stage-1")),
        ("training, round 1", str(first)),
        ("self-instruct, round 2", str(run)),
        ("training, stage 1", str(run / "stage-1")),
        ("training", str(run)),
    ]
    writing = [made[0], made[3]]
    assert "--no-adapter" in writing[0].argv
    assert value(writing[1], "--adapter") == str(first / "adapter")
    data = [value(step, "--data") for step in made if step.script == "train"]
    assert (
        data
        == [str(first / "self-instruct.train.jsonl")] * 2
        + [str(run / "self-instruct.train.jsonl")] * 2
    )
    started_from = [value(step, "--init-adapter") for step in made if step.script == "train"]
    stages = [first / "stage-1" / "adapter", run / "stage-1" / "adapter"]
    assert started_from == [None, str(stages[0]), None, str(stages[1])], "from the base"
    assert not any("rounds" in word for step in steps for word in step.argv)


def test_no_round_trains_on_top_of_another(planned, tmp_path):
    [steps] = planned("title: row\nself-instruct: {rounds: 3}\ntrain: {seed: 1}\ngsm8k:\n")
    training = [step for step in steps if step.script == "train"]
    assert [step.name for step in training] == [
        "training, round 1",
        "training, round 2",
        "training",
    ]
    assert [value(step, "--init-adapter") for step in training] == [None] * 3


def test_repetitions_with_other_seeds_train_on_the_data_of_the_first(planned, tmp_path):
    [_, second] = planned(seeds=2)
    training = [step for step in second if step.script == "train"]
    assert not any(step.name.startswith("self-instruct") for step in second)
    own = tmp_path / "m" / "row" / "self-instruct.train.jsonl"
    assert {value(step, "--data") for step in training} == {str(own)}


def test_one_round_is_as_before(planned):
    [steps] = planned(RECIPE.replace(", rounds: 2", ""))
    names = [step.name for step in steps]
    assert names[:3] == ["self-instruct", "training, stage 1", "training"]


def test_safe_lora_takes_the_untuned_base_of_the_model_at_hand(planned):
    text = "title: row\ntrain: [{seed: 1}, {seed: 2, safe-lora: its/own}]\ngsm8k:\n"
    for untuned, last in ((None, "--safe-lora=its/own"), ("other/base", "other/base")):
        [steps] = planned(text, untuned=untuned)
        first, second = [step.argv for step in steps if step.script == "train"]
        assert not any(word.startswith("--safe-lora") for word in first)
        assert last in second
        assert untuned is None or second.index(last) > second.index("--safe-lora=its/own")


def test_votes_have_a_summary_of_their_own_and_no_divergence(planned, tmp_path):
    text = "title: row\nadapter: other\ngsm8k: {samples: 8}\n"
    [steps] = planned(text, limit=("10",))
    assert [step.name for step in steps] == ["gsm8k-samples"]
    assert steps[0].summary == tmp_path / "m" / "row" / "gsm8k-samples.summary.json"
    assert steps[0].work.passes == 8
    [steps] = planned(f"{text}ailuminate:\n")
    assert [step.script for step in steps] == ["generate", "generate", "judge", "divergence"]


def test_own_answers_are_written_once_and_mixed_into_every_stage(planned, tmp_path):
    text = RECIPE.replace("rounds: 2", "rounds: 1")
    text += "own-answers: {weight: 0.03, max-new-tokens: 9}\n"
    first, second = planned(text, seeds=2)
    run = tmp_path / "m" / "row"
    assert first[0].name == "own answers" and first[0].summary == run / "own-answers.summary.json"
    assert value(first[0], "--task") == "own-answers" and "--no-adapter" in first[0].argv
    assert "--max-new-tokens=9" in first[0].argv
    assert not any("weight" in word for word in first[0].argv)
    assert not any(step.name == "own answers" for step in second)
    mixture = [f"{run}/self-instruct.train.jsonl:0.97", f"{run}/own-answers.train.jsonl:0.03"]
    for steps in (first, second):
        for step in steps:
            if step.script == "train":
                place = step.argv.index("--data")
                assert step.argv[place + 1 : place + 3] == mixture
