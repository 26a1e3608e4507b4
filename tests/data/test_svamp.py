"""SVAMP's problems go through GSM8K's chat and scorer."""

import json
import os

import pytest

from common.errors import UserError
from data.gsm8k import GSM8K
from data.registry import TASKS
from data.svamp import SVAMP

PROBLEM = {"ID": "chal-9", "Body": "Ann has 3 apples.", "Question": "How many?", "Answer": 3.0}


def write(path, *problems):
    path.write_text(json.dumps(problems))
    return path


def test_a_problem_is_asked_and_scored_as_gsm8k_does(tmp_path):
    assert isinstance(TASKS["svamp"], SVAMP) and SVAMP.shots_from == "gsm8k"
    (record,) = SVAMP().load(write(tmp_path / "mine.json", PROBLEM))
    assert record == {"id": "chal-9", "question": "Ann has 3 apples. How many?", "gold": "3"}
    shots = GSM8K().load("demo", "train")[:2]
    assert SVAMP().messages(record, shots) == GSM8K().messages(record, shots)
    assert SVAMP().score(record, "#### 3.0")["correct"] is True


def test_a_problem_without_an_id_is_numbered(tmp_path):
    path = write(tmp_path / "mine.json", {**PROBLEM, "ID": None}, {**PROBLEM, "Answer": 0.5})
    assert [(r["id"], r["gold"]) for r in SVAMP().load(path)] == [
        ("mine-0", "3"),
        ("chal-9", "0.5"),
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Answer": "many"}, "'Answer' should be a number, found 'many'"),
        ({"Answer": None}, "'Answer' should be a number, found None"),
        ({"Answer": float("nan")}, "'Answer' should be a number, found nan"),
        ({"Body": 3}, "'Body' should be a string, found int"),
        ({"Question": " "}, "'Question' is empty"),
    ],
)
def test_a_bad_problem_is_named(tmp_path, change, message):
    path = write(tmp_path / "mine.json", PROBLEM, PROBLEM | change)
    with pytest.raises(UserError, match=rf"mine\.json, problem 2: {message}"):
        SVAMP().load(path)


def test_there_is_no_demo():
    with pytest.raises(UserError, match="the task svamp has no embedded demo data"):
        SVAMP().load("demo")


@pytest.mark.skipif(
    not os.environ.get("UNFORGET_DATA"), reason="UNFORGET_DATA does not name the official data"
)
def test_the_official_problems():
    records = SVAMP().load("official")
    assert len({record["id"] for record in records}) == len(records) == 1_000
    assert records[0]["question"].startswith("Each pack of dvds costs 76 dollars.")
    assert records[0]["question"].endswith(
        "each pack How much do you have to pay to buy each pack?"
    )
    assert records[0]["gold"] == "51" and all(record["gold"].isdigit() for record in records)
