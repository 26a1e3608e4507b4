"""train.py on several files by weight: what is taken is said, recorded and held out as usual."""

import json

import pytest

import train
from data.records import read_json
from tests.test_train_chats import write_chats


def write_questions(path, count):
    lines = []
    for index in range(count):
        line = {"question": f"What is {index} plus 1?", "answer": f"It is.\n#### {index + 1}"}
        lines.append(json.dumps(line))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def train_on(chat_checkpoint, tmp_path):
    """Trains on 20 questions and a file of 6 chats in a ratio of ten to one."""

    def train_on(*options: str, run: str = "run", limit: int = 20):
        questions = write_questions(tmp_path / "skill.jsonl", 20)
        chats = write_chats(tmp_path / "safety.jsonl")
        argv = ["--model", str(chat_checkpoint), "--run", str(tmp_path / run), "--device", "cpu"]
        argv += ["--steps", "2", "--batch-size", "4", "--validation", "2", "--limit", str(limit)]
        argv += ["--data", f"{questions}:1", f"{chats}:0.1", *options]
        return train.main(argv)

    return train_on


def test_what_was_taken_is_in_the_summary(train_on, tmp_path):
    assert train_on() == 0
    summary = read_json(tmp_path / "run" / "train.summary.json")
    skill, safety = tmp_path / "skill.jsonl", tmp_path / "safety.jsonl"
    assert summary["mixture"] == [
        {"data": str(skill), "weight": 1.0, "records": 20, "taken": 20},
        {"data": str(safety), "weight": 0.1, "records": 6, "taken": 2},
    ]
    assert summary["settings"]["data"] == f"{skill}:1 {safety}:0.1"
    assert summary["examples"] == 20 and len(summary["held_out"]) == 2


def test_the_limit_is_of_the_first_file(train_on, capsys):
    assert train_on("--dry-run", limit=10) == 0
    printed = capsys.readouterr().out
    assert "skill.jsonl: 10 records taken of 20, weight 1\n" in printed
    assert "safety.jsonl: 1 records taken of 6, weight 0.1\n" in printed
    assert "records               9 to train on, 2 held out" in printed


def test_shots_are_of_the_questions_alone(train_on, capsys):
    assert train_on("--shots", "2") == 0
    printed = capsys.readouterr().out
    assert "What is 1 plus 1?" in printed, "the first example has shots"


def test_the_seed_decides_what_is_drawn(train_on, tmp_path):
    hashes = []
    for number, seed in enumerate(("0", "0", "1")):
        assert train_on("--seed", seed, run=f"run{number}") == 0
        summary = read_json(tmp_path / f"run{number}" / "train.summary.json")
        hashes.append(summary["settings"]["training_examples_sha256"])
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_missing_file_is_one_line(chat_checkpoint, tmp_path, capsys):
    argv = ["--model", str(chat_checkpoint), "--run", str(tmp_path / "run")]
    assert train.main([*argv, "--data", "demo:0.9", "nowhere.jsonl:0.1"]) == 2
    error = capsys.readouterr().err
    assert "nowhere.jsonl: no such file" in error and error.count("\n") == 1


def test_the_loss_of_chats_is_of_answers(train_on, capsys):
    assert train_on("--loss", "all") == 2
    assert "--loss answer" in capsys.readouterr().err
