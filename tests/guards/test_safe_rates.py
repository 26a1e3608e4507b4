"""Rates of verdicts, by group and by answers cut off, and the table of them."""

import json

from data.ailuminate import AILuminate
from data.intervals import rate
from guards.guard import Guard, Labels
from guards.qwen3guard import Qwen3Guard
from guards.refusal_phrases import RefusalPhrases
from guards.safe_rates import format_table, measures_of, summarise_verdicts

TASK, GUARD, PHRASES = AILuminate(), Qwen3Guard(), RefusalPhrases()


def verdict(
    safety,
    hazard="vcr",
    persona="normal",
    refusal="No",
    categories=(),
    finish_reason="stop",
    cut_off=False,
):
    return {
        "hazard": hazard,
        "persona": persona,
        "safety": safety,
        "refusal": refusal,
        "categories": list(categories),
        "finish_reason": finish_reason,
        "answer_cut_off": cut_off,
    }


VERDICTS = [
    verdict("Safe", refusal="Yes"),
    verdict("Safe", "prv", "skilled", cut_off=True),
    verdict("Controversial", "prv", categories=["PII"]),
    verdict("Unsafe", categories=["Violent", "PII"]),
    verdict(None, "prv", refusal=None, finish_reason="length", cut_off=True),
]


def test_summary_of_a_guard_that_says_everything():
    summary = summarise_verdicts(VERDICTS, TASK, GUARD)
    assert (summary["task"], summary["judge"]) == ("ailuminate", "qwen3guard")
    assert summary["answers"] == 5
    assert summary["safe_strict"] == rate(2, 5)
    assert summary["safe_loose"] == rate(3, 5)
    assert summary["refusals"] == summary["unparsed"] == summary["refusal_unparsed"] == rate(1, 5)
    assert summary["cut_off"] == rate(1, 5)
    assert summary["answers_cut_off"] == rate(2, 5)
    assert list(summary["categories"].items()) == [("PII", 2), ("Violent", 1)]
    assert summary["by_hazard"]["vcr"] == {
        "answers": 2,
        "safe_strict": rate(1, 2),
        "safe_loose": rate(1, 2),
        "refusals": rate(1, 2),
        "unparsed": rate(0, 2),
        "refusal_unparsed": rate(0, 2),
    }
    assert summary["by_hazard"]["prv"]["unparsed"] == rate(1, 3)
    assert summary["by_persona"]["skilled"]["safe_strict"] == rate(1, 1)
    assert summary["by_persona"]["normal"]["answers"] == 4
    assert "not an AILuminate grade" in summary["note"]
    json.dumps(summary, allow_nan=False)


def test_answers_that_were_cut_off_are_set_apart():
    whole, cut_off = summarise_verdicts(VERDICTS, TASK, GUARD)["by_answer"].values()
    assert (whole["answers"], cut_off["answers"]) == (3, 2)
    assert (whole["safe_strict"], cut_off["safe_strict"]) == (rate(1, 3), rate(1, 2))
    nothing_cut_off = summarise_verdicts(VERDICTS[:1], TASK, GUARD)["by_answer"]
    assert nothing_cut_off["cut off"]["safe_strict"] == rate(0, 0)


def test_a_guard_claims_only_what_it_says():
    verdicts = [verdict(None, refusal=label, finish_reason=None) for label in ("Yes", "No", "No")]
    summary = summarise_verdicts(verdicts, TASK, PHRASES)
    assert summary["refusals"] == rate(1, 3)
    assert "safe_strict" not in summary and "safe_loose" not in summary
    assert summary["unparsed"] is summary["cut_off"] is None
    assert summary["refusal_unparsed"] == rate(0, 3)
    assert set(summary["by_hazard"]["vcr"]) == {
        "answers",
        "refusals",
        "unparsed",
        "refusal_unparsed",
    }
    assert "bounds no rate" in summary["note"]
    assert [measure.path for measure in measures_of(TASK, PHRASES)] == [("refusals",)]


class HazardGuard(Guard):
    """Says safety alone, and has a category for one hazard."""

    name, title, default_model = "hazards", "Hazards", "somebody/hazards"
    labels = frozenset({"safety"})
    hazards = {"vcr": ("Violent", "Weapons")}

    def parse(self, text: str) -> Labels:
        raise NotImplementedError


def test_whether_the_hazard_of_the_prompt_was_named():
    verdicts = [*VERDICTS, verdict("Unsafe", categories=["PII"]), verdict("Unsafe", "prv")]
    summary = summarise_verdicts(verdicts, TASK, HazardGuard())
    assert summary["hazard_named"] == rate(1, 2), "of the two unsafe ones whose hazard is known"
    assert "hazard_named" not in summarise_verdicts(verdicts, TASK, GUARD)
    assert "note" not in summary and "refusals" not in summary


def test_table():
    summary = summarise_verdicts(VERDICTS, TASK, GUARD)
    title, head, *rows, counts, note = format_table(summary, TASK, GUARD).splitlines()
    assert title.startswith("AILuminate judged by Qwen3Guard")
    assert "not an AILuminate grade" in note
    assert len({len(row) for row in [head, *rows]}) == 1
    assert [row.split("  ")[0].strip() for row in rows] == [
        "all",
        "answer whole",
        "answer cut off",
        "hazard prv",
        "hazard vcr",
        "persona normal",
        "persona skilled",
    ]
    assert rows[0].split()[:3] == ["all", "5", "40.0%"]
    assert rows[0].split().count("60.0%") == 1
    assert "11.8%" in rows[0] and "76.9%" in rows[0], "Wilson interval of 2 in 5"
    assert rows[0].split()[-2:] == ["1", "1"], "unparsed"
    assert counts == "Categories: PII 2, Violent 1. Verdicts cut off: 1."


def test_table_of_refusal_phrases_is_labelled():
    verdicts = [verdict(None, refusal="Yes", finish_reason=None)]
    table = format_table(summarise_verdicts(verdicts, TASK, PHRASES), TASK, PHRASES)
    assert table.startswith("AILuminate judged by refusal phrases")
    assert "bounds no rate from either side" in table
    assert "strict" not in table and "unparsed" not in table and "cut off" not in table


def test_table_of_nothing():
    assert "-" in format_table(summarise_verdicts([], TASK, GUARD), TASK, GUARD)
