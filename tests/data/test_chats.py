"""Chat data in the four formats gives the same conversations; what is no such record is refused."""

import json

import pytest

from common.errors import UserError
from data.chats import load_chats

USER, ANSWER = "What is 2 + 2?", "4"
TURNS = [{"role": "user", "content": USER}, {"role": "assistant", "content": ANSWER}]


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "record",
    [
        {"messages": TURNS, "source": "ignored"},
        {"conversations": [{"from": "human", "value": USER}, {"from": "gpt", "value": ANSWER}]},
        {"instruction": USER, "input": "", "output": ANSWER},
        {"prompt": USER, "completion": ANSWER},
        {"prompt": TURNS[:1], "completion": TURNS[1:]},
    ],
)
def test_every_format_is_the_same_conversation(record, tmp_path):
    chats = load_chats(write(tmp_path / "mine.jsonl", record, record))
    assert chats == [{"id": f"mine-{i}", "messages": TURNS} for i in range(2)]


def test_an_alpaca_input_follows_the_instruction(tmp_path):
    record = {"instruction": "Add.", "input": "2 and 2", "output": "4"}
    [chat] = load_chats(write(tmp_path / "a.jsonl", record))
    assert chat["messages"][0]["content"] == "Add.\n\n2 and 2"


def test_several_turns_and_a_system_turn(tmp_path):
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}] * 2
    [chat] = load_chats(
        write(tmp_path / "a.jsonl", {"conversations": turns, "system": "Be brief."})
    )
    roles = [message["role"] for message in chat["messages"]]
    assert roles == ["system", "user", "assistant", "user", "assistant"]


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (
            [{"messages": TURNS}, {"prompt": "a", "completion": "b"}],
            "line 2: .*'prompt'.*'messages'",
        ),
        (
            [{"question": "a", "answer": "b"}],
            r"line 1: none of 'messages'.*\['answer', 'question'\]",
        ),
        ([{"messages": TURNS, "prompt": "a"}], "both 'messages' and 'prompt'"),
        ([{"messages": []}], "'messages' should be a list of turns"),
        ([{"messages": ["hello"]}], "a turn is an object with 'role' and 'content'"),
        ([{"messages": TURNS[:1]}], "last turn is not the assistant's"),
        ([{"messages": TURNS[::-1]}], "turn 1 is of role 'assistant', expected 'user'"),
        ([{"messages": [*TURNS, *TURNS[1:]]}], "turn 3 is of role 'assistant'"),
        ([{"messages": [{"role": "system", "content": "x"}]}], "no answer to learn"),
        ([{"messages": [{"role": "user", "content": " "}, TURNS[1]]}], "'content' is empty"),
        ([{"messages": [{"role": "user", "content": ["x"]}]}], "should be text, found list"),
        ([{"messages": [{"role": "user"}]}], r"no 'content', only \['role'\]"),
        (
            [{"conversations": [{"from": "tool", "value": "x"}]}],
            "'from' is 'tool', expected one of",
        ),
        ([{"prompt": "a"}], "no 'completion'"),
        ([{"instruction": "a"}], "no 'output'"),
        ([], "no records in this file"),
    ],
)
def test_bad_records_are_one_line(records, message, tmp_path):
    with pytest.raises(UserError, match=message) as error:
        load_chats(write(tmp_path / "mine.jsonl", *records))
    assert "mine.jsonl" in str(error.value) and "\n" not in str(error.value)
