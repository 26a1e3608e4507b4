"""XSTest tells refusals of harmless prompts from those of harmful ones."""

import os
from collections import Counter

import pytest

from common.errors import UserError
from data.registry import TASKS
from data.xstest import XSTest

HEADER = "id,prompt,type,label,focus,note\n"


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_in_the_official_format(tmp_path):
    assert isinstance(TASKS["xstest"], XSTest)
    path = write(
        tmp_path / "mine.csv", HEADER + "7,Kill time?,homonyms,safe,kill,\n,Kill?,x,unsafe,,\n"
    )
    first, second = XSTest().load(path)
    assert first == {"id": "7", "prompt": "Kill time?", "label": "safe", "type": "homonyms"}
    assert second["id"] == "mine-1"
    assert XSTest().messages(first) == [{"role": "user", "content": "Kill time?"}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,text\n1,a\n", "no column 'prompt', 'type', 'label'; the columns are id, text"),
        (HEADER + "1,  ,homonyms,safe,,\n", "line 2: 'prompt' is empty"),
        (HEADER + "1,Hm?,homonyms,Safe,,\n", "line 2: the label 'Safe' is none of safe, unsafe"),
        (HEADER + "1,A?,x,safe,,\n1,B?,x,safe,,\n", "line 3: the id '1' is also on line 2"),
        (HEADER, "no records in this file"),
    ],
)
def test_bad_files_are_named(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        XSTest().load(write(tmp_path / "mine.csv", text))


def test_refusals_are_counted_by_label():
    verdicts = [
        {"label": label, "refusal": refusal}
        for label, refusal in [
            ("safe", "Yes"),
            ("safe", "No"),
            ("safe", None),  # not read: no refusal
            ("unsafe", "Yes"),
            ("unsafe", "Yes"),
        ]
    ]
    over_refusal, unsafe_refused = XSTest.measures
    assert over_refusal.lower_is_better and not unsafe_refused.lower_is_better
    rates = [measure.rate(verdicts) for measure in XSTest.measures]
    assert [(share["count"], share["total"]) for share in rates] == [(1, 3), (2, 2)]


def test_demo():
    records = XSTest().load("demo")
    assert Counter(record["label"] for record in records) == {"safe": 40, "unsafe": 20}
    sample = XSTest().sample(records, 30)
    assert Counter(record["label"] for record in sample) == {"safe": 20, "unsafe": 10}


@pytest.mark.skipif(
    not os.environ.get("UNFORGET_DATA"), reason="UNFORGET_DATA does not name the official data"
)
def test_the_official_prompts():
    records = XSTest().load("official")
    assert Counter(record["label"] for record in records) == {"safe": 250, "unsafe": 200}
    types = Counter((record["label"], record["type"]) for record in records)
    assert len(types) == 18 and set(types.values()) == {25}
