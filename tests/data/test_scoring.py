import pytest

from data.gsm8k import GSM8K
from data.scoring import METHODS, extract_number

# (response, number by `homework`, by `strict`, by `flexible`)
TRICKY = [
    ("48+24 = <<48+24=72>>72 clips.\n#### 72", "72", "72", "72"),
    ("The answer is 72.", None, None, "72"),
    ("", None, None, None),
    ("####", None, None, None),
    ("#### ", None, None, None),
    ("#### none", None, None, None),
    ("#### inf", None, None, None),
    ("#### nan", None, None, None),
    ("####72", "72", None, "72"),
    ("####\n72", "72", None, "72"),
    ("##### 72", "72", "72", "72"),
    ("#### 72.", "72", "72", "72"),
    ("#### 72.0", "72", "72", "72"),
    ("#### 3.50", "3.5", "3.5", "3.5"),
    ("#### .5", "0.5", "0.5", "0.5"),
    ("#### 007", "7", "7", "7"),
    ("#### -5", "-5", "-5", "-5"),
    ("#### \u22125", "-5", None, "-5"),
    ("#### -0.00", "0", "0", "0"),
    ("#### -$5", "-5", None, "-5"),
    ("#### $-5", "-5", None, "-5"),
    ("#### $1,000.00", "1000", None, "1000"),
    ("#### \\$18", "18", None, "18"),
    ("#### €20", "20", None, "20"),
    ("#### 1,000,000", "1000000", "1000000", "1000000"),
    (
        "#### 1,2345",
        "1",
        "12345",
        "2345",
    ),  # no grouping, so two numbers; the official scorer drops every comma
    ("#### 3, 4", "3", "3", "4"),
    ("#### 12 apples", "12", "12", "12"),
    ("#### 12km", "12", "12", "12"),
    ("#### x = 12", "12", None, "12"),
    ("#### **12**", "12", None, "12"),
    ("#### 50%", "50", "50", "50"),
    ("#### 1/2", None, "1", None),
    ("#### 3 1/2", None, "3", None),
    ("#### 48 / 2 = 24", None, "48", "24"),
    ("#### 1e5", None, "1", None),
    ("#### 1E+5", None, "1", None),
    ("#### 1.2.3", "1.2", None, "3"),
    ("#### ,", None, None, None),
    ("#### ...", None, None, None),
    ("#### 5\nWait, that is wrong.\n#### 6", "6", "5", "6"),
    ("#### 5\n####", None, "5", "5"),
    ("#### 5 apples, in 3 days", "5", "5", "3"),
    ("So 48-24", None, None, "24"),
    ("f(2)-1", None, None, "1"),
    ("She has -3 left", None, None, "-3"),
    ("Only apples.72", None, None, "72"),
    ("Wait...5", None, None, "5"),
    ("It is open 24/7", None, None, None),
    ("on 24/12/2020", None, None, None),
    ("\u0663 apples", None, None, None),  # an Arabic-Indic digit
]


@pytest.mark.parametrize(("response", "homework", "strict", "flexible"), TRICKY)
def test_tricky_responses(response, homework, strict, flexible):
    found = {method: extract_number(response, method) for method in METHODS}
    assert found == {"homework": homework, "strict": strict, "flexible": flexible}


def test_equal_numbers_have_equal_spellings_however_long():
    digits = "123456789" * 10
    assert extract_number(f"#### {digits}.50", "homework") == f"{digits}.5"
    assert extract_number(f"#### {digits}1", "homework") != extract_number(
        f"#### {digits}2", "homework"
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "piece", ["9", "1,", ",000", "1,00", "1/2", "1 ", ".1", "-", "$", "#### ", "1 1/"]
)
def test_absurdly_long_responses_take_linear_time(method, piece):
    extract_number("#### " + piece * 200_000, method)  # quadratic time would be minutes


def test_an_unknown_method_is_refused():
    with pytest.raises(
        ValueError,
        match="unknown scoring method 'exact': expected one of homework, strict, flexible",
    ):
        extract_number("#### 1", "exact")


def test_scores():
    records = [
        {"response": "#### 72", "gold": "72", "finish_reason": "stop"},
        {"response": "#### $72.00", "gold": "72", "finish_reason": "stop"},
        {"response": "It is 72.", "gold": "72", "finish_reason": "stop"},
        {"response": "#### 71 and 71 and", "gold": "72", "finish_reason": "length"},
        {"response": "no number", "gold": "72", "finish_reason": "length"},
    ]
    answers = [record | GSM8K().score(record, record["response"]) for record in records]
    scores = GSM8K().summarise(answers)
    assert set(scores) == {"questions", "accuracy", "has_marker", "cut_off"}
    assert {method: rate["count"] for method, rate in scores["accuracy"].items()} == {
        "homework": 2,
        "strict": 1,
        "flexible": 3,
    }
    assert scores["has_marker"]["rate"] == 0.6
    assert (scores["cut_off"]["count"], scores["cut_off"]["total"]) == (2, 5)


def test_no_records_have_no_rate():
    scores = GSM8K().summarise([])
    assert scores["accuracy"]["homework"]["rate"] is None and scores["cut_off"]["total"] == 0
