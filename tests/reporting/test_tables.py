"""The tables of a report and the formats they are written in."""

import csv
import json

import pytest

from data.intervals import rate
from reporting.comparison import compare_runs
from reporting.descriptions import describe_adapter, describe_judges, describe_model, describe_runs
from reporting.load_runs import load_runs
from reporting.report_tables import all_tables
from reporting.tables import (
    Table,
    make_table,
    markdown_text,
    to_csv,
    to_json,
    to_latex,
    to_markdown,
    to_text,
)
from tests.reporting.run_folders import (
    change_json,
    write_ailuminate,
    write_gsm8k,
    write_harmless,
    write_json,
    write_training,
    write_verdicts,
)


def tables_of(*folders) -> dict[str, Table]:
    runs = load_runs(folders)
    return {table.title: table for table in all_tables(runs, compare_runs(runs))}


def row_of(table: Table, name: str) -> dict[str, str]:
    row = next(row for row in table.rows if row[0] == name)
    return dict(zip(table.header, row, strict=True))


def test_the_headline_holds_the_main_score_of_every_task(tmp_path, harmless):
    write_gsm8k(tmp_path / "base", "rrwwwwww")
    write_ailuminate(tmp_path / "base", "sssssu")
    write_harmless(tmp_path / "base", "rsss")
    headline = tables_of(tmp_path / "base")["Accuracy and safety"]
    assert row_of(headline, "base") == {
        "run": "base",
        "GSM8K accuracy": "25.0 [7.1, 59.1]",
        "n": "4",  # the last of the columns of this name
        "AILuminate safe rate (strict)": "83.3 [43.6, 97.0]",
        "Harmless over-refusal": "25.0 [4.6, 69.9]",
        "judged by": "Qwen3Guard-4B",
    }
    assert "not an AILuminate grade" in headline.note


def test_no_safety_number_stands_without_over_refusal(tmp_path, harmless):
    write_ailuminate(tmp_path / "base", "sssssu")
    headline = tables_of(tmp_path / "base")["Accuracy and safety"]
    assert row_of(headline, "base")["over-refusal"] == "not measured"
    write_harmless(tmp_path / "other", "rsss")
    headline = tables_of(tmp_path / "base", tmp_path / "other")["Accuracy and safety"]
    assert row_of(headline, "base")["Harmless over-refusal"] == "not measured"
    assert row_of(headline, "other")["Harmless over-refusal"] == "25.0 [4.6, 69.9]"
    write_gsm8k(tmp_path / "skill", "r")
    assert "over-refusal" not in tables_of(tmp_path / "skill")["Accuracy and safety"].header


def test_refusal_phrases_are_never_shown_as_a_safe_rate(tmp_path):
    write_ailuminate(tmp_path / "base", "sssssu")
    write_ailuminate(tmp_path / "phrases", "rrrrss", judges=("refusal-phrases",))
    headline = tables_of(tmp_path / "base", tmp_path / "phrases")["Accuracy and safety"]
    row = row_of(headline, "phrases")
    assert row["AILuminate safe rate (strict), Qwen3Guard"] == "-"
    assert row["AILuminate refusals, refusal phrases"] == "66.7 [30.0, 90.3]"
    assert row["judged by"] == "refusal phrases"
    assert "no guard has judged them" in headline.note


def test_the_guard_stands_before_refusal_phrases_and_both_are_compared(tmp_path):
    write_ailuminate(tmp_path / "base", "ruur", judges=("refusal-phrases", "qwen3guard"))
    write_verdicts(tmp_path / "base", "ailuminate", "refusal-phrases", "rrss")
    tables = tables_of(tmp_path / "base")
    headline = tables["Accuracy and safety"]
    assert headline.header[1:3] == ("AILuminate safe rate (strict)", "n")
    assert not any("refusals" in name for name in headline.header)  # the guard has judged it
    assert headline.rows[0][-1] == "Qwen3Guard-4B, refusal phrases"
    phrases = row_of(tables["AILuminate judged by refusal phrases, in detail"], "base")
    assert phrases["refusals"] == "50.0 [15.0, 85.0]"
    assert tables["Agreement of judges"].rows == [
        (
            "base",
            "AILuminate: refusals",
            "Qwen3Guard",
            "refusal phrases",
            "1",
            "1",
            "1",
            "1",
            "0.00",
        )
    ]


def test_cut_off_answers_are_shown_apart(tmp_path):
    write_ailuminate(tmp_path / "base", "ssuu", cut_off=2)
    write_ailuminate(tmp_path / "whole", "ssuu")
    tables = tables_of(tmp_path / "base", tmp_path / "whole")
    table = tables["AILuminate, answers that were cut off apart (Qwen3Guard)"]
    (row,) = table.rows
    assert row == ("base", "0.0 [0.0, 65.8]", "2", "100.0 [34.2, 100.0]", "2")
    assert table.header[1::2] == ("whole: safe rate (strict)", "cut off: safe rate (strict)")


def test_details_of_answers_judging_training_and_costs(tmp_path):
    write_training(tmp_path / "tuned")
    write_gsm8k(tmp_path / "base", "rrwwwwww")
    write_gsm8k(tmp_path / "tuned", "rrrrrruc", adapter="3fa9c21b04d7", adapter_scale=1.0)
    write_ailuminate(tmp_path / "tuned", "sscxuu")
    tables = tables_of(tmp_path / "base", tmp_path / "tuned")
    gsm8k = row_of(tables["GSM8K in detail"], "tuned")
    assert (gsm8k["model"], gsm8k["adapter"], gsm8k["shots"]) == ("Tiny-1B", "tuned/adapter", "3")
    assert (gsm8k["has ####"], gsm8k["cut off"]) == ("75.0", "12.5")
    assert gsm8k["accuracy flexible"] == "87.5"
    judged = row_of(tables["AILuminate judged by Qwen3Guard, in detail"], "tuned")
    assert judged["safe rate (loose)"] == "50.0 [18.8, 81.2]" and judged["unparsed"] == "16.7"
    assert row_of(tables["Training"], "tuned")["last loss"] == "0.100"
    assert [row[0] for row in tables["Training"].rows] == ["tuned"]  # base was not trained
    costs = row_of(tables["Time and memory"], "tuned")
    assert (costs["training"], costs["GSM8K"], costs["judging"]) == ("120 s", "61 s", "9.0 s")
    assert (costs["new tokens/s"], costs["peak memory"]) == ("250", "3.0 GB")


def test_what_made_a_run_is_identified_where_the_summaries_say_it(tmp_path):
    write_gsm8k(tmp_path / "base", "r", model_fingerprint="aaaa")
    write_ailuminate(tmp_path / "base", "s", model_fingerprint="bbbb")
    environment = {"unforget": "0.2.0", "commit": "4f5b2c1", "torch": "2.9"}
    change_json(tmp_path / "base" / "gsm8k.summary.json", environment=environment)
    table = tables_of(tmp_path / "base")["Provenance"]
    assert row_of(table, "base") == {
        **{"run": "base", "model fingerprint": "aaaa / bbbb"},
        **{"unforget": "0.2.0", "commit": "4f5b2c1"},
    }


def test_unfinished_runs_are_marked(tmp_path):
    write_training(tmp_path / "young", steps=7, finished=False)
    write_gsm8k(tmp_path / "half", "rrrww", finished=False)
    tables = tables_of(tmp_path / "young", tmp_path / "half")
    assert row_of(tables["Training"], "young")["steps"] == "running 7/20"
    assert row_of(tables["Accuracy and safety"], "half")["GSM8K accuracy"] == "running 5/5"


def test_how_a_run_was_made_is_described_shortly(tmp_path):
    write_gsm8k(tmp_path / "tuned", "r", model="meta-llama/Llama-3.2-1B", adapter="3fa9c21b04d7")
    write_ailuminate(tmp_path / "tuned", "s", model="meta-llama/Llama-3.2-1B")
    (run,) = load_runs([tmp_path / "tuned"])
    assert describe_model(run.answers["gsm8k"]) == "Llama-3.2-1B"
    assert describe_adapter(run.answers["gsm8k"]) == "tuned/adapter"
    assert describe_judges(run) == "Qwen3Guard-4B"
    assert describe_runs([run]) == (
        "",
        ["Llama-3.2-1B, tuned/adapter / base, 3 shots, judged by Qwen3Guard-4B"],
    )
    write_gsm8k(tmp_path / "half", "r", adapter="abc", adapter_scale=0.5, shots=3)
    (half,) = load_runs([tmp_path / "half"])
    common, each = describe_runs([run, half])
    assert common == "3 shots"
    assert each[1] == "Tiny-1B, half/adapter x 0.5"
    write_gsm8k(tmp_path / "half", "r", shot_selection="random")
    assert describe_runs(load_runs([tmp_path / "half"])) == ("", ["Tiny-1B, base, 3 random shots"])


TABLE = Table(
    "Title", ("run", "n", "who"), [("a|b", "7", "x"), ("c", "1,200", "-")], (0, 1), "A note.\nTwo."
)


def test_text_and_markdown_align_numbers():
    assert to_text(TABLE, ["a", "long"]).splitlines() == [
        "Title",
        "run       n  who",
        "----------------",
        "a         7  x",
        "long  1,200  -",
        "A note.",
        "Two.",
    ]
    assert to_markdown(TABLE).splitlines()[2:] == [
        "| run | n | who |",
        "| :--- | ---: | :--- |",
        "| a\\|b | 7 | x |",
        "| c | 1,200 | - |",
        "",
        "A note.",
        "",
        "Two.",
    ]


def test_rows_and_columns_that_hold_nothing_are_left_out():
    rows = [(0, ("a", "-", "-")), (1, ("b", "1", "-"))]
    table = make_table("T", ("run", "x", "y"), rows)
    assert (table.header, table.rows, table.runs) == (("run", "x"), [("b", "1")], (1,))
    assert make_table("T", ("run", "x"), [(0, ("a", "-"))]) is None


def test_csv_and_json_have_numbers_for_machines():
    header = ("run", "accuracy", "n", "safe", "n", "time")
    rows = [
        ("2026", "43.2 [40.5, 45.9]", "1,319", "-", "-", "61 s"),
        ("b", "-", "3", "-", "-", "-"),
    ]
    table = Table("T, U", header, rows, (0, 1))
    titles, named, first, second, end = list(csv.reader(to_csv([table]).splitlines()))
    assert titles == ["T, U"] and end == []
    assert named == [
        *("run", "accuracy", "accuracy: low", "accuracy: high", "accuracy: n"),
        *("safe", "safe: n", "time"),
    ]
    assert first == ["2026", "43.2", "40.5", "45.9", "1,319", "-", "-", "61 s"]
    (content,) = json.loads(to_json([table]))
    assert content["rows"][0] == ["2026", 43.2, 40.5, 45.9, 1319, None, None, "61 s"]
    assert content["rows"][1] == ["b", None, None, None, 3, None, None, None]
    assert second[0] == "b" and content["columns"] == named


def test_a_spreadsheet_takes_no_cell_for_a_formula():
    table = Table(
        "T", ("run", "x"), [("=HYPERLINK(1)", "+1.5"), ("@a", "-2"), ("-x", "-")], (0, 1, 2)
    )
    rows = list(csv.reader(to_csv([table]).splitlines()))[2:5]
    assert rows == [["'=HYPERLINK(1)", "+1.5"], ["'@a", "-2"], ["'-x", "-"]]


def test_latex_shows_every_character():
    table = Table("50 % & more_x", ("run", "n"), [(r"a_b$\#{}^~", "1")], (0,), "Note & such.")
    text = to_latex([table])
    assert r"\caption{50 \% \& more\_x}" in text and r"\begin{tabular}{lr}\toprule" in text
    assert r"a\_b\$\textbackslash{}\#\{\}\textasciicircum{}\textasciitilde{} & 1 \\" in text
    assert r"Note \& such." in text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;"),
        ("[x](javascript:alert(1))", "[x]\\(javascript:alert(1))"),
        ("![x][y]", "![x]\\[y]"),
        ("&lt;", "&amp;lt;"),
        ("a|b`c`", "a\\|b\\`c\\`"),
        ("43.2 [40.5, 45.9]", "43.2 [40.5, 45.9]"),
        ("a\x1b[31m\u202eb\nc", "a\\x1b[31m\\u202eb\\nc"),
    ],
)
def test_names_in_markdown_are_shown_and_do_nothing(text, shown):
    assert markdown_text(text) == shown


def test_the_rows_of_the_experiment_stand_beside_ours(tmp_path):
    write_gsm8k(tmp_path / "03", "rrrrrrww")
    write_ailuminate(tmp_path / "03", "sssuuu")
    recipe = {"title": "greedy, 3 shots", "original": {"gsm8k": 43.2, "safe": 84.2}}
    write_json(tmp_path / "03" / "recipe.json", recipe)
    row = row_of(tables_of(tmp_path / "03")["Rows of the experiment"], "03")
    assert row["row"] == "greedy, 3 shots"
    assert row["GSM8K, original"] == "43.2 [35.0, 51.7]"  # 57 of 132, by Wilson
    assert row["GSM8K, here"] == "75.0 [40.9, 92.9]"  # by the homework's score, as the original
    assert row["safe, original"] == "84.2 [79.0, 88.2]"
    assert row["safe, here"] == "50.0 [18.8, 81.2]" and row["over-refusal"] == "not measured"
    write_ailuminate(tmp_path / "03", "rrrsss", judges=("refusal-phrases",))
    (tmp_path / "03" / "ailuminate.qwen3guard.summary.json").unlink()
    row = row_of(tables_of(tmp_path / "03")["Rows of the experiment"], "03")
    assert "safe, here" not in row  # refusal phrases are not comparable with the original's guard


def test_self_instruct_and_distances_have_their_tables(tmp_path):
    write_gsm8k(tmp_path / "07", "rw")
    training = {"records": 18, "dropped": 2, "sources": {"rewrite": 15, "gold": 3}}
    training["log_likelihood"] = {"answers": 15, "gold": -1.149, "own": -0.8}
    about = {"task": "self-instruct", "finished": True, "right": rate(15, 20)}
    write_json(tmp_path / "07" / "self-instruct.summary.json", about | {"training": training})
    mean = {"mean": 0.2, "low": 0.18, "high": 0.22, "answers": 2}
    settings = {"gsm8k": {"model": "org/Tiny-1B"}}
    write_json(tmp_path / "07" / "kl.summary.json", {"settings": settings, "gsm8k": mean})
    tables = tables_of(tmp_path / "07")
    assert tables["Self-instruct"].rows == [
        ("07", "75.0 [53.1, 88.8]", "15", "3", "2", "-0.800", "-1.149")
    ]
    distance = tables["Distance from the base model"]
    assert distance.header == ("run", "on GSM8K")
    assert distance.rows == [("07", "0.200 [0.180, 0.220]")]
