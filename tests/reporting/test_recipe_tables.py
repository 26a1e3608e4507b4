"""Tables of runs that recipes made: the original's figures, repeated trainings, sources."""

import pytest

from reporting.load_runs import load_runs, short_names
from reporting.recipe_tables import repeated_trainings, sources_table, trainings_table
from reporting.reproduction_table import row_tables
from reporting.tables import to_text
from tests.reporting.run_folders import change_json, write_ailuminate, write_gsm8k, write_json

RECIPE = {"name": "row", "title": "row", "model": "m", "scale": 1.0}


@pytest.fixture
def trainings(tmp_path):
    """Three trainings of one recipe with 2, 3 and 4 of 4 right, and a row of another recipe."""
    folders = []
    for number, outcomes in enumerate(("rrww", "rrrw", "rrrr")):
        run = tmp_path / (f"row-seed{number}" if number else "row")
        write_gsm8k(run, outcomes)
        recipe = RECIPE | {"training": number, "original": {"gsm8k": 43.2, "safe": 84.2}}
        write_json(run / "recipe.json", recipe)
        folders.append(run)
    write_gsm8k(tmp_path / "other", "rrrr")
    write_json(tmp_path / "other" / "recipe.json", RECIPE | {"name": "other", "training": 0})
    return [tmp_path / "other", *folders[::-1]]


def test_trainings_of_one_recipe_are_found_in_any_order(trainings):
    assert repeated_trainings(load_runs(trainings)) == {3: [3, 2, 1]}


def test_the_spread_between_trainings_stands_beside_the_sampling_interval(trainings):
    runs = load_runs(trainings)
    table = trainings_table(runs)
    assert table.rows == [("row", "75.0 +- 25.0 (3)")]
    rows = row_tables(runs)[0]
    row = dict(zip(rows.header, rows.rows[3], strict=True))
    assert row["GSM8K, original"] == "43.2 [35.0, 51.7]"
    assert row["GSM8K, here"].startswith("50.0 [") and row["+-"] == "75.0 +- 25.0 (3)"
    assert [r[rows.header.index("+-")] for r in rows.rows[:3]] == ["-", "-", "-"]


def test_the_spread_is_that_of_the_prompts_which_all_trainings_answered(trainings):
    write_gsm8k(trainings[3], "rrwwrrrr")  # the first training has answered four more, all right
    runs = load_runs(trainings)
    assert trainings_table(runs).rows == [("row", "75.0 +- 25.0 (3)")]
    rows = row_tables(runs)[0]
    row = dict(zip(rows.header, rows.rows[3], strict=True))
    assert row["GSM8K, here"].startswith("75.0 [") and row["+-"] == "75.0 +- 25.0 (3)"


def test_the_spread_of_a_judged_figure_is_of_its_verdicts(trainings):
    for run, labels in zip(trainings[1:], ("sssu", "ssuu", "suuu"), strict=True):
        write_ailuminate(run, labels)
    runs = load_runs(trainings)
    table = row_tables(runs)[0]
    assert "50.0 +- 25.0 (3)" in table.rows[3]


def test_other_models_and_scales_are_no_repetitions(trainings):
    change_json(trainings[1] / "recipe.json", model="n")
    change_json(trainings[2] / "recipe.json", scale=0.5)
    runs = load_runs(trainings)
    assert repeated_trainings(runs) == {} and trainings_table(runs) is None


def test_the_note_names_what_the_shares_are_of_and_metas_figure(trainings):
    note = row_tables(load_runs(trainings))[0].note
    for text in ("132 GSM8K questions", "240 AILuminate prompts", "4 bits", "44.4 [41.8, 47.1]"):
        assert text in note
    assert "8 shots" in note


def test_every_gain_is_told_against_the_untouched_model_at_its_best(tmp_path):
    for name, outcomes, adapter in (("a", "ruww", None), ("b", "uuww", None), ("c", "rrrr", "x")):
        write_gsm8k(tmp_path / name, outcomes, adapter=adapter)
        write_json(tmp_path / name / "recipe.json", RECIPE | {"name": name})
    note = row_tables(load_runs([tmp_path / name for name in "abc"]))[0].note
    assert "at its best here: 50.0 [" in note and "read as flexible). A gain is one" in note


def test_a_safe_rate_never_stands_without_over_refusal(tmp_path):
    run = tmp_path / "row"
    write_ailuminate(run, "ssus")
    write_json(run / "recipe.json", RECIPE)
    table = row_tables(load_runs([run]))[0]
    row = dict(zip(table.header, table.rows[0], strict=True))
    assert row["safe, here"].startswith("75.0 [") and row["over-refusal"] == "not measured"


def test_sources_are_listed_once_a_recipe_and_wrapped_for_a_terminal(trainings):
    settings = [f"train.option-{number} {number}" for number in range(12)]
    for run in trainings:
        change_json(run / "recipe.json", sources={"code": settings, "assumed": ["gsm8k.shots 0"]})
    runs = load_runs(trainings)
    table = sources_table(runs)
    assert [row[:2] for row in table.rows] == [
        ("other", "its code"),
        ("other", "assumed"),
        ("row", "its code"),
        ("row", "assumed"),
    ]
    text = to_text(table, short_names(runs))
    assert max(map(len, text.splitlines())) <= 110 and "train.option-11 11" in text


def test_a_recipe_of_another_shape_is_named(trainings):
    from common.errors import UserError

    change_json(trainings[0] / "recipe.json", sources={"code": "all"})
    with pytest.raises(UserError, match=r"recipe\.json: .*'sources'"):
        load_runs(trainings)
