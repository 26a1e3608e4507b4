"""train.py --log-to: libraries are told of every step once, also where a training goes on."""

import importlib.util
import sys
from types import SimpleNamespace

import pytest

import train
from common import tracking
from data.records import read_jsonl
from lora.loop import TrainingLoop

HAS_TENSORBOARD = importlib.util.find_spec("tensorboard") is not None


class Recorder:
    """Stands for a library: every call, as it came."""

    def __init__(self) -> None:
        self.runs: list[dict] = []
        self.logged: list[tuple[int, dict]] = []
        self.finished = 0

    def init(self, **about) -> None:
        self.runs.append(about)

    def log(self, values, step) -> None:
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished += 1

    def losses(self, name: str = "loss") -> list[tuple[int, float]]:
        return [(step, values[name]) for step, values in self.logged if name in values]


@pytest.fixture
def recorder(monkeypatch):
    made = Recorder()
    for name in ("wandb", "trackio"):
        monkeypatch.setitem(sys.modules, name, made)
    return made


@pytest.fixture
def call(chat_checkpoint, tmp_path):
    def call(*more: str) -> int:
        argv = ["--model", str(chat_checkpoint), "--run", str(tmp_path / "run"), "--data", "demo"]
        argv += ["--limit", "30", "--validation", "3", "--batch-size", "4", "--steps", "6"]
        return train.main([*argv, "--checkpoint-every", "2", "--device", "cpu", *more])

    return call


def expected(tmp_path, name: str) -> list[tuple[int, float]]:
    records = read_jsonl(tmp_path / "run" / "train.jsonl")
    return [(record["step"], record[name]) for record in records if name in record]


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_every_value_of_the_log_is_passed_on(name, call, recorder, tmp_path):
    assert call("--log-to", name) == 0
    for value in ("loss", "learning_rate", "grad_norm", "validation_loss"):
        assert recorder.losses(value) == expected(tmp_path, value) != []
    [about] = recorder.runs
    assert about["project"] == "unforget" and about["config"]["steps"] == 6
    assert "run" in about["name"] and recorder.finished == 1


def test_steps_that_are_taken_again_are_not_told_twice(call, recorder, tmp_path, monkeypatch):
    step = TrainingLoop._step

    def interrupted(self, batch, bar):
        if self.trainer.completed_steps == 5 and len(recorder.runs) == 1:
            raise KeyboardInterrupt
        step(self, batch, bar)

    monkeypatch.setattr(TrainingLoop, "_step", interrupted)
    assert call("--log-to", "wandb") == 130  # after step 5; the newest checkpoint is of step 4
    assert call("--log-to", "wandb") == 0
    assert recorder.losses() == expected(tmp_path, "loss")
    assert recorder.losses("validation_loss") == expected(tmp_path, "validation_loss")
    assert recorder.runs[0]["id"] == recorder.runs[1]["id"] and recorder.finished == 2


def test_steps_of_before_are_told_as_well(call, recorder, tmp_path):
    assert call() == 0
    (tmp_path / "run" / "adapter" / "adapter_model.safetensors").unlink()  # made again
    assert call("--log-to", "wandb") == 0
    assert recorder.losses() == expected(tmp_path, "loss")


def test_starting_again_is_another_run(call, recorder):
    assert call("--log-to", "wandb") == 0
    assert call("--log-to", "wandb", "--no-resume") == 0
    assert recorder.runs[0]["id"] != recorder.runs[1]["id"]
    assert len(recorder.losses()) == 12


@pytest.mark.parametrize("name", tracking.TRACKERS)
def test_one_that_is_not_installed_is_one_line(name, call, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, tracking.MODULES[name], None)
    assert call("--log-to", name) == 2
    error = capsys.readouterr().err
    assert f"pip install {name}" in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_nothing_is_imported_unless_it_is_named(call, monkeypatch):
    for module in tracking.MODULES.values():
        monkeypatch.setitem(sys.modules, module, None)
    assert call() == 0


@pytest.mark.skipif(HAS_TENSORBOARD, reason="tensorboard is installed: the test below")
def test_tensorboards_writer_is_told_each_value(call, tmp_path, monkeypatch):
    recorder = Recorder()
    writer = SimpleNamespace(
        add_scalar=lambda name, value, step: recorder.log({name: value}, step),
        flush=lambda: None,
        close=recorder.finish,
    )
    module = SimpleNamespace(SummaryWriter=lambda log_dir: writer)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    assert call("--log-to", "tensorboard") == 0
    assert recorder.losses() == expected(tmp_path, "loss") and recorder.finished == 1


@pytest.mark.skipif(not HAS_TENSORBOARD, reason="tensorboard is not installed")
def test_tensorboard_reads_the_curves(call, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert call("--log-to", "tensorboard") == 0
    (tmp_path / "run" / "adapter" / "adapter_model.safetensors").unlink()  # a second call
    assert call("--log-to", "tensorboard") == 0
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("loss")]
    wanted = expected(tmp_path, "loss")
    assert [step for step, _ in found] == [step for step, _ in wanted]
    assert [value for _, value in found] == pytest.approx([value for _, value in wanted])
