"""What train.py --dry-run says of the time comes from timed steps of a few layers."""

import time
from dataclasses import replace

import pytest
import torch

from common import training_speed
from common.training_speed import seconds_per_step
from data.examples import Example
from llama import load_model
from lora import LoRAConfig, inject_lora
from lora.trainer import Trainer, TrainerOptions

OPTIONS = TrainerOptions(total_steps=10, learning_rate=1e-3)
CPU = torch.device("cpu")


def examples(count: int, length: int) -> list[Example]:
    ids = [5 + i % 50 for i in range(length)]
    return [Example(ids, ids) for _ in range(count)]


def test_layers_and_tokens_are_extrapolated(chat_checkpoint, monkeypatch):
    config = replace(load_model(chat_checkpoint).config, num_hidden_layers=11)
    monkeypatch.setattr(training_speed, "_probe", lambda config, layers, *rest: 2.0 + layers)
    # 2 s apart from the layers and 1 s each of 11, for 4 examples of 10 tokens
    assert seconds_per_step(config, LoRAConfig(), OPTIONS, examples(6, 10), 4, CPU) == 13.0
    assert seconds_per_step(config, LoRAConfig(), OPTIONS, examples(6, 10), 16, CPU) == 52.0
    long = [*examples(4, 10), *examples(4, 30)]
    assert seconds_per_step(config, LoRAConfig(), OPTIONS, long, 4, CPU) == 26.0


@pytest.mark.slow
@pytest.mark.parametrize("quantize", [None, "int8"])
def test_it_is_about_the_time_of_a_step(chat_checkpoint, quantize):
    """Within a factor of five: the machine may do other things meanwhile."""
    model = load_model(chat_checkpoint, quantize=quantize)
    batch = examples(4, 200)
    estimate = seconds_per_step(model.config, LoRAConfig(), OPTIONS, batch, 4, CPU, quantize)
    inject_lora(model, LoRAConfig())
    trainer = Trainer(model, OPTIONS)
    trainer.step(batch)
    begin = time.perf_counter()
    trainer.step(batch)
    measured = time.perf_counter() - begin
    assert measured / 5 < estimate < measured * 5
