"""train.py on chat data: loss on every assistant turn; long examples are left out and counted."""

import json

import pytest

import train
from data.records import read_json


def write_chats(path, count=6):
    lines = []
    for index in range(count):
        turns = [
            {"role": "user", "content": f"Question {index}?"},
            {"role": "assistant", "content": "Yes."},
            {"role": "user", "content": "Sure?"},
            {"role": "assistant", "content": "Yes " * (40 if index == 5 else 1)},
        ]
        lines.append(json.dumps({"messages": turns}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def train_on(chat_checkpoint, tmp_path):
    """Trains on a file of chats; returns the exit status and the run folder."""

    def train_on(*options: str):
        run = tmp_path / "run"
        chats = write_chats(tmp_path / "chats.jsonl")
        argv = ["--model", str(chat_checkpoint), "--run", str(run), "--data", str(chats)]
        argv += ["--steps", "2", "--batch-size", "2", "--validation", "1", "--device", "cpu"]
        return train.main([*argv, *options]), run

    return train_on


def test_chats_are_trained_on_in_every_assistant_turn(train_on, capsys):
    status, run = train_on()
    assert status == 0
    summary = read_json(run / "train.summary.json")
    assert summary["finished"] and summary["examples"] == 5 and len(summary["held_out"]) == 1
    printed = capsys.readouterr().out
    assert printed.count("----- trained on") == 2


def test_long_examples_are_left_out_and_counted(train_on, capsys):
    status, run = train_on("--max-length", "80", "--validation", "0")
    assert status == 0
    assert "1 of 6 examples left out" in capsys.readouterr().out
    assert read_json(run / "train.summary.json")["examples"] == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shots", "1"], "--shots 1 with the chats in"),
        (["--loss", "all"], "--loss answer"),
        (["--max-length", "3"], "--max-length 3 leaves nothing to train on: the shortest"),
    ],
)
def test_what_does_not_go_with_chats_is_one_line(options, message, train_on, capsys):
    status, run = train_on(*options)
    error = capsys.readouterr().err
    assert status == 2 and message in error and error.count("\n") == 1
    assert not (run / "train.summary.json").exists()
