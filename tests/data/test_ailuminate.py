import os
import random
from collections import Counter

import pytest

from data.ailuminate import AILuminate
from data.task import stratified_sample

GROUPS = ("hazard", "persona")


HEADER = "release_prompt_id,prompt_text,hazard,persona,locale,prompt_hash\n"


def write(path, text):
    path.write_text(text, encoding="utf-8", newline="")
    return path


def test_a_file_in_the_official_format(tmp_path):
    row = 'p1,"Is ""this"", in\ntwo lines, fine? ",prv,skilled,en_US,abc\n'
    assert AILuminate().load(write(tmp_path / "a.csv", "\ufeff" + HEADER + row)) == [
        {
            "id": "p1",
            "prompt": 'Is "this", in\ntwo lines, fine? ',
            "hazard": "prv",
            "persona": "skilled",
            "locale": "en_US",
        }
    ]


def test_only_the_prompt_is_required(tmp_path):
    records = AILuminate().load(write(tmp_path / "mine.csv", "prompt_text\nFine?\nOkay?\n"))
    assert records[1] == {
        "id": "mine-1",
        "prompt": "Okay?",
        "hazard": "unknown",
        "persona": "unknown",
        "locale": "unknown",
    }


def test_demo():
    records = AILuminate().load("demo")
    assert len(records) == 60
    assert set(Counter(record["hazard"] for record in records).values()) == {4}
    assert Counter(record["persona"] for record in records) == {"skilled": 30, "unskilled": 30}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"a\.csv: no column 'prompt_text'; the columns are none"),
        ("id,text\n1,hello\n", r"a\.csv: no column 'prompt_text'; the columns are id, text"),
        (HEADER, r"a\.csv: no records"),
        (
            HEADER + "p1,Fine?,prv,skilled,en_US,abc\np2,  ,prv,skilled,en_US,abc\n",
            r"line 3: 'prompt_text' is empty",
        ),
        (HEADER + "p1,Fine?,prv\n", r"line 2: the row does not have 6 columns"),
        (
            HEADER + "p1,Fine,or,not,prv,skilled,en_US,abc\n",
            r"line 2: the row does not have 6 columns",
        ),
        (HEADER + 'p1,"Fine?,prv\n', r"line 2: not valid CSV"),
        (
            HEADER + "p1,A?,prv,skilled,en_US,a\np1,B?,prv,skilled,en_US,b\n",
            r"line 3: the id 'p1' is also on line 2",
        ),
    ],
)
def test_bad_files(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        AILuminate().load(write(tmp_path / "a.csv", text))


def test_bytes_that_are_no_text_are_named(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(HEADER.encode() + b"p1,\xff\xfe?,prv,skilled,en_US,abc\n")
    with pytest.raises(ValueError, match=r"a\.csv: not UTF-8 text"):
        AILuminate().load(path)


def test_no_such_file():
    with pytest.raises(ValueError, match=r"nowhere\.csv: no such file; .*'demo'"):
        AILuminate().load("nowhere.csv")


def test_spread_keeps_the_proportions_and_the_order():
    kinds = [("a", "x")] * 60 + [("a", "y")] * 20 + [("b", "x")] * 40
    random.Random(0).shuffle(kinds)
    records = [
        {"id": i, "hazard": hazard, "persona": persona} for i, (hazard, persona) in enumerate(kinds)
    ]
    chosen = stratified_sample(records, GROUPS, 12)
    assert Counter((record["hazard"], record["persona"]) for record in chosen) == {
        ("a", "x"): 6,
        ("a", "y"): 2,
        ("b", "x"): 4,
    }
    ids = [record["id"] for record in chosen]
    assert ids == sorted(set(ids))
    assert stratified_sample(records, GROUPS, 12) == chosen


def test_spread_of_one_is_of_the_largest_kind():
    records = [{"hazard": hazard, "persona": "x"} for hazard in "abbbbbbc"]
    assert stratified_sample(records, GROUPS, 1) == [{"hazard": "b", "persona": "x"}]


@pytest.mark.parametrize("limit", [1, 2, 7, 59, 60])
def test_spread_takes_exactly_the_limit(limit):
    chosen = stratified_sample(AILuminate().load("demo"), GROUPS, limit)
    assert len({record["id"] for record in chosen}) == len(chosen) == limit


def test_spread_of_everything():
    records = AILuminate().load("demo")
    assert (
        stratified_sample(records, GROUPS, None)
        == stratified_sample(records, GROUPS, 60)
        == stratified_sample(records, GROUPS, 1000)
        == records
    )
    with pytest.raises(ValueError, match="limit is 0"):
        stratified_sample(records, GROUPS, 0)


@pytest.mark.skipif(
    not os.environ.get("UNFORGET_DATA"), reason="UNFORGET_DATA does not name the official data"
)
def test_the_official_prompts():
    records = AILuminate().load("ailuminate")
    assert len(records) == 1_200
    counts = Counter(record["hazard"] for record in stratified_sample(records, GROUPS, 240))
    specialised = [counts.pop(hazard) for hazard in ("spc_ele", "spc_fin", "spc_hlt", "spc_lgl")]
    assert sum(specialised) == 20
    assert len(counts) == 11 and set(counts.values()) == {20}
