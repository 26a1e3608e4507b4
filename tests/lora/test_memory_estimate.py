"""The memory that --dry-run announces follows what takes it."""

from dataclasses import replace

import pytest
import torch

from data.examples import Example
from llama import ModelConfig
from lora import LoRAConfig
from lora.memory_estimate import estimate_memory
from lora.trainer import TrainerOptions

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
LLAMA_1B = ModelConfig(
    model_type="llama",
    vocab_size=128256,
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=16,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=64,
    max_position_embeddings=131072,
    tie_word_embeddings=True,
)
OPTIONS = TrainerOptions(total_steps=1, dtype=torch.bfloat16)
# Each begins otherwise, so that nothing is shared.
EXAMPLES = [Example([i] * 300, [i] * 300) for i in range(8)]


def estimate(options=OPTIONS, device=CUDA, lora=None, **more):
    return estimate_memory(LLAMA_1B, lora or LoRAConfig(), options, EXAMPLES, 8, device, **more)


def test_weights_are_counted_once_and_exactly():
    """1,235,814,400 parameters has Llama-3.2-1B, its head tied to the embedding."""
    found = estimate()
    assert found.frozen_weights == 2 * 1_235_814_400
    assert found.trainable_parameters == 16 * 8 * 2 * (2048 + 2048) // 2 + 16 * 8 * (
        2 * (2048 + 512) + 3 * (2048 + 8192) + (2048 + 2048) * 1
    )
    assert found.trained_weights == 16 * found.trainable_parameters
    assert found.total > found.frozen_weights + found.activations


def test_packed_weights_of_adapted_layers_are_there_twice_on_a_cpu():
    options = replace(OPTIONS, dtype=torch.float32)
    once = estimate(replace(options, checkpoint_activations=True), CPU).frozen_weights
    linears = 16 * (2 * 2048 * 2048 + 2 * 2048 * 512 + 3 * 2048 * 8192)
    assert estimate(options, CPU).frozen_weights == once + 4 * linears
    attention = LoRAConfig(target_modules=("q_proj",))
    assert estimate(options, CPU, attention).frozen_weights == once + 4 * 16 * 2048 * 2048
    assert estimate(options, CUDA).frozen_weights == once


def test_what_saves_memory_is_estimated_to_do_so():
    plain = estimate()
    assert estimate(quantize="int8").frozen_weights < 0.7 * plain.frozen_weights
    sharded = estimate(shards=4)
    assert sharded.frozen_weights == plain.frozen_weights // 4
    assert estimate(replace(OPTIONS, checkpoint_activations=True)).activations < (
        plain.activations / 5
    )
    doubled = estimate(replace(OPTIONS, micro_batch_tokens=2048))  # 6 examples and not 3
    assert doubled.activations == 2 * plain.activations


def test_a_pass_holds_at_least_the_longest_example():
    short = replace(OPTIONS, micro_batch_tokens=10)
    assert estimate(short).activations == estimate().activations / 3
    long = replace(OPTIONS, micro_batch_tokens=10**6)
    assert estimate(long).activations == estimate().activations * 8 / 3, "no more than the step has"


def test_a_prefix_that_all_share_is_held_once():
    shared = [Example([1] * 290 + [i] * 10, [1] * 300) for i in range(8)]
    one = estimate_memory(LLAMA_1B, LoRAConfig(), OPTIONS, EXAMPLES[:1], 8, CUDA).activations
    activations = estimate_memory(LLAMA_1B, LoRAConfig(), OPTIONS, shared, 8, CUDA).activations
    assert activations == pytest.approx(one * (290 + 80) / 300, rel=0.01)
