"""train.py end to end on a tiny model: files, resumption, settings, bad input."""

import hashlib
import json
import math
import re
import shutil

import pytest
import tokenizers
import torch
from safetensors.torch import load_file, save_file

import train
from common import training_plan
from data.examples import question_key
from data.few_shot import FewShotSampler
from data.gsm8k import GSM8K
from data.records import read_json, read_jsonl, write_json
from data.sources import OfficialFile
from data.task import DEMO_FOLDER
from llama import load_model
from lora import adapter_fingerprint, load_adapter, lora_parameters
from lora.checkpoint import best_checkpoint, checkpoints
from lora.safe_lora import project_onto_alignment
from lora.trainer import Trainer

OPTIONS = [
    "--data",
    "demo",
    "--limit",
    "40",
    "--validation",
    "8",
    "--batch-size",
    "4",
    "--lr",
    "1e-2",
]


@pytest.fixture
def call(chat_checkpoint, tmp_path):
    def run(*more: str, folder: str = "run") -> int:
        return train.main(
            ["--model", str(chat_checkpoint), "--run", str(tmp_path / folder), *OPTIONS, *more]
        )

    return run


def losses(folder) -> list[float]:
    return [record["loss"] for record in read_jsonl(folder / "train.jsonl") if "loss" in record]


def test_a_run_leaves_an_adapter_a_log_and_a_summary(call, chat_checkpoint, tmp_path, capsys):
    assert call("--epochs", "2", "--checkpoint-every", "6") == 0
    run = tmp_path / "run"
    printed = capsys.readouterr().out
    assert "----- trained on (" in printed and "#### " in printed, (
        "one example with its mask is shown"
    )
    model = load_model(chat_checkpoint)
    load_adapter(model, run / "adapter")
    assert any(parameter.abs().max() > 0 for parameter in lora_parameters(model)[1::2])
    log = read_jsonl(run / "train.jsonl")
    summary = read_json(run / "train.summary.json")
    assert [record["step"] for record in log if "loss" in record] == list(range(1, 17))
    assert [record["step"] for record in log if "validation_loss" in record] == [6, 12, 16]
    assert summary["finished"] and summary["steps"] == 16 and summary["examples"] == 32
    assert summary["examples_seen"] == 64
    assert summary["examples_per_second"] == pytest.approx(64 / summary["seconds"], rel=1e-2)
    assert (summary["first_loss"], summary["last_loss"]) == (log[0]["loss"], losses(run)[-1])
    assert summary["last_loss"] < summary["first_loss"] - 0.3
    assert summary["last_validation_loss"] == log[-1]["validation_loss"]
    assert summary["settings"]["lr"] == 1e-2
    assert summary["peak_memory_bytes"] > 2**20


def test_finished_work_is_not_redone_and_other_settings_are_refused(call, tmp_path, capsys):
    assert call("--steps", "3") == 0
    before = (tmp_path / "run" / "train.jsonl").read_text()
    assert call("--steps", "3") == 0
    assert "finished already" in capsys.readouterr().out
    assert call("--steps", "3", "--rank", "4") == 2
    error = capsys.readouterr().err
    assert "train.summary.json was made with --rank = 8, now it is 4: " in error
    assert f"--run {tmp_path / 'run-2'}, or" in error
    assert (tmp_path / "run" / "train.jsonl").read_text() == before
    assert call("--steps", "2", "--rank", "4", "--no-resume") == 0
    assert len(losses(tmp_path / "run")) == 2
    assert (tmp_path / "run" / "train.jsonl.1").read_text() == before
    kept = json.loads((tmp_path / "run" / "adapter.1" / "adapter_config.json").read_text())
    assert kept["r"] == 8 and "adapter.1" in capsys.readouterr().out


def test_all_settings_are_recorded_and_what_changes_no_result_may_change(call, tmp_path, capsys):
    assert call("--steps", "2") == 0
    settings = read_json(tmp_path / "run" / "train.summary.json")["settings"]
    assert settings["steps"] == 2 and settings["validation"] == 8 and settings["clip"] == 1.0
    assert settings["target"] == ["all"] and settings["dtype"] == "float32"
    left_out = {"run", "resume", "dry_run", "epochs", "micro_batch_tokens", "embedder", "pooling"}
    assert not settings.keys() & left_out, "of one call, or without effect here"
    more = ["--keep-checkpoints", "3", "--checkpoint-every", "1", "--checkpoint-activations"]
    assert call("--steps", "2", "--micro-batch-tokens", "512", *more) == 0
    assert "finished already" in capsys.readouterr().out
    assert call("--steps", "2", "--lr", "1e-3", "--loss", "all", "--shots", "1") == 2
    error = capsys.readouterr().err
    assert all(f"--{name} = " in error for name in ("loss", "lr", "shots"))


def test_with_dropout_the_number_of_processes_belongs_to_the_result(call, tmp_path, capsys):
    """Each process draws the masks of its own share."""
    for dropout, status in (("0.1", 2), ("0", 0)):
        assert call("--steps", "1", "--dropout", dropout, folder=dropout) == 0
        path = tmp_path / dropout / "train.summary.json"
        settings = read_json(path)["settings"] | ({"processes": 2} if dropout != "0" else {})
        write_json(path, read_json(path) | {"finished": False, "settings": settings})
        assert call("--steps", "1", "--dropout", dropout, folder=dropout) == status
    assert "processes = 2, now it is 1" in capsys.readouterr().err


def test_with_dropout_the_passes_belong_to_the_result(call, capsys):
    assert call("--steps", "1", "--dropout", "0.1") == 0
    assert call("--steps", "1", "--dropout", "0.1", "--micro-batch-tokens", "512") == 2
    assert "--micro-batch-tokens = 1024, now it is 512" in capsys.readouterr().err


def test_a_summary_older_than_an_option_was_made_with_its_default(call, tmp_path, capsys):
    assert call("--steps", "2") == 0
    path = tmp_path / "run" / "train.summary.json"
    summary = read_json(path)
    del summary["settings"]["clip"], summary["settings"]["shots_data"]
    write_json(path, summary)
    assert call("--steps", "2") == 0
    assert call("--steps", "2", "--clip", "2") == 2
    assert "--clip = 1.0, now it is 2.0" in capsys.readouterr().err


def test_a_config_file_holds_the_options(chat_checkpoint, tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text(
        f"model: {chat_checkpoint}\ndata: demo\nlimit: 12\nsteps: 1\nrun: {tmp_path / 'run'}\n"
        "target: [q_proj, mlp]\nvalidation: 0\n"
    )
    assert train.main(["--config", str(path), "--limit", "10"]) == 0
    settings = read_json(tmp_path / "run" / "train.summary.json")["settings"]
    assert (settings["limit"], settings["target"]) == (10, ["q_proj", "mlp"])


def test_a_dry_run_times_nothing_that_the_machine_cannot_hold(call, monkeypatch, capsys):
    monkeypatch.setattr(training_plan, "total_memory", lambda device: 2**20)
    monkeypatch.setattr(training_plan, "seconds_per_step", lambda *a: pytest.fail("timed"))
    assert call("--dry-run") == 0
    assert "time                  not measured: cpu has 0.00 GiB" in capsys.readouterr().out


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(call, tmp_path, capsys):
    assert call("--dry-run", "--shots", "1") == 0
    printed = capsys.readouterr().out
    assert "32 to train on, 8 held out" in printed and "8, 4 examples each, 1 epochs" in printed
    assert re.search(r"peak memory +about \d+\.\d\d GiB of cpu \(", printed)
    assert re.search(r"time +about \d+\.\d min, \d+\.\d\d s a step", printed)
    assert not (tmp_path / "run").exists()
    assert call("--shots", "1") == 0
    summary = read_json(tmp_path / "run" / "train.summary.json")
    assert f"trainable parameters  {summary['trainable_parameters']:,}" in printed
    longest = re.search(r"longest example +(\d+) tokens", printed)
    assert 0 < int(longest.group(1)) < 2048
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    assert call("--dry-run", "--shots", "1", "--no-resume") == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before


def write_records(path, questions) -> str:
    records = [
        {"question": question, "answer": f"It is {i}. #### {i}"} for i, question in questions
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


class Seen:
    """The questions that examples were made of, by what was validated on."""

    def __init__(self, monkeypatch):
        self.data = []
        load = train.load_training_data
        monkeypatch.setattr(
            train, "load_training_data", lambda *a: self.data.append(load(*a)) or self.data[-1]
        )

    def held_out(self) -> set[str]:
        return self.data[-1].held_out

    def trained_on(self) -> set[str]:
        return set(self.data[-1].keys) - self.held_out()


def test_a_system_prompt_is_trained_under_and_recorded(call, tmp_path, capsys):
    assert call("--steps", "1", "--system", "Add slowly.") == 0
    assert "<|im_start|>system\nAdd slowly.<|im_end|>" in capsys.readouterr().out
    path = tmp_path / "run" / "train.summary.json"
    assert read_json(path)["settings"]["system"] == "Add slowly."
    assert call("--steps", "1") == 2
    assert "--system = 'Add slowly.', now it is None" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        call("--system", "safety", "--no-system-header")
    assert "would be cut off again" in capsys.readouterr().err


def test_a_second_stage_validates_on_what_the_first_held_out(call, tmp_path, monkeypatch):
    """With another seed and fewer records: it used to validate on what stage one trained on."""
    seen = Seen(monkeypatch)
    assert call("--steps", "1", folder="first") == 0
    held_out, trained_on = seen.held_out(), seen.trained_on()
    assert len(held_out) == 8 and len(trained_on) == 32
    adapter = ["--init-adapter", str(tmp_path / "first" / "adapter")]
    for more in (["--seed", "1"], ["--seed", "1", "--limit", "30"], ["--validation", "2"]):
        assert call("--steps", "1", *adapter, *more, folder=f"second {more}") == 0
        assert seen.held_out() and seen.held_out() <= held_out
        assert not seen.trained_on() & held_out
    third = ["--init-adapter", str(tmp_path / "second ['--validation', '2']" / "adapter")]
    assert call("--steps", "1", *third, folder="third") == 0
    assert seen.held_out() == held_out


def test_an_adapter_of_unknown_origin_may_have_seen_what_is_held_out(call, tmp_path, capsys):
    assert call("--steps", "1", folder="first") == 0
    (tmp_path / "first" / "train.summary.json").unlink()
    assert call("--steps", "1", "--init-adapter", str(tmp_path / "first" / "adapter")) == 0
    assert "does not say which questions its training held out" in capsys.readouterr().out


@pytest.mark.parametrize("selection", ["fixed", "random"])
def test_held_out_questions_are_no_shots(selection, call, tmp_path, monkeypatch):
    """With --loss all their answers would be trained on."""
    path = write_records(tmp_path / "data.jsonl", [(i, f"What is {i}?") for i in range(12)])
    seen, shown = Seen(monkeypatch), []
    select = FewShotSampler.select
    monkeypatch.setattr(
        FewShotSampler, "select", lambda self, r: shown.extend(select(self, r)) or select(self, r)
    )
    options = ["--steps", "1", "--shots", "3", "--shot-selection", selection, "--loss", "all"]
    assert call("--data", path, "--shots-data", path, "--validation", "4", *options) == 0
    shots = {question_key(record["question"]) for record in shown}
    assert shots and not shots & seen.held_out() and len(seen.held_out()) == 4


def test_shots_come_from_another_file(call, tmp_path, capsys):
    path = tmp_path / "shots.jsonl"
    path.write_text(json.dumps({"question": "A shot?", "answer": "Of its own. #### 2"}) + "\n")
    options = ["--steps", "1", "--shots", "1", "--shots-data", str(path)]
    assert call(*options) == 0
    assert "Q: A shot?" in capsys.readouterr().out
    assert call(*options, "--shots", "2") == 2


def test_an_interrupted_run_ends_like_an_uninterrupted_one(call, tmp_path, monkeypatch, capsys):
    options = ("--steps", "9", "--checkpoint-every", "3", "--dropout", "0.2")
    assert call(*options, folder="whole") == 0
    step = Trainer.step

    def interrupted(self, examples):
        if self.completed_steps == 5:
            raise KeyboardInterrupt
        return step(self, examples)

    monkeypatch.setattr(Trainer, "step", interrupted)
    assert call(*options) == 130
    monkeypatch.setattr(Trainer, "step", step)
    assert len(losses(tmp_path / "run")) == 5
    assert call(*options) == 0
    assert "going on from" in capsys.readouterr().out
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    adapters = [
        (tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes()
        for name in ("run", "whole")
    ]
    assert adapters[0] == adapters[1]


def test_the_last_checkpoints_and_the_best_stay(call, tmp_path, monkeypatch):
    wanted = iter([3.0, 1.0, 2.0, 4.0, 5.0])
    monkeypatch.setattr(Trainer, "validation_loss", lambda *_: next(wanted))
    assert call("--steps", "5", "--checkpoint-every", "1", "--keep-checkpoints", "2") == 0
    folder = tmp_path / "run" / "checkpoints"
    assert [int(path.name[-2:]) for path in checkpoints(folder)] == [2, 4, 5]
    assert best_checkpoint(folder).name == "step-00000002"


def test_training_over_a_quantised_base(call, tmp_path):
    assert call("--steps", "8", "--quantize", "int8") == 0
    assert call("--steps", "8", folder="plain") == 0
    small, plain = losses(tmp_path / "run"), losses(tmp_path / "plain")
    assert small != plain
    assert small == pytest.approx(plain, abs=0.05)
    assert read_json(tmp_path / "run" / "train.summary.json")["settings"]["quantize"] == "int8"


def test_fsdp_alone_is_refused(call, capsys):
    with pytest.raises(SystemExit) as exit_status:
        call("--fsdp")
    assert exit_status.value.code == 2
    assert "torchrun --nproc-per-node N -- train.py" in capsys.readouterr().err


def test_the_users_own_file_is_not_overwritten(call, tmp_path, capsys):
    path = tmp_path / "run" / "train.jsonl"
    path.parent.mkdir()
    path.write_text(json.dumps({"question": "1+1?", "answer": "#### 2"}) + "\n")
    before = path.read_text()
    for options in (["--data", str(path)], [], ["--no-resume"]):
        assert call(*options, "--steps", "1", "--validation", "0") == 2
        assert f"choose another, --run {path.parent}-2" in capsys.readouterr().err
    assert path.read_text() == before


def test_a_lost_adapter_is_made_again_from_the_last_checkpoint(call, tmp_path):
    assert call("--steps", "3") == 0
    adapter = tmp_path / "run" / "adapter" / "adapter_model.safetensors"
    before, log = adapter.read_bytes(), (tmp_path / "run" / "train.jsonl").read_bytes()
    adapter.unlink()
    assert call("--steps", "3") == 0
    assert (adapter.read_bytes(), (tmp_path / "run" / "train.jsonl").read_bytes()) == (before, log)


def test_a_damaged_adapter_is_made_again(call, tmp_path, capsys):
    assert call("--steps", "3") == 0
    adapter = tmp_path / "run" / "adapter" / "adapter_model.safetensors"
    before = adapter.read_bytes()
    adapter.write_bytes(before[:-4] + b"\0\0\0\1")
    assert call("--steps", "3") == 0
    printed = capsys.readouterr().out
    assert "is not the adapter that this training saved" in printed and "going on from" in printed
    assert adapter.read_bytes() == before


def test_small_data_hold_out_a_tenth(call, tmp_path):
    assert train.main(["--model", "nowhere", "--run", str(tmp_path / "x")]) == 2
    assert call("--steps", "1", "--limit", "20", "--validation", "2") == 0
    assert read_json(tmp_path / "run" / "train.summary.json")["examples"] == 18


def test_diverged_training_is_an_error(call, capsys):
    assert call("--steps", "3", "--lr", "1e15", "--warmup", "0", "--dtype", "float16") == 2
    assert "lower --lr" in capsys.readouterr().err


def test_weights_that_are_not_finite_are_named(call, chat_checkpoint, tmp_path, capsys):
    """No learning rate helps against them."""
    folder = tmp_path / "damaged"
    shutil.copytree(chat_checkpoint, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = math.nan
    save_file(tensors, folder / "model.safetensors")
    assert call("--steps", "2", "--model", str(folder)) == 2
    error = capsys.readouterr().err
    assert "model.layers.1.mlp.up_proj is the first layer whose output is not finite" in error
    assert "lower --lr" not in error and not (tmp_path / "run" / "adapter").exists()


def test_a_token_outside_the_embedding_is_refused(call, chat_checkpoint, tmp_path, capsys):
    """An end token that was added to the tokenizer alone: it stands at the end of examples only."""
    folder = tmp_path / "added"
    shutil.copytree(chat_checkpoint, folder)
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens([tokenizers.AddedToken("</s>", special=True, normalized=False)])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    template = "{%- for m in messages %}{% if m.role == 'user' %}{{ m.content }} [A]{% else %}"
    template += " {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    assert call("--steps", "1", "--model", str(folder)) == 2
    assert "outside" in capsys.readouterr().err


def test_loss_all_supervises_everything(call, tmp_path):
    assert call("--steps", "1", "--loss", "all", folder="all") == 0
    assert call("--steps", "1", folder="answer") == 0
    every, answer = (read_jsonl(tmp_path / name / "train.jsonl")[0] for name in ("all", "answer"))
    assert every["supervised_tokens"] > 1.5 * answer["supervised_tokens"]
    assert every["supervised_tokens"] >= every["tokens"] - every["examples"]


@pytest.mark.slow
def test_a_weight_on_the_divergence_keeps_the_model_near_its_base(call, tmp_path):
    logs = {}
    for weight in ("0", "20"):
        options = [
            "--steps",
            "8",
            "--checkpoint-every",
            "4",
            "--kl-weight",
            weight,
            "--kl-prompts",
            "demo",
        ]
        assert call(*options, folder=weight) == 0
        logs[weight] = read_jsonl(tmp_path / weight / "train.jsonl")
    measured = {weight: [r for r in log if "kl_prompts" in r] for weight, log in logs.items()}
    assert [record["step"] for record in measured["0"]] == [4, 8]
    assert measured["20"][-1]["kl_prompts"] < 0.3 * measured["0"][-1]["kl_prompts"]
    assert 0 < measured["20"][-1]["kl_validation"] < measured["0"][-1]["kl_validation"]
    assert logs["20"][0]["kl"] == 0, "a fresh adapter is the base" and all(
        "kl" not in r for r in logs["0"]
    )
    assert logs["20"][0]["loss"] == logs["0"][0]["loss"], (
        "the loss is logged without the divergence"
    )
    summary = read_json(tmp_path / "20" / "train.summary.json")
    assert (
        summary["kl_prompts"] == measured["20"][-1]["kl_prompts"]
        and summary["settings"]["kl_weight"] == 20.0
    )


@pytest.mark.slow
def test_harmless_prompts_can_be_held_to_as_well(call, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("common.training_data.MAX_ANCHORS", 4)  # of each set
    first = ("--kl-first-tokens", "5", "--kl-first-weight", "10")
    both = ("--steps", "2", "--kl-weight", "1", "--kl-prompts", "demo+look-alikes")
    assert call(*both, folder="even") == 0 and call(*both, *first, folder="first") == 0
    assert "8 prompts of demo+look-alikes" in capsys.readouterr().out
    summaries = [read_json(tmp_path / name / "train.summary.json") for name in ("even", "first")]
    assert "kl_first_tokens" not in summaries[0]["settings"], "as before these options were"
    assert summaries[1]["settings"]["kl_first_weight"] == 10
    assert summaries[0]["kl_prompts"] != summaries[1]["kl_prompts"]


@pytest.mark.slow
def test_the_average_is_saved_and_an_interruption_changes_nothing(call, tmp_path, monkeypatch):
    options = ("--steps", "6", "--checkpoint-every", "2", "--ema", "0.6")
    assert call(*options, folder="whole") == 0
    assert call(*options[:-2], folder="plain") == 0
    real, steps = Trainer.step, []

    def stop_at_five(self, examples):
        steps.append(1)
        if len(steps) == 5:
            raise KeyboardInterrupt
        return real(self, examples)

    monkeypatch.setattr(Trainer, "step", stop_at_five)
    assert call(*options, folder="again") == 130
    monkeypatch.setattr(Trainer, "step", real)
    assert call(*options, folder="again") == 0
    prints = {}
    for name in ("whole", "plain", "again"):
        prints[name] = adapter_fingerprint(tmp_path / name / "adapter")
    assert prints["whole"] == prints["again"] != prints["plain"]
    whole, plain = (read_jsonl(tmp_path / name / "train.jsonl") for name in ("whole", "plain"))
    losses_of = [[r["loss"] for r in log if "loss" in r] for log in (whole, plain)]
    assert losses_of[0] == losses_of[1], "the training is the same"
    validation = [[r["validation_loss"] for r in log if "loss" not in r] for log in (whole, plain)]
    assert validation[0] != validation[1], "what is saved is validated"


@pytest.mark.slow
def test_a_scale_is_chosen_on_held_out_questions_and_saved(call, tmp_path, capsys):
    options = ("--steps", "3")
    assert call(*options, folder="plain") == 0
    assert call(*options, "--choose-scale", "0.01", "1", folder="chosen") == 0
    assert "chosen on 8 held-back examples" in capsys.readouterr().out
    summary = read_json(tmp_path / "chosen" / "train.summary.json")
    scale = summary["scale"]
    assert scale["chosen"] in (0.01, 1.0) and set(scale["losses"]) == {"0.01", "1"}
    plain, chosen = (
        load_file(tmp_path / name / "adapter" / "adapter_model.safetensors")
        for name in ("plain", "chosen")
    )
    for name, tensor in plain.items():
        factor = scale["chosen"] if "lora_B" in name else 1.0
        assert chosen[name].allclose(factor * tensor)
    assert call(*options, "--choose-scale", "0.01", "1", folder="chosen") == 0
    assert "finished already" in capsys.readouterr().out


def test_no_scale_is_chosen_on_what_is_tested(call, tmp_path, monkeypatch, capsys):
    copy = tmp_path / "mine.jsonl"
    shutil.copy(DEMO_FOLDER / "train.jsonl", copy)
    digest = hashlib.sha256(copy.read_bytes()).hexdigest()
    test_set = OfficialFile("gsm8k/test.jsonl", "", digest)
    monkeypatch.setattr(GSM8K, "official", {**GSM8K.official, "test": test_set})
    assert call("--data", str(copy), "--choose-scale", "0.5", "1") == 2
    assert "a scale chosen on what is tested would be tested on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--kl-first-tokens", "5"], "--kl-first-tokens 5 without --kl-weight"),
        (["--choose-scale", "0.5"], "--choose-scale 0.5: expected several different scales"),
        (["--choose-scale", "1", "1"], "--choose-scale 1 1: expected several different scales"),
        (["--choose-scale", "0", "1"], "argument --choose-scale"),
        (["--ema", "1"], "argument --ema"),
    ],
)
def test_options_of_keeping_that_make_no_sense_are_refused(call, capsys, options, message):
    with pytest.raises(SystemExit):
        call(*options)
    assert message in capsys.readouterr().err


def test_the_divergence_is_off_by_default(call, tmp_path):
    assert call("--steps", "1") == 0
    assert not any(
        name.startswith("kl")
        for record in read_jsonl(tmp_path / "run" / "train.jsonl")
        for name in record
    )
    assert "kl_prompts" not in read_json(tmp_path / "run" / "train.summary.json")


def test_prompts_of_either_format_can_be_held_to(call, tmp_path, capsys):
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps({"question": "1+1?", "answer": "#### 2"}) + "\n")
    assert call("--steps", "1", "--kl-prompts", str(path)) == 0
    assert f"1 prompts of {path}" in capsys.readouterr().out


def test_training_goes_on_from_an_adapter(call, tmp_path):
    assert call("--steps", "4", folder="first") == 0
    adapter = ["--init-adapter", str(tmp_path / "first" / "adapter")]
    assert call("--steps", "4", *adapter, folder="second") == 0
    first, second = losses(tmp_path / "first"), losses(tmp_path / "second")
    assert second[0] < first[0] - 0.2, "the same batch, by a model that has been trained"
    settings = read_json(tmp_path / "second" / "train.summary.json")["settings"]
    assert settings["init_adapter"] == adapter_fingerprint(tmp_path / "first" / "adapter")
    assert call("--steps", "4", *adapter, folder="second") == 0  # finished: nothing to do
    assert losses(tmp_path / "second") == second


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rank", "4"], "the adapter has rank 8 and alpha 16.0, the model's LoRA layers 4"),
        (
            ["--target", "mlp"],
            "the adapter has other target_modules than the model: model.layers.0.self_attn",
        ),
    ],
)
def test_an_adapter_of_another_shape_is_refused(call, tmp_path, capsys, options, message):
    assert call("--steps", "1", folder="first") == 0
    assert (
        call("--steps", "1", "--init-adapter", str(tmp_path / "first" / "adapter"), *options) == 2
    )
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("target", "modules"),
    [
        (["attention"], {"q_proj", "k_proj", "v_proj", "o_proj"}),
        (["mlp"], {"gate_proj", "up_proj", "down_proj"}),
        (["mlp", "q_proj"], {"gate_proj", "up_proj", "down_proj", "q_proj"}),
    ],
)
def test_targets_have_short_names(call, tmp_path, target, modules):
    assert call("--steps", "1", "--target", *target) == 0
    assert (
        set(read_json(tmp_path / "run" / "adapter" / "adapter_config.json")["target_modules"])
        == modules
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--kl-weight", "1", "--kl-prompts", "ailuminate"],
            "would train on the prompts that are tested on",
        ),
        (
            ["--kl-weight", "1", "--kl-prompts", "look-alikes+xstest"],
            r"--kl-prompts look-alikes\+xstest would train on the prompts that are tested on",
        ),
        (["--kl-prompts", "nowhere.csv"], "nowhere.csv: no such file"),
        (
            ["--validation", "7", "--choose-scale", "0.5", "1"],
            "--choose-scale with 7 examples held out: it needs at least 8",
        ),
        (["--no-system-header"], "the chat template prints no system header"),
        (["--init-adapter", "nowhere"], "nowhere: no adapter_config.json"),
        (["--data", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["--shots", "500"], "500 shots asked for, but"),
        (["--limit", "8"], "8 validation examples asked for, but"),
        (["--model", "no/such/folder"], "no such folder"),
        (["--target", "qkv_proj"], r"\['qkv_proj'\] match no linear"),
        (["--date", "yesterday"], "date 'yesterday'"),
        (
            ["--steps", "3", "--warmup", "0.9"],
            "a warm-up of 3 steps in a training of 3: the peak learning rate 0.01 would never be",
        ),
        (["--device", "nonsense"], "--device nonsense"),
    ],
)
def test_bad_input_is_one_line_and_status_2(options, message, call, capsys):
    assert call(*options) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and re.search(message, error), error


@pytest.mark.parametrize(
    "option", ["--limit", "--batch-size", "--rank", "--lr", "--epochs", "--steps", "--alpha"]
)
@pytest.mark.parametrize("value", ["0", "-1", "x"])
def test_options_out_of_range_end_with_status_2(option, value, call, capsys):
    with pytest.raises(SystemExit) as exit_status:
        call(option, value)
    assert exit_status.value.code == 2
    assert f"argument {option}: expected a" in capsys.readouterr().err


def test_bad_records_are_named_with_file_and_line(call, tmp_path, capsys):
    good = {"question": "1+1?", "answer": "It is 2.\n#### 2"}
    for bad, message in (
        ('{"question": "x"', "line 2: not valid JSON"),
        (json.dumps({"question": "x"}), "line 2: no 'answer'"),
        (
            json.dumps({"question": "x", "answer": "#### many"}),
            "line 2: the answer does not end in '#### number'",
        ),
        (json.dumps({"question": "", "answer": "#### 1"}), "line 2: 'question' is empty"),
    ):
        path = tmp_path / "bad.jsonl"
        path.write_text(json.dumps(good) + "\n" + bad + "\n")
        assert call("--data", str(path)) == 2
        assert f"{path}, {message}" in capsys.readouterr().err


def test_example_longer_than_the_context_is_named(tmp_path, chat_checkpoint, call, capsys):
    path = tmp_path / "long.jsonl"
    records = [
        {"question": "short?", "answer": "#### 1"},
        {"question": "word " * 3000, "answer": "#### 2"},
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert call("--data", str(path), "--validation", "0") == 2
    assert "long-1: " in capsys.readouterr().err


def untuned_base(chat_checkpoint, folder):
    """The checkpoint as it might have been before it was aligned."""
    shutil.copytree(chat_checkpoint, folder)
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    for number, name in enumerate(sorted(tensors)):
        tensors[name] = tensors[name] * (0.5 + 0.01 * number)
    save_file(tensors, weights, metadata={"format": "pt"})
    return folder


def test_safe_lora_projects_the_adapter_that_is_saved(call, chat_checkpoint, tmp_path, capsys):
    untuned = untuned_base(chat_checkpoint, tmp_path / "untuned")
    assert call(folder="plain") == 0
    assert call("--safe-lora", str(untuned), "--safe-lora-threshold", "2") == 0
    assert "Safe LoRA: 14 of 14 layers projected" in capsys.readouterr().out
    summary = read_json(tmp_path / "run" / "train.summary.json")
    assert len(summary["safe_lora"]["cosines"]) == len(summary["safe_lora"]["projected"]) == 14
    assert summary["safe_lora"]["validation_loss"] != summary["last_validation_loss"]
    assert not (tmp_path / "run" / "adapter-best").exists(), "losses are of those not projected"
    model = load_model(chat_checkpoint)
    load_adapter(model, tmp_path / "plain" / "adapter")
    project_onto_alignment(model, load_model(untuned), 2.0)
    expected = [parameter.clone() for parameter in lora_parameters(model)]
    load_adapter(model, tmp_path / "run" / "adapter")
    for found, wanted in zip(lora_parameters(model), expected, strict=True):
        torch.testing.assert_close(found, wanted)


def test_a_projection_without_its_base_ends_with_status_2(call, chat_checkpoint, tmp_path, capsys):
    assert call("--safe-lora", str(tmp_path / "nowhere")) == 2
    assert "nowhere" in capsys.readouterr().err
    other = shutil.copytree(chat_checkpoint, tmp_path / "other")
    config = read_json(other / "config.json")
    write_json(other / "config.json", config | {"intermediate_size": 99})
    assert call("--safe-lora", str(other)) == 2
    assert "intermediate_size is 99 in the untuned base" in capsys.readouterr().err
    assert not (tmp_path / "run" / "train.jsonl").exists(), "said before the training"
    assert call("--safe-lora", str(chat_checkpoint)) == 2
    assert "no alignment to project onto" in capsys.readouterr().err
