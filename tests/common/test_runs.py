"""Run folders are checked before they are written, and costs add up over interrupted calls."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from common import runs
from common.errors import UserError
from common.options import Scope, option
from data.records import write_json

CPU = torch.device("cpu")
SUMMARY = Path("gsm8k.summary.json")


def test_only_records_made_with_the_same_settings_are_continued(tmp_path):
    records, summary = tmp_path / "gsm8k.jsonl", tmp_path / "gsm8k.summary.json"
    assert runs.load_previous_summary(records, summary, {"shots": 3}, resume=True) == {}
    write_json(summary, {"settings": {"shots": 3, "limit": 5}, "seconds": 2.0})
    assert (
        runs.load_previous_summary(records, summary, {"shots": 3, "limit": 9}, resume=True)[
            "seconds"
        ]
        == 2.0
    )
    with pytest.raises(
        ValueError, match=r"gsm8k\.summary\.json was made with shots = 3, now it is 1"
    ):
        runs.load_previous_summary(records, summary, {"shots": 1}, resume=True)
    assert runs.load_previous_summary(records, summary, {"shots": 1}, resume=False) == {}
    write_json(summary, {"settings": 3})
    with pytest.raises(ValueError, match="no settings in it"):
        runs.load_previous_summary(records, summary, {}, resume=True)


@dataclass(frozen=True)
class Declared:
    """A script's options, for what a summary of before the option `shots` means."""

    model: str = option("base", "x")
    learning_rate: float = option(0.1, "x")
    shots: int = option(0, "x")
    device: str = option("cpu", "x", scope=Scope.COST)


def test_every_changed_setting_is_listed_the_model_first(tmp_path):
    summary = tmp_path / "train.summary.json"
    before = {"learning_rate": 0.1, "model": "base", "model_sha256": "a", "device": "cpu"}
    write_json(summary, {"settings": before})

    def load(**changes):
        now = before | {"shots": 0} | changes
        return runs.load_previous_summary(tmp_path / "x", summary, now, True, Declared)

    assert load(device="cuda") == {"settings": before}, "a lacking setting was the default"
    with pytest.raises(UserError) as error:
        load(model="other", learning_rate=0.2, shots=1, model_sha256="b")
    assert str(error.value) == (
        f"{summary} was made with --model = 'base', now it is 'other'; "
        "model_sha256 = 'a', now it is 'b'; --learning-rate = 0.1, now it is 0.2; "
        f"--shots = 0, now it is 1: choose another run, --run {tmp_path}-2, or start again with "
        "--no-resume, which keeps the old files as NAME.1"
    )


@pytest.mark.parametrize("resume", [True, False])
def test_a_file_that_is_no_record_of_ours_is_not_overwritten(resume, tmp_path):
    (tmp_path / "train.jsonl").write_text("somebody's data")
    with pytest.raises(ValueError, match=r"is there without train\.summary\.json"):
        runs.load_previous_summary(
            tmp_path / "train.jsonl", tmp_path / "train.summary.json", {}, resume
        )
    with pytest.raises(ValueError, match="is where this run writes its records"):
        runs.refuse_overwriting(tmp_path / "x" / ".." / "train.jsonl", tmp_path / "train.jsonl")


def test_costs_add_up_over_calls():
    first = runs.RunCosts({}, CPU, SUMMARY)
    with pytest.raises(KeyboardInterrupt), first.timed():
        first.stats.new_tokens = 10
        sum(range(10**6))
        raise KeyboardInterrupt
    before = first.summary()
    assert before["seconds"] > 0 and before["decoding"]["new_tokens"] == 10
    second = runs.RunCosts(before | {"peak_memory_bytes": 2**50}, CPU, SUMMARY)
    assert second.summary() == before | {"peak_memory_bytes": 2**50}, (
        "nothing done, nothing changed"
    )
    with second.timed():
        second.stats.new_tokens += 5
        assert second.summary()["seconds"] >= before["seconds"]
    assert second.summary()["decoding"]["new_tokens"] == 15
    assert second.summary()["peak_memory_bytes"] == 2**50


def test_a_cuda_device_that_nothing_was_computed_on_is_not_touched(monkeypatch):
    """Resetting the statistics of a CUDA that is not initialised is an error."""

    def touched(device):
        raise RuntimeError("CUDA is not initialised")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    for name in ("reset_peak_memory_stats", "max_memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, touched)
    monkeypatch.setattr(runs, "environment", lambda device: {})
    costs = runs.RunCosts({}, torch.device("cuda", 1), SUMMARY)
    with costs.timed():
        pass
    assert costs.summary()["peak_memory_bytes"] == 0


@pytest.mark.parametrize(
    ("damage", "field"),
    [
        ({"seconds": "x"}, "'seconds' must be a number"),
        ({"seconds": None}, "'seconds' must be a number"),
        ({"decoding": {"new_tokens": "x"}}, "in 'decoding': field 'new_tokens' must be a whole"),
        ({"decoding": 3}, "'decoding' must be an object"),
        ({"peak_memory_bytes": 1.5}, "'peak_memory_bytes' must be a whole number"),
    ],
)
def test_a_damaged_summary_is_refused(damage, field):
    with pytest.raises(UserError, match=f"gsm8k.summary.json: .*{field}"):
        runs.RunCosts(damage, CPU, SUMMARY)


def test_a_count_of_another_version_is_passed_over():
    costs = runs.RunCosts({"decoding": {"new_tokens": 3, "turns": 9}}, CPU, SUMMARY)
    assert costs.stats.new_tokens == 3


def test_costs_of_parallel_ranks_are_merged():
    part = {"seconds": 2.0, "peak_memory_bytes": 10, "decoding": {"new_tokens": 3}}
    other = {"seconds": 3.0, "peak_memory_bytes": 5, "decoding": {"new_tokens": 4}}
    costs = runs.RunCosts({"seconds": 1.0}, CPU, SUMMARY)
    costs.add_parallel({Path("a.json"): part, Path("b.json"): other})
    assert (costs.seconds, costs.peak, costs.stats.new_tokens) == (4.0, 10, 7)


def test_peak_memory_is_in_bytes():
    assert 50 * 2**20 < runs.peak_memory_bytes(torch.device("cpu")) < 2**40


def test_a_file_made_by_two_versions_says_so(monkeypatch):
    costs = runs.RunCosts({}, CPU, SUMMARY)
    for torch_version in ("2.9.0", "2.9.0", "2.13.0", "2.13.0"):
        now = {"torch": torch_version, "threads": 1}
        monkeypatch.setattr(runs, "environment", lambda device, now=now: now)
        costs = runs.RunCosts(costs.summary(), CPU, SUMMARY)
        with costs.timed():
            pass
    assert costs.summary()["environment"] == {"torch": "2.9.0, then 2.13.0", "threads": 1}


def test_what_renders_tokenises_and_computes_is_in_the_environment():
    assert {"torch", "tokenizers", "safetensors", "jinja2"} <= runs.environment(CPU).keys()
