"""The log and the checkpoints of a training that goes on are whole, or named in one line."""

import json

import pytest
import torch

from data.examples import Example
from llama.errors import UserError
from lora import LoRAConfig
from lora.checkpoint import best_checkpoint, load_checkpoint, save_checkpoint
from lora.loop import TrainingLoop, read_log
from lora.trainer import Trainer, TrainerOptions
from tests.tiny import tiny_decoder, with_random_lora

STEPS = [
    {"step": step, "loss": 1.5, "examples": 2, "tokens": 9, "supervised_tokens": 4}
    for step in (1, 2, 3)
]
VALIDATION = {"step": 2, "validation_loss": 1.4, "kl_gsm8k": 0.1}


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_the_log_is_read_up_to_the_checkpoint(tmp_path):
    path = tmp_path / "train.jsonl"
    write(path, [*STEPS[:2], VALIDATION, STEPS[2]])
    assert read_log(path, 2) == [*STEPS[:2], VALIDATION]


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "has 0 steps, the checkpoint was made after 2; start again with --no-resume"),
        ([STEPS[1]], "has 1 steps"),
        ([*STEPS[:2], STEPS[1]], "has 3 steps"),
        ([STEPS[0], STEPS[1] | {"tokens": "x"}], "line 2: field 'tokens' must be a whole number"),
        ([STEPS[0], STEPS[1] | {"step": None}], "line 2: field 'step' must be a whole number"),
        ([{"step": 1}], "line 1: field 'validation_loss' must be a number, which is missing"),
    ],
)
def test_a_log_edited_by_hand_is_refused(records, message, tmp_path):
    write(tmp_path / "train.jsonl", records)
    with pytest.raises(UserError, match=f"train.jsonl.*{message}"):
        read_log(tmp_path / "train.jsonl", 2)


@pytest.fixture
def trainer():
    model = with_random_lora(tiny_decoder("llama"), LoRAConfig(rank=2))
    return Trainer(model, TrainerOptions(total_steps=2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"completed_steps": "1"}, "state.json: field 'completed_steps' must be a whole number"),
        ({"seconds": None}, "state.json: field 'seconds' must be a number"),
        ({"scaler": []}, "state.json: field 'scaler' must be an object"),
    ],
)
def test_values_of_a_checkpoint_are_checked(changes, message, trainer, tmp_path):
    tensors, values = trainer.state()
    values |= {"seconds": 1.0, "validation_loss": None, **changes}
    save_checkpoint(tmp_path / "checkpoints", 1, tensors, values)
    with pytest.raises(UserError, match=message):
        TrainingLoop(tmp_path, trainer, [])


@pytest.mark.parametrize(
    "changes",
    [
        {"0.parameter": None},
        {"x.parameter": torch.ones(1)},
        {"0.exp_avg": torch.ones(3)},
        {"99.parameter": torch.ones(1)},
    ],
)
def test_tensors_of_a_checkpoint_are_checked(changes, trainer, tmp_path):
    tensors, values = trainer.state()
    values |= {"seconds": 1.0, "validation_loss": None}
    tensors = {name: t for name, t in (tensors | changes).items() if t is not None}
    folder = save_checkpoint(tmp_path / "checkpoints", 1, tensors, values)
    with pytest.raises(UserError, match=r"step-00000001: .*; delete it to go on"):
        TrainingLoop(tmp_path, trainer, [])
    assert load_checkpoint(folder)[1] == values


def test_a_validation_loss_that_is_no_number_is_not_the_best(tmp_path):
    for step, loss in ((1, 2.0), (2, "0.1"), (3, float("nan")), (4, 1.5), (5, None)):
        save_checkpoint(tmp_path, step, {"a": torch.ones(1)}, {"validation_loss": loss}, keep=9)
    assert best_checkpoint(tmp_path).name == "step-00000004"


def test_what_a_killed_call_left_is_removed(trainer, tmp_path):
    """A checkpoint half made, one half removed, one too many, and a folder half removed."""
    folder = tmp_path / "checkpoints"
    for step in (1, 2):
        tensors, values = trainer.state()
        values |= {"completed_steps": 0, "seconds": 1.0, "validation_loss": 3.0 - step}
        save_checkpoint(folder, step, tensors, values, keep=9)
    for name in ("checkpoints/.step-00000003.partial", "checkpoints/.step-00000000.removed"):
        (tmp_path / name).mkdir()
    (tmp_path / ".checkpoints.removed").mkdir()
    loop = TrainingLoop(tmp_path, trainer, [])
    trainer.completed_steps = trainer.options.total_steps
    loop.run([Example([1, 2], [1, 2])], [], 1, checkpoint_every=1, keep_checkpoints=1)
    assert [path.name for path in sorted(folder.iterdir())] == ["step-00000002"]
    assert not (tmp_path / ".checkpoints.removed").exists()
