# ruff: noqa: RUF001
"""Numbers are read as they are meant, and what is no whole number is none."""

import pytest

from common.errors import UserError
from data.gsm8k import GSM8K
from data.scoring import METHODS, extract_gold, extract_number

# (response, number by `number`, text by `strict`, number by `flexible`)
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
    ("#### 72.", "72", "72.", "72"),
    ("#### 72.0", "72", "72.0", "72"),
    ("#### 3.50", "3.5", "3.50", "3.5"),
    ("#### .5", "0.5", ".5", "0.5"),
    ("#### 007", "7", "007", "7"),
    ("#### -5", "-5", "-5", "-5"),
    ("#### +5", "5", None, "5"),
    ("#### -0.00", "0", "-0.00", "0"),
    ("#### -$5", "-5", None, "-5"),
    ("#### $-5", "-5", None, "-5"),
    ("#### $1,000.00", "1000", None, "1000"),
    ("#### \\$18", "18", None, "18"),
    ("#### €20", "20", None, "20"),
    ("#### 1,000,000", "1000000", "1000000", "1000000"),
    ("#### 1,2345", None, "12345", None),  # no grouping; the official scorer drops every comma
    ("#### 12,50", None, "1250", None),
    ("#### 1.500,00", None, "1.50000", None),
    ("#### 3, 4", "3", "3", "4"),
    ("#### 1, 500", None, "1", "500"),
    ("#### 12 apples", "12", "12", "12"),
    ("#### 12km", "12", "12", "12"),
    ("#### 12 kg", "12", "12", "12"),
    ("#### x = 12", "12", None, "12"),
    ("#### **12**", "12", None, "12"),
    ("#### (12)", "12", None, "12"),
    ("#### ~12", "12", None, "12"),
    ("#### 50%", "50", "50", "50"),
    ("#### 90^\\circ", "90", "90", "90"),
    ("#### ...", None, "...", None),
    ("#### ,", None, "", None),
    ("#### 5\nWait, that is wrong.\n#### 6", "6", "5", "6"),
    ("#### 5\n####", None, "5", "5"),
    ("#### 5 apples, in 3 days", "5", "5", "3"),
    ("#### 5\n3 of them are red", "5", "5", "3"),
    ("#### 5\n- 3 of them are red", "5", "5", "3"),
    ("She has -3 left", None, None, "-3"),
    ("Only apples.72", None, None, "72"),
    ("Wait...5", None, None, "5"),
    ("\u0663 apples", None, None, None),  # an Arabic-Indic digit
]
# Only a part of another number: neither the first number behind the marker nor the last one.
PARTS = [
    *("1/2", "3 1/2", "1e5", "1E+5", "1.2.3", "24/7", "24/12/2020", "7 : 2", "3:30", "7÷2"),
    *("\\frac{7}{2}", "\\dfrac{7}{2}", "\\frac72", "3\\frac{1}{2}", "$\\frac{7}{2}$", "7 \\over 2"),
    *("{7}/{2}", "(7)/(2)", "\\frac{\\text{7}}{2}", "7⁄2"),
    *("2^{10}", "2^10", "2**10", "2¹⁰", "10²", "2½", "2 ½", "½", "3 and 1/2", "5 and a half"),
    *("\\sqrt{16}", "√16", "2\\sqrt{3}", "\\sqrt[3]{27}", "2π", "2\\pi", "\\log 8", "2\\pi"),
    *("3*4", "3 × 4", "3 \\times 4", "3 \\cdot 4", "1.5 × 10^3", "48-24", "48 - 24", "48–24"),
    *("10+5", "3 to 5", "±5", "-(5)", "5k", "2 million", "3 thousand", "f(2)-1"),
]
NUMBERS = {
    "72": ["$72$", "\\(72\\)", "\\text{72}", "\\mathbf{72}", "\\boxed{72}", "72\\%", "72\\, clips"],
    "-5": ["–5", "—5", "−5", "‐5", "‑5", "‒5", "―5", "－5", "–$5", "\\boxed{-5}", "$–5"],
    "1500": [
        *("1,500", "1 500", "1\u00a0500", "1\u202f500", "1\u2009500", "1'500", "1’500", "1_500"),
        *("\\boxed{1{,}500}", "1\\,500", "1\\;500", "1\\ 500", "1~500", "1{\\,}500", "1,\\!500"),
        *("\\$1{,}500", "$1 500.00", "1\u200b500"),
    ],
    "1500000": ["1 500 000", "1{,}500{,}000", "1,500,000.0", "1\\,500\\,000"],
}


@pytest.mark.parametrize(("response", "number", "strict", "flexible"), TRICKY)
def test_tricky_responses(response, number, strict, flexible):
    methods = ("number", "strict", "flexible")
    found = {method: extract_number(response, method) for method in methods}
    assert found == {"number": number, "strict": strict, "flexible": flexible}


@pytest.mark.parametrize("text", PARTS)
def test_a_part_of_another_number_is_none(text):
    for framed in (text, f"{text} clips", f"x = {text}."):
        assert extract_number(f"#### {framed}", "number") is None
        assert extract_number(framed, "flexible") is None
    with pytest.raises(UserError, match="does not end in '#### number'"):
        extract_gold(f"#### {text}")


@pytest.mark.parametrize(("number", "text"), [(n, text) for n in NUMBERS for text in NUMBERS[n]])
def test_one_number_in_many_spellings(number, text):
    assert extract_number(f"#### {text}", "number") == number
    assert extract_number(f"So there are {text} of 3.\n#### {text} clips", "number") == number
    assert extract_number(f"12 in all, so {text}", "flexible") == number


@pytest.mark.parametrize(
    "text", ["72", "$72", "72%", "72.", "\\boxed{72}", "$72$", " 72.00 ", "**72**"]
)
def test_a_gold_number_stands_alone(text):
    assert extract_gold(f"So 5.\n#### {text}") == "72"


@pytest.mark.parametrize("text", ["72 clips", "x = 72", "72 or 73", "10 + 62 = 72", "", "1 5000"])
def test_a_gold_that_is_not_whole_is_refused(text):
    with pytest.raises(UserError, match="does not end in '#### number'"):
        extract_gold(f"So 5.\n#### {text}")


@pytest.mark.parametrize(
    ("response", "text"),
    [
        ("So 72.\n#### 72", "72"),
        ("#### $1,080 ", "1080"),
        ("#### 72%", "72"),
        ("#### 72g", "72"),
        ("#### 72 clips", "72 clips"),
        ("#### 72.", "72."),
        ("#### **72**", "**72**"),
        ("#### 10 + 5 = 15", "10 + 5 = 15"),
        ("#### 5\n#### 6", "6"),
        ("72", "72"),
        ("#### ", None),
    ],
)
def test_the_homework_compares_text(response, text):
    assert extract_number(response, "homework") == text


def test_equal_numbers_have_equal_spellings_however_long():
    digits = "123456789" * 10
    assert extract_number(f"#### {digits}.50", "number") == f"{digits}.5"
    assert extract_number(f"#### {digits}1", "number") != extract_number(
        f"#### {digits}2", "number"
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "piece",
    [
        *(
            "9",
            "1,",
            ",000",
            "1,00",
            "1/2",
            "1 ",
            ".1",
            "-",
            "$",
            "#### ",
            "1 1/",
            "1 000",
            "{",
            "{ ",
        ),
        *("\\frac{", "\\!", "{,", "<think>", "</think>", " ", "1 -", "\\sqrt[", "½", "^{"),
    ],
)
def test_absurdly_long_responses_take_linear_time(method, piece):
    extract_number("#### " + piece * 200_000, method)  # quadratic time would be minutes


def test_an_unknown_method_is_refused():
    with pytest.raises(
        ValueError,
        match="unknown scoring method 'exact': one of number, homework, strict, flexible",
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
        "number": 2,
        "homework": 1,
        "strict": 1,
        "flexible": 3,
    }
    assert scores["has_marker"]["rate"] == 0.6
    assert (scores["cut_off"]["count"], scores["cut_off"]["total"]) == (2, 5)


def test_no_records_have_no_rate():
    scores = GSM8K().summarise([])
    assert scores["accuracy"]["number"]["rate"] is None and scores["cut_off"]["total"] == 0
