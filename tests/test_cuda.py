"""What only a CUDA device can show. Machines without one skip these and rely on the tests on the
meta device.
"""

import pytest
import torch

from data.examples import Example
from llama import generate, load_model
from lora import LoRAConfig, inject_lora
from lora.trainer import Trainer, TrainerOptions

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
PROMPTS = [[5, 6, 7, 8], [5, 6, 9], [5, 6, 10, 11, 12, 13]]


@pytest.fixture(params=["llama3-scaled", "qwen3"])
def folder(request, tiny_checkpoint):
    return tiny_checkpoint(request.param)


def test_greedy_tokens_equal_the_cpus(folder):
    on_cpu = generate(load_model(folder), PROMPTS, 30, {3})
    assert generate(load_model(folder, device="cuda"), PROMPTS, 30, {3}) == on_cpu


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_training_follows_the_cpu(folder, dtype):
    examples = [Example(prompt, prompt) for prompt in PROMPTS]
    losses = {}
    for device, precision in (("cpu", torch.float32), ("cuda", dtype)):
        model = load_model(folder, dtype=precision, device=device)
        torch.manual_seed(0)
        inject_lora(model, LoRAConfig(rank=4))
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data.copy_(
                    torch.linspace(-0.1, 0.1, parameter.numel()).view_as(parameter)
                )
        trainer = Trainer(model, TrainerOptions(total_steps=8, learning_rate=1e-2, dtype=precision))
        losses[device] = [trainer.step(examples).loss for _ in range(8)]
        assert {parameter.dtype for parameter in trainer.parameters} == {torch.float32}
    assert losses["cuda"] == pytest.approx(
        losses["cpu"], rel=1e-4 if dtype == torch.float32 else 0.1
    )
