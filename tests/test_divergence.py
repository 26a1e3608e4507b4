"""divergence.py on runs of a tiny model."""

import shutil

import pytest

import divergence
import generate
import train
from data.examples import IGNORE_INDEX, Example
from data.gsm8k import GSM8K
from data.records import read_json, read_jsonl, write_json
from llama import load_model, load_tokenizer
from lora import load_adapter, set_lora_scale
from lora.kl import mean_divergences

OPTIONS = ["--data", "demo", "--limit", "5", "--max-new-tokens", "9"]


@pytest.fixture(scope="module")
def tuned(chat_checkpoint, tmp_path_factory):
    run = tmp_path_factory.mktemp("tuned")
    model = ["--model", str(chat_checkpoint), "--run", str(run)]
    training = [
        "--data",
        "demo",
        "--limit",
        "20",
        "--validation",
        "0",
        "--steps",
        "4",
        "--lr",
        "0.05",
    ]
    assert train.main([*model, *training]) == 0
    assert generate.main([*model, *OPTIONS, "--shots", "1"]) == 0
    return run


def test_the_divergence_is_along_the_runs_own_answers(tuned, chat_checkpoint, capsys, monkeypatch):
    loaded = []

    def count(*args, **named):
        loaded.append(args)
        return load_model(*args, **named)

    monkeypatch.setattr(divergence, "load_model", count)
    assert divergence.main(["--run", str(tuned), "--device", "cpu"]) == 0
    assert len(loaded) == 1  # and not once for each task
    records = {record["id"]: record for record in read_jsonl(tuned / "kl.jsonl")}
    summary = read_json(tuned / "kl.summary.json")
    model, tokenizer = load_model(chat_checkpoint), load_tokenizer(chat_checkpoint)
    load_adapter(model, tuned / "adapter")
    shots = GSM8K().load("demo", "train")[:1]
    values = []
    for answer in read_jsonl(tuned / "gsm8k.jsonl"):
        prompt = tokenizer.encode_chat(GSM8K().messages(answer, shots))
        ids = answer["token_ids"]
        values += mean_divergences(
            model, [Example(prompt + ids, [IGNORE_INDEX] * len(prompt) + ids)]
        )
        assert records[answer["id"]]["kl"] == pytest.approx(values[-1], rel=1e-4)
    assert (
        summary["gsm8k"]["mean"] == pytest.approx(sum(values) / 5, rel=1e-4) and values[0] > 0.001
    )
    assert summary["gsm8k"]["low"] <= summary["gsm8k"]["mean"] <= summary["gsm8k"]["high"]
    assert summary["ailuminate"]["answers"] == 5 and "ailuminate" in capsys.readouterr().out
    assert divergence.main(["--run", str(tuned), "--device", "cpu"]) == 0
    assert "measured already" in capsys.readouterr().out


def test_answers_of_the_base_have_not_moved(chat_checkpoint, tmp_path):
    generate.main(["--model", str(chat_checkpoint), "--run", str(tmp_path), *OPTIONS])
    assert divergence.main(["--run", str(tmp_path), "--limit", "3"]) == 0
    summary = read_json(tmp_path / "kl.summary.json")
    assert summary["gsm8k"] == {"mean": 0.0, "low": 0.0, "high": 0.0, "answers": 3}


def test_each_task_is_measured_with_the_adapter_that_answered_it(tuned, chat_checkpoint, tmp_path):
    run = shutil.copytree(tuned, tmp_path / "copy")
    halved = ["--adapter", str(run / "adapter"), "--adapter-scale", "0.5", "--no-resume"]
    again = ["--task", "ailuminate", "--model", str(chat_checkpoint), "--run", str(run)]
    assert generate.main([*again, *OPTIONS, *halved]) == 0
    assert divergence.main(["--run", str(run), "--device", "cpu"]) == 0
    summary = read_json(run / "kl.summary.json")
    (answer, *_) = read_jsonl(run / "ailuminate.jsonl")
    model, tokenizer = load_model(chat_checkpoint), load_tokenizer(chat_checkpoint)
    load_adapter(model, run / "adapter")
    set_lora_scale(model, 0.5)
    prompt = tokenizer.encode_chat([{"role": "user", "content": answer["prompt"]}])
    example = Example(
        prompt + answer["token_ids"], [IGNORE_INDEX] * len(prompt) + answer["token_ids"]
    )
    (expected,) = mean_divergences(model, [example])
    records = {record["id"]: record for record in read_jsonl(run / "kl.jsonl")}
    assert records[answer["id"]]["kl"] == pytest.approx(expected, rel=1e-4)
    assert summary["gsm8k"]["mean"] > 0 and summary["ailuminate"]["mean"] > 0


def test_what_cannot_be_measured_is_one_line(tuned, tmp_path, capsys):
    assert divergence.main(["--run", str(tmp_path)]) == 2
    assert "no answers in it" in capsys.readouterr().err
    copy = shutil.copytree(tuned, tmp_path / "copy")
    summary = (copy / "gsm8k.summary.json").read_text()
    (copy / "gsm8k.summary.json").write_text(
        summary.replace('"finished": true', '"finished": false')
    )
    assert divergence.main(["--run", str(copy)]) == 2
    assert "not finished; finish it with generate.py --task gsm8k" in capsys.readouterr().err
    other_shots = summary.replace(
        read_json(tuned / "gsm8k.summary.json")["settings"]["shots_sha256"], "0123456789ab"
    )
    (copy / "gsm8k.summary.json").write_text(other_shots)
    assert divergence.main(["--run", str(copy), "--limit", "2"]) == 2
    assert "answered with shots_sha256 = '0123456789ab', now it is" in capsys.readouterr().err
    for old, new, message in (
        ('"shots": 1', '"shots": "1"', "in 'settings': field 'shots' must be a whole number"),
        ('"shots": 1', '"shots": -1', "'shots': expected a whole number of at least 0, got -1"),
        ('"date": "', '"date": ["x"], "was": "', "field 'date' must be text, found ['x']"),
        ('"fixed"', '"nearest"', "must be one of fixed, random, similar, found 'nearest'"),
        ('"adapter_path": "', '"adapter_path": 3, "was": "', "field 'adapter_path' must be text"),
        ('"settings": {', '"settings": [], "were": {', "field 'settings' must be an object"),
    ):
        assert summary.count(old) == 1
        (copy / "gsm8k.summary.json").write_text(summary.replace(old, new))
        assert divergence.main(["--run", str(copy), "--limit", "2"]) == 2
        error = capsys.readouterr().err
        assert message in error and "gsm8k.summary.json" in error and error.count("\n") == 1
    (copy / "gsm8k.summary.json").write_text(summary)
    (copy / "ailuminate.jsonl").write_text("")
    assert divergence.main(["--run", str(copy)]) == 2
    assert "ailuminate.jsonl: no answers" in capsys.readouterr().err
    edited = summary.replace('"adapter_scale": 1.0', '"adapter_scale": [1]')
    (copy / "gsm8k.summary.json").write_text(edited)
    shutil.copy(tuned / "ailuminate.jsonl", copy)
    assert divergence.main(["--run", str(copy), "--limit", "2"]) == 2
    assert "field 'adapter_scale' must be a number, found [1]" in capsys.readouterr().err
    moved = summary.replace(str(tuned / "adapter"), str(tmp_path / "elsewhere"))
    (copy / "gsm8k.summary.json").write_text(moved)
    shutil.copy(tuned / "ailuminate.jsonl", copy)
    assert divergence.main(["--run", str(copy), "--limit", "2"]) == 2
    assert "which is not there as it was" in capsys.readouterr().err


def test_answers_given_by_other_settings_are_measured_again(
    tuned, chat_checkpoint, tmp_path, capsys
):
    run = shutil.copytree(tuned, tmp_path / "copy")
    (run / "kl.summary.json").unlink(missing_ok=True)
    measure = ["--run", str(run), "--limit", "3"]
    assert divergence.main([*measure, "--dry-run"]) == 0
    assert "gsm8k: 3 answers of" in capsys.readouterr().out
    assert not (run / "kl.summary.json").exists()
    assert divergence.main(measure) == 0
    before = read_json(run / "kl.summary.json")["gsm8k"]["mean"]
    again = ["--task", "gsm8k", "--no-resume", "--system", "Answer in rhymes."]
    assert (
        generate.main(["--model", str(chat_checkpoint), "--run", str(run), *OPTIONS, *again]) == 0
    )
    capsys.readouterr()
    assert divergence.main(measure) == 0
    assert "measured already" not in capsys.readouterr().out
    assert read_json(run / "kl.summary.json")["gsm8k"]["mean"] != before
    path = run / "gsm8k.summary.json"
    summary = read_json(path)
    summary["settings"]["batch_size"] = 5  # the answers do not depend on it
    write_json(path, summary)
    assert divergence.main(measure) == 0
    assert "measured already" in capsys.readouterr().out
    (run / "kl.summary.json").unlink()
    summary["settings"]["system"] = None
    write_json(path, summary)
    assert divergence.main(measure) == 2
    assert "was answered behind" in capsys.readouterr().err


def test_another_model_under_the_same_path_is_refused(tuned, tmp_path, capsys):
    run = shutil.copytree(tuned, tmp_path / "copy")
    path = run / "ailuminate.summary.json"
    summary = read_json(path)
    summary["settings"]["model_fingerprint"] = "0123456789ab"
    write_json(path, summary)
    assert divergence.main(["--run", str(run), "--limit", "2"]) == 2
    assert "answered with model_fingerprint = '0123456789ab'" in capsys.readouterr().err
