"""The adapter with the lowest validation loss stays after training and can be named: best, last."""

import builtins
import shutil
import signal

import pytest
import torch

import chat
import export
import generate
import train
from common.training_data import held_out_by
from data.records import read_json, read_jsonl, write_json
from llama import load_model
from lora import adapter_fingerprint, load_adapter
from reporting.cautions import find_cautions
from reporting.load_runs import load_runs

# Nine examples are learnt by heart: the validation loss falls and rises again.
TRAINING = ["--data", "demo", "--limit", "9", "--validation", "5", "--batch-size", "4"]
TRAINING += ["--steps", "40", "--checkpoint-every", "8", "--lr", "0.05", "--schedule", "constant"]
TRAINING += ["--warmup", "0", "--keep-checkpoints", "1", "--device", "cpu"]
ANSWERING = ["--data", "demo", "--task", "gsm8k", "--limit", "4", "--max-new-tokens", "8"]


@pytest.fixture(scope="module")
def trained(chat_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "tuned"
    assert train.main(["--model", str(chat_checkpoint), "--run", str(folder), *TRAINING]) == 0
    return folder


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "tuned")


@pytest.fixture
def answer(chat_checkpoint, run):
    def answer(*more: str) -> int:
        return generate.main(
            ["--model", str(chat_checkpoint), "--run", str(run), *ANSWERING, *more]
        )

    return answer


def test_it_is_not_the_last(trained):
    validations = {}
    for record in read_jsonl(trained / "train.jsonl"):
        if "validation_loss" in record:
            validations[record["step"]] = record["validation_loss"]
    summary = read_json(trained / "train.summary.json")
    assert summary["best_step"] == min(validations, key=validations.get) != 40
    assert summary["best_adapter_fingerprint"] == adapter_fingerprint(trained / "adapter-best")
    assert summary["adapter_fingerprint"] == adapter_fingerprint(trained / "adapter")


def test_it_is_the_adapter_of_a_training_that_ended_there(trained, chat_checkpoint, tmp_path):
    """Under a constant learning rate a shorter training takes the same steps."""
    steps = read_json(trained / "train.summary.json")["best_step"]
    argv = ["--model", str(chat_checkpoint), "--run", str(tmp_path / "short"), *TRAINING]
    assert train.main([*argv, "--steps", str(steps)]) == 0
    assert adapter_fingerprint(tmp_path / "short" / "adapter") == adapter_fingerprint(
        trained / "adapter-best"
    )


def test_generate_answers_with_the_one_that_is_named(run, answer, capsys):
    assert answer("--adapter", "best") == 0
    summary = read_json(run / "gsm8k.summary.json")
    assert summary["settings"]["adapter"] == adapter_fingerprint(run / "adapter-best")
    assert summary["adapter_path"] == str(run / "adapter-best")
    assert answer() == 2, "the last one's answers are others"
    assert "adapter" in capsys.readouterr().err
    assert answer("--adapter", str(run / "adapter-best")) == 0, "the same one by its folder"
    assert answer("--adapter", "last", "--no-resume") == 0
    summary = read_json(run / "gsm8k.summary.json")
    assert summary["settings"]["adapter"] == adapter_fingerprint(run / "adapter")


def test_the_report_knows_both_as_trained_here(run, answer):
    assert answer("--adapter", "best") == 0
    cautions = " ".join(find_cautions(load_runs([run])))
    assert "not with" not in cautions


def test_one_that_is_not_as_it_was_written_is_refused(run, answer, capsys):
    shutil.copy(run / "adapter" / "adapter_model.safetensors", run / "adapter-best")
    assert answer("--adapter", "best") == 2
    assert "its training wrote" in capsys.readouterr().err


def test_export_and_chat_take_it(run, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    assert export.main(["--run", str(run), "--adapter", "best", "--to", str(out)]) == 0
    base = load_model(read_json(run / "train.summary.json")["settings"]["model"])
    load_adapter(base, run / "adapter-best")
    ids = torch.tensor([[1, 2, 3]])
    with torch.inference_mode():
        expected = base.logits(base(ids))
        found = load_model(out)
        assert torch.allclose(found.logits(found(ids)), expected, atol=1e-4)
    capsys.readouterr()
    before = signal.getsignal(signal.SIGINT)

    def no_line(prompt: str = "") -> str:
        raise EOFError

    monkeypatch.setattr(builtins, "input", no_line)
    try:
        assert chat.main(["--run", str(run), "--adapter", "best", "--device", "cpu"]) == 0
    finally:
        signal.signal(signal.SIGINT, before)
    assert "adapter-best" in capsys.readouterr().out


def test_bad_requests_are_one_line(run, answer, tmp_path, capsys):
    summary = read_json(run / "train.summary.json")
    write_json(run / "train.summary.json", {**summary, "best_adapter_fingerprint": None})
    assert answer("--adapter", "best") == 2
    assert "has no best adapter" in capsys.readouterr().err
    write_json(run / "train.summary.json", {**summary, "finished": False})
    assert answer("--adapter", "last") == 2
    assert "not finished" in capsys.readouterr().err
    assert export.main(["--adapter", "best", "--to", str(tmp_path / "x")]) == 2
    assert "give --run" in capsys.readouterr().err


def test_what_it_held_out_is_held_out_again(run):
    assert held_out_by(run / "adapter-best") == held_out_by(run / "adapter") != set()


def test_starting_again_keeps_both(run, chat_checkpoint):
    argv = ["--model", str(chat_checkpoint), "--run", str(run), *TRAINING, "--no-resume"]
    before = adapter_fingerprint(run / "adapter-best")
    assert train.main([*argv, "--steps", "1"]) == 0
    assert adapter_fingerprint(run / "adapter-best.1") == before
