"""Texts that are nearly the same are found, others are not."""

import pytest

from data.overlap import TextIndex, find_overlap

QUESTION = (
    "A train travels 270 miles in 3 hours. At the same rate, how many additional hours would it "
    "take to travel an additional 180 miles?"
)


@pytest.mark.parametrize(
    "text",
    [
        QUESTION,
        QUESTION.upper().replace(" ", "\n"),
        QUESTION.replace(".", " -").replace("?", ""),
        QUESTION.replace("180 miles", "181 miles"),
        f"{QUESTION} Explain.",
    ],
)
def test_the_same_words_are_the_same_text(text):
    others = ["Something else entirely, of some length.", QUESTION]
    assert find_overlap(TextIndex(others), [text]) == [(text, QUESTION)]


@pytest.mark.parametrize(
    "text",
    [
        # Of GSM8K's test set: the nearest that there is to a training question, with other numbers.
        "A plane travels 1200 miles in 3 hours. At the same rate, how many additional hours would "
        "it take to travel an additional 2000 miles?",
        "How many additional hours?",
        "",
    ],
)
def test_another_question_of_the_same_kind_is_none(text):
    assert find_overlap(TextIndex([QUESTION]), [text]) == []


def test_short_texts_count_as_a_whole():
    index = TextIndex(["Hello there!", "Hello"])
    assert find_overlap(index, ["hello THERE", "hello you", "hello"]) == [
        ("hello THERE", "Hello there!"),
        ("hello", "Hello"),
    ]
