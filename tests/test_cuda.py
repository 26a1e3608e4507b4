"""Behaviour that only a CUDA device can show; `make gpu` runs these tests and more.

Without a device they are skipped: tests/fake_cuda checks what can be checked there. With
CUDA_TESTS_DEVICE=cpu they run on the CPU, which tests the tests.
"""

import os

import pytest
import torch

from data.examples import Example
from llama import cuda_graphs, generate, load_model, scheduler
from lora import LoRAConfig, fsdp, inject_lora
from lora.trainer import Trainer, TrainerOptions

DEVICE = os.environ.get("CUDA_TESTS_DEVICE", "cuda")
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="no CUDA device"),
]
needs_cuda = pytest.mark.skipif(DEVICE != "cuda", reason="needs the memory of a CUDA device")
PROMPTS = [[5, 6, 7, 8], [5, 6, 9], [5, 6, 10, 11, 12, 13]]
HALF = [torch.bfloat16, torch.float16]


@pytest.fixture(params=["llama3-scaled", "qwen3"])
def folder(request, tiny_checkpoint):
    return tiny_checkpoint(request.param)


def train(folder, device, dtype=torch.float32, shard=False, steps=8, **options) -> list[float]:
    """The losses of some steps of a LoRA that is the same everywhere."""
    model = load_model(folder, dtype=dtype, device="cpu" if shard else device)
    inject_lora(model, LoRAConfig(rank=4))
    for parameter in model.parameters():
        if parameter.requires_grad:
            values = torch.linspace(-0.1, 0.1, parameter.numel())
            parameter.data.copy_(values.view_as(parameter))
    if shard:
        fsdp.shard_base(model, torch.device(device))
    settings = TrainerOptions(total_steps=steps, learning_rate=1e-2, dtype=dtype, **options)
    trainer = Trainer(model, settings)
    assert {parameter.dtype for parameter in trainer.parameters} == {torch.float32}
    examples = [Example(prompt, prompt) for prompt in PROMPTS]
    return [trainer.step(examples).loss for _ in range(steps)]


def test_greedy_tokens_equal_the_cpus(folder):
    on_cpu = generate(load_model(folder), PROMPTS, 30, {3})
    assert generate(load_model(folder, device=DEVICE), PROMPTS, 30, {3}) == on_cpu


def test_greedy_tokens_equal_the_cpus_over_several_graphs(folder, monkeypatch):
    """Sequences grow beyond what one captured graph attends to."""
    monkeypatch.setattr(cuda_graphs, "BUCKET", 16)
    monkeypatch.setattr(scheduler, "VERIFIED_TOKENS", 0)
    on_cpu = generate(load_model(folder), PROMPTS, 60, frozenset())
    assert generate(load_model(folder, device=DEVICE), PROMPTS, 60, frozenset()) == on_cpu


@pytest.mark.parametrize("dtype", HALF)
def test_decoding_in_half_precision_gives_whole_answers(folder, dtype):
    outputs = generate(load_model(folder, dtype=dtype, device=DEVICE), PROMPTS, 30, frozenset())
    assert [len(output.token_ids) for output in outputs] == [30] * len(PROMPTS)


def test_int8_weights_give_the_cpus_tokens(folder):
    answers = []
    for device in ("cpu", DEVICE):
        model = load_model(folder, device=device, quantize="int8")
        answers.append(generate(model, PROMPTS, 20, {3}))
    assert answers[0] == answers[1]


def test_training_follows_the_cpu(folder):
    assert train(folder, DEVICE) == pytest.approx(train(folder, "cpu"), rel=1e-4)


@pytest.mark.parametrize("dtype", HALF)
def test_training_in_half_precision_begins_as_in_float32_and_learns(folder, dtype):
    """In float16 the first steps may be skipped, until the scale of the loss fits the gradients."""
    losses = train(folder, DEVICE, dtype, steps=24)
    (expected,) = train(folder, "cpu", steps=1)
    assert losses[0] == pytest.approx(expected, rel=0.02)
    assert losses[-1] < 0.7 * losses[0]


def test_checkpointing_and_small_passes_leave_the_losses(folder):
    expected = pytest.approx(train(folder, DEVICE), rel=1e-4)
    assert train(folder, DEVICE, checkpoint_activations=True) == expected
    assert train(folder, DEVICE, micro_batch_tokens=5) == expected


def test_sharding_over_one_process_leaves_the_losses(folder, tmp_path):
    """FSDP2 gathers and frees the base; the adapter is on the same device."""
    expected = train(folder, DEVICE)
    torch.distributed.init_process_group(
        "nccl" if DEVICE == "cuda" else "gloo",
        init_method=(tmp_path / "meeting").as_uri(),
        rank=0,
        world_size=1,
    )
    try:
        device = f"{DEVICE}:0" if DEVICE == "cuda" else DEVICE
        assert train(folder, device, shard=True) == pytest.approx(expected, rel=1e-4)
    finally:
        torch.distributed.destroy_process_group()


@needs_cuda
def test_decoding_goes_on_with_fewer_rows_when_memory_runs_out(tiny_checkpoint):
    """A bound on the process's memory that the cache of all rows goes beyond."""
    model = load_model(tiny_checkpoint("llama3-scaled"), device=DEVICE)
    prompts = [[5 + i % 100, 6, 7 + i // 100] for i in range(4096)]
    expected = generate(model, prompts[:64], 200, frozenset(), 64)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(DEVICE).total_memory
    bound = torch.cuda.memory_reserved() + 2**28
    torch.cuda.set_per_process_memory_fraction(bound / total)
    try:
        outputs = generate(model, prompts, 200, frozenset(), 4096)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert outputs[:64] == expected
