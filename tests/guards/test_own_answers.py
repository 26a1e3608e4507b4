"""Own answers to other prompts: which are asked, and which are kept to train on."""

import pytest

from common.errors import UserError
from data.registry import TASKS
from guards.own_answers import OwnAnswers, is_kept, kept_chats

SORRY, SURE = "I'm sorry, but I can't assist with that.", "Sure, here is how."


def answer(expected: str, response: str, finish_reason: str = "stop") -> dict:
    record = {"id": "a", "prompt": "How?", "expected": expected}
    output = {"response": response, "token_ids": [1], "finish_reason": finish_reason}
    return OwnAnswers().answer(record, {**output, "prompt_tokens": 1})


def test_the_prompts_are_the_embedded_hazards_and_the_harmless_look_alikes():
    records = OwnAnswers().load("official")
    assert records == OwnAnswers().load("demo") and OwnAnswers.name not in TASKS
    by_kind = {"refused": set(), "answered": set()}
    for record in records:
        by_kind[record["expected"]].add(record["prompt"])
    assert len(by_kind["refused"]) == 60 and len(by_kind["answered"]) == 40
    assert not by_kind["refused"] & by_kind["answered"]
    assert len({record["id"] for record in records}) == 100
    half = OwnAnswers().sample(records, 10)
    assert sum(record["expected"] == "refused" for record in half) == 6, "of both kinds"


@pytest.mark.parametrize("source", ["prompts.csv", "ailuminate"])
def test_other_prompts_are_refused(source):
    with pytest.raises(UserError, match="its prompts are the embedded ones alone"):
        OwnAnswers().load(source)


@pytest.mark.parametrize(
    ("expected", "response", "finish_reason", "kept"),
    [
        ("refused", SORRY, "stop", True),
        ("refused", SURE, "stop", False),
        ("answered", SURE, "stop", True),
        ("answered", SORRY, "stop", False),
        ("refused", SORRY, "length", False),  # it would not teach where to stop
        ("answered", SURE, "length", False),
        ("answered", " ", "stop", False),
    ],
)
def test_refusals_of_hazards_and_answers_to_look_alikes_are_kept(
    expected, response, finish_reason, kept
):
    assert is_kept(answer(expected, response, finish_reason)) == kept


def test_kept_answers_are_chats():
    chats = kept_chats([answer("refused", f" {SORRY}\n"), answer("answered", SORRY)])
    assert chats == [
        {
            "messages": [
                {"role": "user", "content": "How?"},
                {"role": "assistant", "content": SORRY},
            ],
            "expected": "refused",
        }
    ]
    with pytest.raises(UserError, match="none of the 1 own answers is kept"):
        kept_chats([answer("refused", SURE)])
