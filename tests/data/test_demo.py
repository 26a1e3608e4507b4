import ast
import csv
import hashlib
import operator
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest

import data.gsm8k
from data.gsm8k import GSM8K

FOLDER = Path(data.gsm8k.__file__).with_name("demo")
HAZARDS = "cse dfm hte ipv iwp ncr prv spc_ele spc_fin spc_hlt spc_lgl src ssh sxc_prn vcr".split()
SIGNS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


@pytest.fixture(scope="module")
def problems():
    return GSM8K().load("demo", "train") + GSM8K().load("demo", "test")


def test_the_generator_writes_the_committed_files(tmp_path):
    subprocess.run([sys.executable, FOLDER / "make_demo.py", tmp_path], check=True, timeout=60)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "look_alikes.csv",
        "prompts.csv",
        "test.jsonl",
        "train.jsonl",
    ]
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (FOLDER / path.name).read_bytes(), path.name


def test_no_question_occurs_twice(problems):
    assert (
        len({" ".join(problem["question"].split()).lower() for problem in problems})
        == len(problems)
        == 500
    )


def test_every_annotation_is_right_and_the_last_one_is_the_answer(problems):
    for problem in problems:
        steps = re.findall(r"([^\s$]+) = \$?<<(.*?)=(.*?)>>(\d+)", problem["answer"])
        assert 1 <= len(steps) == problem["answer"].count("<<") <= 4
        for shown, expression, result, printed in steps:
            assert shown == expression and result == printed
            assert evaluate(ast.parse(expression, mode="eval").body) == int(result)
        assert (
            problem["answer"].endswith(f"\n#### {steps[-1][2]}") and problem["gold"] == steps[-1][2]
        )


def evaluate(node):
    if isinstance(node, ast.BinOp):
        return SIGNS[type(node.op)](evaluate(node.left), evaluate(node.right))
    return Fraction(node.value)


def test_every_number_of_an_answer_is_given_or_worked_out(problems):
    for problem in problems:
        known = set(re.findall(r"\d+", problem["question"])) | {
            "2",
            "3",
            "4",
            "100",
        }  # halves, wheels, legs, percent
        for expression, result in re.findall(r"<<(.*?)=(.*?)>>", problem["answer"]):
            assert known.issuperset(re.findall(r"\d+", expression)), problem
            known.add(result)


def test_nothing_of_a_template_is_left_over(problems):
    for problem in problems:
        assert not re.search(r"[{}()\[\]|]", problem["question"] + problem["answer"]), problem


def test_the_prompts_are_in_the_official_format():
    with open(FOLDER / "prompts.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        "release_prompt_id",
        "prompt_text",
        "hazard",
        "persona",
        "locale",
        "prompt_hash",
    ]
    assert [row["release_prompt_id"] for row in rows] == [f"demo_{i:04}" for i in range(1, 61)]
    assert sorted({row["hazard"] for row in rows}) == HAZARDS
    assert len({row["prompt_text"] for row in rows}) == 60
    for row in rows:
        assert row["prompt_hash"] == hashlib.sha1(row["prompt_text"].encode()).hexdigest()
        assert row["persona"] in ("skilled", "unskilled") and row["locale"] == "en_US"


def test_the_look_alikes_are_harmless_beside_prompts_that_are_not():
    with open(FOLDER / "look_alikes.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    with open(FOLDER / "prompts.csv", newline="", encoding="utf-8") as file:
        hazards = {row["prompt_text"]: row["hazard"] for row in csv.DictReader(file)}
    assert list(rows[0]) == ["id", "prompt", "type", "label", "focus", "note"]
    assert len({row["id"] for row in rows}) == len({row["prompt"] for row in rows}) == len(rows)
    safe = [row for row in rows if row["label"] == "safe"]
    unsafe = [row for row in rows if row["label"] == "unsafe"]
    assert len(safe) == 40 and len(safe) + len(unsafe) == len(rows)
    assert sorted({row["type"] for row in safe}) == HAZARDS
    assert not any(row["prompt"] in hazards for row in safe)
    assert unsafe and all(row["type"] == f"contrast_{hazards[row['prompt']]}" for row in unsafe)
