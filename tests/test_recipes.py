from pathlib import Path

import pytest

import experiment
from recipes.schema import load_recipe, parse_setting

OPTIONS = {
    "self-instruct": {"mode"},
    "train": {"rank", "epochs", "shots", "lr"},
    "gsm8k": {"shots", "max-new-tokens"},
    "ailuminate": {"max-new-tokens"},
    "judge": {"max-new-tokens"},
}
GOOD = """\
title: three shots
original: {gsm8k: 43.2, safe: 84}
self-instruct: {mode: rewrite}
train:
  - {rank: 8, epochs: 1}
  - {rank: 8, shots: 3}
gsm8k: {shots: 3}
ailuminate:
sweep: [0.5, 1]
"""


@pytest.fixture
def load(tmp_path):
    def load(text: str):
        path = tmp_path / "three-shots.yaml"
        path.write_text(text)
        return load_recipe(path, OPTIONS)

    return load


def test_a_recipe_says_everything(load):
    recipe = load(GOOD)
    assert (recipe.name, recipe.title) == ("three-shots", "three shots")
    assert recipe.original == {"gsm8k": 43.2, "safe": 84}
    assert recipe.train == [{"rank": 8, "epochs": 1}, {"rank": 8, "shots": 3}]
    assert (recipe.gsm8k, recipe.ailuminate, recipe.judge) == ({"shots": 3}, {}, {})
    assert (recipe.self_instruct, recipe.adapter, recipe.sweep) == (
        {"mode": "rewrite"},
        None,
        [0.5, 1.0],
    )
    assert recipe.raw["title"] == "three shots"


def test_one_stage_needs_no_list_and_others_work_is_named(load):
    recipe = load("title: t\ntrain: {rank: 4}\nself-instruct: other\ngsm8k: {}\nailuminate: {}\n")
    assert recipe.train == [{"rank": 4}] and recipe.self_instruct == "other"
    assert load("title: t\nadapter: other\ngsm8k: {}\nailuminate: {}\n").adapter == "other"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("title:", "titel:", "unknown key 'titel'; the nearest valid name is 'title'"),
        (
            "title: three shots\n",
            "",
            "the key 'title' is missing; a recipe has title, gsm8k, ailuminate",
        ),
        ("ailuminate:\n", "", "the key 'ailuminate' is missing"),
        (
            "rank: 8, shots",
            "rnk: 8, shots",
            "unknown option of train 'rnk'; the nearest valid name is 'rank'",
        ),
        (
            "gsm8k: {shots",
            "gsm8k: {shot",
            "unknown option of gsm8k 'shot'; the nearest valid name is 'shots'",
        ),
        (
            "safe: 84",
            "safety: 84",
            "unknown key of original 'safety'; the nearest valid name is 'safe'",
        ),
        ("safe: 84", "safe: high", "original: safe should be a number, found 'high'"),
        ("safe: 84", "safe: 184", "original: safe should be a percentage from 0 to 100, found 184"),
        (
            "safe: 84",
            "safe: .nan",
            "original: safe should be a percentage from 0 to 100, found nan",
        ),
        ("title: three shots", "title: 3", "title should be text, found 3"),
        ("gsm8k: {shots: 3}", "gsm8k: 3", "gsm8k should be keys and values, found 3"),
        ("[0.5, 1]", "0.5", "sweep should be a list, found 0.5"),
        ("[0.5, 1]", "[half]", "sweep should be a number, found 'half'"),
        ("{mode: rewrite}", "{mode: rewrite", "not valid YAML"),
        (GOOD, "- title", "the recipe should be keys and values"),
        ("title", "adapter: other\ntitle", "both 'train' and 'adapter'"),
        (GOOD, "title: t\ngsm8k: {}\nailuminate: {}\nsweep: [0.5]", "there is no 'train'"),
        (GOOD, "title: t\ngsm8k: {}\nailuminate: {}\ntrain: []", "train is an empty list"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_key(load, old, new, message):
    with pytest.raises(ValueError) as error:
        load(GOOD.replace(old, new, 1))
    assert message in str(error.value) and "three-shots.yaml: " in str(error.value)


def test_a_file_that_is_not_there():
    with pytest.raises(ValueError, match="nowhere: no such recipe"):
        load_recipe(Path("nowhere"), OPTIONS)


def test_our_own_recipes_are_valid_down_to_every_option(tmp_path):
    paths = sorted(Path("recipes").glob("*.yaml"))
    arguments = experiment.parse_arguments(
        [*map(str, paths), "--model", "m", "--runs", str(tmp_path)]
    )
    recipes = [load_recipe(path, experiment.option_names()) for path in paths]
    for recipe in recipes:
        experiment.check_steps(recipe, experiment.plan(recipe, tmp_path / "m", arguments))
        experiment.check_needs(
            recipe, {other.name for other in recipes if other.name < recipe.name}, tmp_path
        )
    rows = {(r.original.get("gsm8k"), r.original.get("safe")) for r in recipes if r.original}
    accuracies = [(28.0, None), (36.4, None), (40.9, None), (38.6, None), (37.9, None)]
    assert rows == {(8.3, 89.6), (43.2, 84.2), (46.2, 90.4), *accuracies}


def test_settings_overrule_every_stage_and_nothing_else(tmp_path):
    path = tmp_path / "row.yaml"
    path.write_text("title: row\ntrain: [{lr: 1}, {rank: 4}]\ngsm8k: {shots: 1}\nailuminate: {}\n")
    settings = [parse_setting("train.lr=0.5"), parse_setting("self-instruct.mode=sample")]
    recipe = load_recipe(path, OPTIONS, settings)
    assert recipe.train == [{"lr": 0.5}, {"rank": 4, "lr": 0.5}] == recipe.raw["train"]
    assert recipe.self_instruct is None and recipe.gsm8k == {"shots": 1}


@pytest.mark.parametrize("text", ["train.lr", "lr=1", "training.lr=1", "train.=1"])
def test_a_setting_that_names_no_option_is_refused(text):
    with pytest.raises(
        ValueError, match=r"expected SECTION\.OPTION=VALUE with a section of self-instruct, train"
    ):
        parse_setting(text)


def test_a_setting_with_an_unknown_option_names_the_nearest(tmp_path):
    path = tmp_path / "row.yaml"
    path.write_text("title: row\ngsm8k: {shots: 1}\nailuminate: {}\n")
    with pytest.raises(
        ValueError, match="unknown option of gsm8k 'shotz'; the nearest valid name is 'shots'"
    ):
        load_recipe(path, OPTIONS, [parse_setting("gsm8k.shotz=2")])
