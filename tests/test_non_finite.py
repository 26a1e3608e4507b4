"""Logits that are not finite end every script with one line and 2; nothing is recorded."""

import builtins
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import chat
import export
import generate
import judge
import train
from data.records import read_jsonl

UP_PROJ = "model.layers.1.mlp.up_proj"
FIRST_LAYER = f"{UP_PROJ} is the first layer whose output is not finite"
ON_CPU = ["--device", "cpu"]


def change_weights(folder: Path, target: Path, change: Callable[[dict[str, torch.Tensor]], None]):
    """A copy of the checkpoint or adapter `folder` with other weights."""
    shutil.copytree(folder, target)
    [path] = target.glob("*.safetensors")
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    return target


def with_nan(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{UP_PROJ}.weight"][3, 2] = float("nan")


def enormous(tensors: dict[str, torch.Tensor]) -> None:
    """An adapter of finite values whose product is not."""
    for name in "AB":
        tensors[f"base_model.model.{UP_PROJ}.lora_{name}.weight"][:] = 1e30


def overflow_in_float16(tensors: dict[str, torch.Tensor]) -> None:
    """The same model in float32: what is between the two products of an MLP is larger."""
    tensors[f"{UP_PROJ}.weight"] *= 5e4
    tensors["model.layers.1.mlp.down_proj.weight"] /= 5e4


@pytest.fixture(scope="module")
def damaged(chat_checkpoint, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("damaged") / "model"
    return change_weights(chat_checkpoint, folder, with_nan)


@pytest.fixture(scope="module")
def trained(chat_checkpoint, tmp_path_factory) -> Path:
    """A run with a second adapter, whose product overflows, over a sound model."""
    run = tmp_path_factory.mktemp("runs") / "trained"
    argv = ["--model", str(chat_checkpoint), "--data", "demo", "--run", str(run), *ON_CPU]
    assert train.main([*argv, "--limit", "4", "--steps", "1", "--validation", "0"]) == 0
    change_weights(run / "adapter", run / "damaged", enormous)
    return run


def one_line(capsys, *words: str) -> None:
    error = capsys.readouterr().err
    [line] = [line for line in error.splitlines() if line.startswith("error: ")]
    for word in words:
        assert re.search(word, line), line


@pytest.mark.parametrize(
    "options",
    [
        ["--task", "gsm8k,ailuminate"],
        ["--task", "gsm8k", "--temperature", "1", "--shots", "2"],
        ["--task", "self-instruct"],
    ],
)
def test_answers_of_a_damaged_model_are_not_recorded(damaged, tmp_path, capsys, options):
    argv = ["--model", str(damaged), "--run", str(tmp_path), "--data", "demo", *options, *ON_CPU]
    assert generate.main([*argv, "--limit", "3", "--max-new-tokens", "8"]) == 2
    one_line(capsys, r"demo-\S+: the logits of new token 1 ", f"weights of {UP_PROJ} hold NaN")
    for path in tmp_path.glob("*.jsonl"):
        assert not read_jsonl(path)


def test_answers_with_a_damaged_adapter_are_not_recorded(
    chat_checkpoint, trained, tmp_path, capsys
):
    argv = ["--model", str(chat_checkpoint), "--run", str(tmp_path), "--data", "demo", *ON_CPU]
    argv += ["--task", "gsm8k", "--limit", "3", "--max-new-tokens", "8"]
    assert generate.main([*argv, "--adapter", str(trained / "damaged")]) == 2
    # generate.py merges the adapter into the weights
    one_line(capsys, "new token 1 ", f"weights of {UP_PROJ} hold NaN", "of the adapter")
    assert not read_jsonl(tmp_path / "gsm8k.jsonl")


@pytest.mark.parametrize("grammar", [[], ["--no-grammar"]])
def test_a_guard_that_overflows_gives_no_verdict(guard, tmp_path, capsys, grammar):
    """In float32 it is the same guard; in float16 the grammar would make Safe of every answer."""
    large = change_weights(guard, tmp_path / "guard", overflow_in_float16)
    run = tmp_path / "run"
    run.mkdir()
    answer = {"hazard": "vcr", "persona": "normal", "locale": "en_US", "prompt": "What about it?"}
    answer |= {"token_ids": [], "finish_reason": "stop", "prompt_tokens": 5}
    lines = []
    for name, response in (("q0", "Steal the lamp and lie."), ("q1", "Mock them with a cup.")):
        lines.append(json.dumps({"id": name, **answer, "response": response}) + "\n")
    (run / "ailuminate.jsonl").write_text("".join(lines))
    argv = ["--run", str(run), "--guard", str(large), *grammar, *ON_CPU]
    assert judge.main([*argv, "--dtype", "float16"]) == 2
    one_line(capsys, r"the answer to q[01]: .* token \d ", f"{UP_PROJ} .*overflow float16")
    verdicts = run / "ailuminate.qwen3guard.jsonl"
    assert not verdicts.exists() or not read_jsonl(verdicts)
    assert judge.main([*argv, "--dtype", "float32", "--no-resume"]) == 0
    labels = {verdict["id"]: verdict["safety"] for verdict in read_jsonl(verdicts)}
    assert labels == {"q0": "Unsafe", "q1": "Controversial"}


def test_a_chat_with_a_damaged_adapter_ends(trained, capsys, monkeypatch):
    monkeypatch.setattr(builtins, "input", lambda prompt="": "How many apples are left?")
    argv = ["--run", str(trained), "--adapter", str(trained / "damaged"), "--max-new-tokens", "4"]
    assert chat.main([*argv, *ON_CPU]) == 2
    one_line(capsys, "this question: .*new token 1 ", FIRST_LAYER)


def test_a_damaged_adapter_is_not_exported(trained, tmp_path, capsys):
    argv = ["--run", str(trained), "--adapter", str(trained / "damaged")]
    assert export.main([*argv, "--to", str(tmp_path / "out")]) == 2
    one_line(capsys, "prompt 1 of the check", FIRST_LAYER)
    assert not list(tmp_path.iterdir())
