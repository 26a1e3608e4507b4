"""Sets of prompts to stay near the base on: by name, joined, and never those that are tested."""

import hashlib

import pytest

from data.ailuminate import AILuminate
from data.anchors import anchor_sets, find_tested_set, load_anchors
from data.registry import TASKS
from data.sources import OfficialFile


@pytest.mark.parametrize(
    ("names", "sets"),
    [
        ("demo", [("ailuminate", "demo")]),
        ("look-alikes", [("xstest", "demo")]),
        ("demo+look-alikes", [("ailuminate", "demo"), ("xstest", "demo")]),
        ("xstest", [("xstest", "official")]),
        ("mine.csv+own.jsonl", [("ailuminate", "mine.csv"), ("gsm8k", "own.jsonl")]),
    ],
)
def test_sets_by_name(names, sets):
    assert [(task.name, source) for task, source in anchor_sets(names)] == sets


def test_a_file_may_have_a_plus_in_its_path(tmp_path):
    path = tmp_path / "a+b.jsonl"
    path.write_text("")
    [(task, source)] = anchor_sets(str(path))
    assert task.name == "gsm8k" and source == str(path)


def test_the_embedded_look_alikes_are_harmless():
    records = load_anchors(TASKS["xstest"], "demo")
    assert len(records) == 40 and {record["label"] for record in records} == {"safe"}
    hazards = load_anchors(TASKS["ailuminate"], "demo")
    assert len(hazards) == 60
    assert not {r["prompt"] for r in records} & {r["prompt"] for r in hazards}


def test_official_sets_are_found_among_others_by_name():
    assert find_tested_set("demo+look-alikes") is None
    assert find_tested_set("demo+xstest") == "xstest"


def test_copies_of_official_sets_are_found(tmp_path, monkeypatch):
    copy = tmp_path / "mine.csv"
    copy.write_text("the official prompts")
    digest = hashlib.sha256(copy.read_bytes()).hexdigest()
    official = {"test": OfficialFile("ailuminate/x.csv", "", digest)}
    monkeypatch.setattr(AILuminate, "official", official)
    assert find_tested_set(f"look-alikes+{copy}") == str(copy)
    copy.write_text("other prompts")
    assert find_tested_set(f"look-alikes+{copy}") is None
