"""Tuned runs against the untouched model at its best."""

from reporting.comparison import compare_runs
from reporting.load_runs import load_runs
from reporting.report_tables import all_tables
from reporting.yardstick import best_of_each_model, yardstick_table
from tests.reporting.run_folders import write_gsm8k


def write_runs(folder, **outcomes):
    """Runs by name: r right, w wrong, u right by the last number alone; tuned ones end in "t"."""
    paths = []
    for name, each in outcomes.items():
        write_gsm8k(folder / name, each, adapter="x" if name.endswith("t") else None)
        paths.append(folder / name)
    return load_runs(paths)


def test_the_kindest_run_and_reading_is_what_tuned_runs_are_paired_with(tmp_path):
    runs = write_runs(tmp_path, base="rwww", plain="uuww", bt="rwrr", ct="wwrr")
    (best,) = best_of_each_model(runs, "gsm8k")
    assert (best.run, best.reading, best.rate) == (1, "flexible", 0.5)
    table = yardstick_table(runs)
    assert table.rows[0][:5] == ("bt", "GSM8K", "4", "50.0", "75.0")
    assert [row[6:8] for row in table.rows] == [("1", "2"), ("2", "2")]
    assert table.rows[0][5].startswith("+25.0 [") and table.rows[1][5].startswith("+0.0 [")
    assert "GSM8K: 50.0 [" in table.note and "(plain, read as flexible)" in table.note
    assert table in all_tables(runs, compare_runs(runs))


def test_few_easy_questions_make_no_yardstick(tmp_path):
    runs = write_runs(tmp_path, base="rwww", few="u", plain="uuww", bt="rwrr", ct="r")
    assert [row[0:4] for row in yardstick_table(runs).rows] == [
        ("bt", "GSM8K", "4", "50.0"),  # and not `few`, which has 100 % of one
    ]
    assert best_of_each_model(runs, "gsm8k")[0].run == 2


def test_only_questions_that_both_answered_count(tmp_path):
    (row,) = yardstick_table(write_runs(tmp_path, base="ww", plain="uuuu", bt="rwrrww")).rows
    assert row[2:5] == ("4", "100.0", "75.0")


def test_there_is_no_second_table_of_what_the_paired_comparison_shows(tmp_path):
    assert yardstick_table(write_runs(tmp_path, base="rrww", plain="uwww", bt="rrrr")) is None
    assert yardstick_table(write_runs(tmp_path / "tuned", bt="rr")) is None


def test_each_model_has_a_yardstick_of_its_own(tmp_path):
    for name, outcomes, model in (("a", "uuuu", "m/A"), ("b", "uwww", "m/B")):
        write_gsm8k(tmp_path / name, outcomes, model=model)
        write_gsm8k(tmp_path / f"{name}t", "rrww", model=model, adapter="x")
    table = yardstick_table(load_runs([tmp_path / name for name in ("a", "at", "b", "bt")]))
    assert [(row[0], row[3], row[4]) for row in table.rows] == [
        ("at", "100.0", "50.0"),
        ("bt", "25.0", "50.0"),
    ]
    assert table.note.count("read as flexible") == 2
