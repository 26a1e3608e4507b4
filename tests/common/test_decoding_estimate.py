"""What --dry-run says of memory and time comes from the architecture and a short probe."""

import pytest
import torch

from common.decoding_estimate import DecodingSpeed, estimate_memory, measure_speed
from llama import load_model
from llama.cache import bytes_per_token


def test_memory_is_that_of_the_weights_and_the_cache(chat_checkpoint):
    model = load_model(chat_checkpoint)
    config = model.config
    weights = sum(parameter.numel() for parameter in model.parameters())
    memory = estimate_memory(config, torch.float32, 8, 100)
    assert memory.weights == 4 * weights, "a tied head is the embedding, not one more matrix"
    assert memory.cache == 8 * 100 * bytes_per_token(config, torch.float32)
    half = estimate_memory(config, torch.bfloat16, 8, 100, cache_bytes=1000)
    assert half.weights == 2 * weights and half.cache == 1000
    quantised = estimate_memory(config, torch.float32, 8, 100, quantize="int8")
    assert quantised.weights < memory.weights
    assert "GiB of cpu (weights " in memory.describe(torch.device("cpu"), 2**30)


def test_time_grows_with_layers_and_answers(chat_checkpoint):
    config = load_model(chat_checkpoint).config
    speed = measure_speed(config, torch.device("cpu"), torch.float32, 4)
    assert speed.step > 0 and speed.prompt_token >= 0
    exact = DecodingSpeed(prompt_token=0.5, step=2.0)
    assert exact.seconds(10, sequences=9, in_progress=4, length=5) == pytest.approx(5 + 3 * 5 * 2)
