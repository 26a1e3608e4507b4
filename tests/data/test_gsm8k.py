import json
import os
from decimal import Decimal

import pytest

from data.gsm8k import GSM8K
from data.scoring import extract_number

GOOD = {"question": "1+1?", "answer": "1+1 = <<1+1=2>>2\n#### 2"}


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_a_file_gives_numbered_records(tmp_path):
    path = write(
        tmp_path / "mine.jsonl", GOOD, {"question": "?", "answer": "#### $1,080.00", "extra": 1}
    )
    expected = [
        {"id": "mine-0", **GOOD, "gold": "2"},
        {"id": "mine-1", "question": "?", "answer": "#### $1,080.00", "gold": "1080"},
    ]
    assert GSM8K().load(path, "train") == expected
    assert GSM8K().load(str(path), "test") == expected


@pytest.mark.parametrize(("split", "size"), [("train", 400), ("test", 100)])
def test_demo(split, size):
    records = GSM8K().load("demo", split)
    assert [record["id"] for record in records] == [f"demo-{split}-{i}" for i in range(size)]
    assert all(record["gold"] == record["answer"].split("#### ")[1] for record in records)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"answer": "#### 2"}, r"no 'question', only \['answer'\]"),
        ({"question": "?"}, r"no 'answer', only \['question'\]"),
        ({"question": " ", "answer": "#### 2"}, "'question' is empty"),
        ({"question": "?", "answer": ""}, "'answer' is empty"),
        ({"question": "?", "answer": 2}, "'answer' should be a string, found int"),
        ({"question": None, "answer": "#### 2"}, "'question' should be a string, found NoneType"),
        (
            {"question": "?", "answer": "It is 2."},
            "does not end in '#### number' but in 'It is 2.'",
        ),
        (
            {"question": "?", "answer": "#### many"},
            "does not end in '#### number' but in '#### many'",
        ),
    ],
)
def test_a_bad_record_is_named_by_file_and_line(tmp_path, record, message):
    path = write(tmp_path / "mine.jsonl", GOOD)
    path.write_text(path.read_text() + "\n" + json.dumps(record) + "\n")  # the blank line counts
    with pytest.raises(ValueError, match=rf"mine\.jsonl, line 3: .*{message}"):
        GSM8K().load(path, "train")


def test_broken_json_is_named_by_file_and_line(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps(GOOD) + '\n{"question": \n')
    with pytest.raises(ValueError, match=r"mine\.jsonl, line 2: not valid JSON"):
        GSM8K().load(path, "train")


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_file_is_refused(tmp_path, content):
    path = tmp_path / "mine.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"mine\.jsonl: no records"):
        GSM8K().load(path, "train")


def test_no_such_file_or_split(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere\.jsonl: no such file; .*'demo'"):
        GSM8K().load("nowhere.jsonl", "train")
    with pytest.raises(ValueError, match="no such file"):
        GSM8K().load(tmp_path, "train")
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        GSM8K().load("demo", "dev")


@pytest.mark.skipif(
    not os.environ.get("UNFORGET_DATA"), reason="UNFORGET_DATA does not name the official data"
)
def test_all_official_gold_answers_parse():
    records = GSM8K().load("gsm8k", "train") + GSM8K().load("gsm8k", "test")
    assert len(records) == 8_792
    for record in records:
        written = record["answer"].split("#### ")[-1].replace(",", "")
        assert Decimal(record["gold"]) == Decimal(written)
        for method in ("homework", "strict"):  # they compare text
            assert extract_number(record["answer"], method) == record["gold"]
