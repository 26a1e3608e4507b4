"""Recipes: what a file may say, and that our own say it."""

import string
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import experiment
from common.errors import UserError
from data.registry import TASKS
from recipes.schema import find_recipe, load_recipe, parse_setting

OPTIONS = {
    **{task: {"max-new-tokens"} for task in TASKS},
    "self-instruct": {"mode"},
    "own-answers": {"max-new-tokens"},
    "train": {"rank", "epochs", "shots", "lr"},
    "gsm8k": {"shots", "max-new-tokens", "shots-data"},
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
sweep: [0.5, 2]
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
    assert recipe.tasks == {"gsm8k": {"shots": 3}, "ailuminate": {}}
    assert list(recipe.tasks) == ["gsm8k", "ailuminate"] and recipe.judged == ["ailuminate"]
    assert recipe.judge == {}
    assert (recipe.self_instruct, recipe.adapter, recipe.sweep) == (
        {"mode": "rewrite"},
        None,
        [0.5, 2.0],
    )
    assert recipe.raw["title"] == "three shots"


def test_rounds_are_no_option_of_the_script(load):
    recipe = load(GOOD.replace("{mode: rewrite}", "{mode: sample, rounds: 2}"))
    assert recipe.rounds == 2 and recipe.self_instruct == {"mode": "sample"}
    assert recipe.raw["self-instruct"] == {"mode": "sample", "rounds": 2}
    assert load(GOOD).rounds == 1


def test_one_stage_needs_no_list_and_others_work_is_named(load):
    recipe = load("title: t\ntrain: {rank: 4}\nself-instruct: other\ngsm8k: {}\nailuminate: {}\n")
    assert recipe.train == [{"rank": 4}] and recipe.self_instruct == "other"
    assert load("title: t\nadapter: other\ngsm8k: {}\nailuminate: {}\n").adapter == "other"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("title:", "titel:", "unknown key 'titel'; the nearest valid name is 'title'"),
        ("title: three shots\n", "", "the key 'title' is missing"),
        ("gsm8k: {shots: 3}\nailuminate:\n", "", "no task in it; a recipe has one of gsm8k, "),
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
        ("[0.5, 2]", "0.5", "sweep should be a list, found 0.5"),
        ("[0.5, 2]", "[half]", "sweep should be a number, found 'half'"),
        ("{mode: rewrite}", "{mode: rewrite", "not valid YAML"),
        ("rank: 8, shots: 3", "rank: 8, shots:", "train: shots should be text, a number, true or"),
        ("rank: 8, shots: 3", "rank: {a: 8}", "train: rank should be text, a number, true or"),
        ("[0.5, 2]", "[0.5, 0.5]", "sweep holds each scale once, at least 0 and not 1"),
        ("[0.5, 2]", "[1]", "sweep holds each scale once, at least 0 and not 1"),
        ("[0.5, 2]", "[.inf]", "sweep holds each scale once"),
        ("{mode: rewrite}", "three-shots", "it borrows from itself"),
        ("{mode: rewrite}", "{rounds: 0}", "rounds should be a whole number from 1 to 9, found 0"),
        ("{mode: rewrite}", "{rounds: two}", "rounds should be a whole number from 1 to 9, found"),
        ("{mode: rewrite}", "{rounds: true}", "rounds should be a whole number from 1 to 9, found"),
        ("{mode: rewrite}", "{round: 2}", "the nearest valid name is 'rounds'"),
        (
            GOOD,
            "title: t\ngsm8k: {shots-data: self-instruct}\nself-instruct: {rounds: 2}\n",
            "rounds: 2 without 'train': the model that writes",
        ),
        ("title", "own-answers: {}\ntitle", "weight should be their share of the training data"),
        ("title", "own-answers: {weight: 0.6}\ntitle", "above 0 and at most 0.5, found 0.6"),
        ("title", "own-answers: {weigt: 0.1}\ntitle", "the nearest valid name is 'weight'"),
        (
            GOOD,
            "title: t\nown-answers: {weight: 0.1}\ngsm8k:\n",
            "'own-answers' makes training data, and there is no 'train'",
        ),
        ("{mode: rewrite}", "../other", "self-instruct: '../other' cannot be the name of a recipe"),
        ("title", "sources: {records: []}\ntitle", "unknown key of sources 'records'"),
        ("title", "sources: {record: [train.rnk]}\ntitle", "in sources: record 'train.rnk'; the n"),
        ("title", "sources: {record: [[a]]}\ntitle", "sources: record should be text, found ['a']"),
        (
            "title",
            "sources: {record: [train.rank], code: [train.rank]}\ntitle",
            "sources: train.rank has two sources",
        ),
        (GOOD, "title: t\ngsm8k:\nself-instruct: {}\n", "and there is no 'train'"),
        (GOOD, "title: t\ngsm8k: {shots-data: self-instruct}", "without a section 'self-instruct'"),
        (GOOD, "- title", "expected keys and values, found list"),
        ("title", "adapter: other\ntitle", "both 'train' and 'adapter'"),
        (GOOD, "title: t\ngsm8k: {}\nailuminate: {}\nsweep: [0.5]", "there is no 'train'"),
        (GOOD, "title: t\ngsm8k: {}\nailuminate: {}\ntrain: []", "train is an empty list"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_key(load, old, new, message):
    with pytest.raises(UserError) as error:
        load(GOOD.replace(old, new, 1))
    assert message in str(error.value) and "three-shots.yaml: " in str(error.value)


def test_the_sources_of_values_are_kept_with_their_remarks(load):
    sources = "sources: {record: [gsm8k.shots], assumed: {train.rank: as the default}}\n"
    assert load(GOOD + sources).sources == {
        "record": {"gsm8k.shots": ""},
        "assumed": {"train.rank": "as the default"},
    }


@pytest.mark.parametrize("name", ["report", ".hidden", "..yaml"])
def test_a_name_that_is_no_run_folder_of_its_own_is_refused(tmp_path, name):
    path = tmp_path / f"{name}.yaml"
    path.write_text(GOOD)
    with pytest.raises(UserError, match="cannot be the name of a recipe and of its run folder"):
        load_recipe(path, OPTIONS)


def test_our_own_recipes_are_found_by_name_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = find_recipe("07-self-instruct")
    assert found.is_file() and found == find_recipe("07-self-instruct.yaml")
    Path("07-self-instruct").write_text(GOOD)
    assert find_recipe("07-self-instruct") == Path("07-self-instruct"), "a path comes first"
    with pytest.raises(UserError, match="nowhere/07-self-instrct: no such recipe; the nearest of"):
        find_recipe("nowhere/07-self-instrct")


KEYS = st.sampled_from(
    ["title", "about", "original", "sources", "adapter", "sweep", "train", "gsm8k", "judge", "x"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(string.printable, max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=12,
)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(content=st.dictionaries(KEYS, VALUES, max_size=6), cut=st.integers(0, 200))
def test_any_other_file_is_read_or_refused_in_one_line(tmp_path_factory, content, cut):
    """Guards against tracebacks: structures that YAML can hold, and files cut in the middle."""
    path = tmp_path_factory.mktemp("fuzz") / "row.yaml"
    text = yaml.safe_dump(content)
    for part in (text, text[:cut]):
        path.write_text(part)
        try:
            load_recipe(path, OPTIONS)
        except UserError as error:
            assert str(path) in str(error)


def test_our_own_recipes_are_valid_down_to_every_option(tmp_path):
    paths = sorted(Path("recipes").glob("*.yaml"))
    chosen = experiment.parse_arguments([*map(str, paths), "--model", "m", "--runs", str(tmp_path)])
    recipes = experiment.load_recipes(chosen)
    experiment.plan_all(recipes, chosen)
    rows = {(r.original.get("gsm8k"), r.original.get("safe")) for r in recipes if r.original}
    accuracies = [(28.0, None), (36.4, None), (40.9, None), (38.6, None), (37.9, None)]
    assert rows == {(8.3, 89.6), (43.2, 84.2), (46.2, 90.4), *accuracies}


def test_settings_overrule_every_stage_and_nothing_else(tmp_path):
    path = tmp_path / "row.yaml"
    path.write_text("title: row\ntrain: [{lr: 1}, {rank: 4}]\ngsm8k: {shots: 1}\nailuminate: {}\n")
    settings = [parse_setting("train.lr=0.5"), parse_setting("self-instruct.mode=sample")]
    recipe = load_recipe(path, OPTIONS, settings)
    assert recipe.train == [{"lr": 0.5}, {"rank": 4, "lr": 0.5}] == recipe.raw["train"]
    assert recipe.self_instruct is None and recipe.tasks == {
        "gsm8k": {"shots": 1},
        "ailuminate": {},
    }


@pytest.mark.parametrize("text", ["train.lr", "lr=1", "training.lr=1", "train.=1"])
def test_a_setting_that_names_no_option_is_refused(text):
    with pytest.raises(
        UserError,
        match=r"expected SECTION\.OPTION=VALUE with a section of self-instruct, own-answers, tr",
    ):
        parse_setting(text)


def test_a_setting_with_an_unknown_option_names_the_nearest(tmp_path):
    path = tmp_path / "row.yaml"
    path.write_text("title: row\ngsm8k: {shots: 1}\nailuminate: {}\n")
    with pytest.raises(
        UserError, match="unknown option of gsm8k 'shotz'; the nearest valid name is 'shots'"
    ):
        load_recipe(path, OPTIONS, [parse_setting("gsm8k.shotz=2")])


def test_the_rows_of_the_original_say_where_every_value_comes_from():
    """Guards the reproduction: 01 to 08 name the record, the code or an assumption for each."""
    names = experiment.option_names()
    rows = [load_recipe(path, names) for path in sorted(Path("recipes").glob("0[1-8]-*.yaml"))]
    assert len(rows) == 8 and all(row.original for row in rows)
    for row in rows:
        sections = dict(row.tasks)
        if isinstance(row.self_instruct, dict):
            sections["self-instruct"] = row.self_instruct
        said = {f"{section}.{option}" for section, stage in sections.items() for option in stage}
        said |= {f"train.{option}" for stage in row.train for option in stage}
        named = {option for options in row.sources.values() for option in options}
        assert said == named, row.name
        assert all(row.sources.get("assumed", {}).values()), f"{row.name}: assumed for a reason"


def test_the_original_trained_as_its_code_says():
    """Guards the settings that the rows 02 to 07 share: one random shot, the loss on all tokens."""
    names = experiment.option_names()
    for path in sorted(Path("recipes").glob("0[2-7]-*.yaml")):
        recipe = load_recipe(path, names)
        for stage in recipe.train:
            assert (stage["shots"], stage["shot-selection"], stage["loss"]) == (1, "random", "all")
            assert (stage["schedule"], stage["warmup"], float(stage["lr"])) == ("linear", 0, 1e-4)
            assert (stage["batch-size"], stage["alpha"], stage["seed"]) == (4, 16, 1126)
            assert not stage["system-header"] and stage["epochs"] == 1
        assert len(recipe.train) == (1 if path.name[:2] in ("02", "07") else 2), "1 + 1 epochs"


def test_a_section_named_alone_gives_its_source_to_what_has_none(load):
    sources = "sources: {record: [train.shots], code: {train: the notebook}}\n"
    assert load(GOOD + sources).sources == {
        "record": {"train.shots": ""},
        "code": {"train.rank": "the notebook", "train.epochs": "the notebook"},
    }


def test_our_own_recipes_measure_what_they_claim_on_every_task():
    """Guards the study: no skill without its transfer, no safety without over-refusal."""
    names = experiment.option_names()
    for path in sorted(Path("recipes").glob("*.yaml")):
        recipe = load_recipe(path, names)
        assert recipe.tasks.get("gsm8k") == recipe.tasks.get("svamp"), path
        assert recipe.tasks.get("ailuminate") == recipe.tasks.get("xstest"), path
        skill_alone = path.name.startswith("yardstick-") or recipe.only_votes
        assert "ailuminate" in recipe.tasks or skill_alone, path
