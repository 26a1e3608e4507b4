"""Tokens in a pass of training: by the device, and fewer where its memory is small."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from common.training_plan import choose_pass_tokens
from common.training_settings import TrainingSettings
from data.examples import Example
from llama import ModelConfig
from tests.fake_cuda.sizes import LLAMA

CONFIG = ModelConfig.from_dict(LLAMA)
EXAMPLES = [Example([first] * 500, [1] * 500) for first in range(64)]  # no common prefix
CUDA = torch.device("cuda")


@pytest.fixture
def data() -> SimpleNamespace:
    return SimpleNamespace(examples=EXAMPLES, training=EXAMPLES)


def pass_tokens(monkeypatch, data, gibibytes: int, **changes) -> int | None:
    memory = SimpleNamespace(total_memory=gibibytes * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: memory)
    settings = replace(TrainingSettings(steps=9, batch_size=64), **changes)
    return choose_pass_tokens(settings, CONFIG, data, CUDA, torch.bfloat16).micro_batch_tokens


def test_a_large_gpu_takes_many_tokens_and_a_small_one_fewer(monkeypatch, data):
    assert pass_tokens(monkeypatch, data, 80) == 8192
    small = pass_tokens(monkeypatch, data, 8)
    assert small in (2048, 4096)
    assert pass_tokens(monkeypatch, data, 8, checkpoint_activations=True) == 8192
    assert pass_tokens(monkeypatch, data, 1) == 1024, "it may still be too much, but is the least"


def test_a_given_number_stays_and_a_cpu_has_its_own(monkeypatch, data):
    assert pass_tokens(monkeypatch, data, 1, micro_batch_tokens=300) == 300
    settings = TrainingSettings(steps=9)
    cpu = choose_pass_tokens(settings, CONFIG, data, torch.device("cpu"), torch.float32)
    assert cpu.micro_batch_tokens == 1024
