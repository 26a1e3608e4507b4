"""A scaled-down adapter in bfloat16 is not rounded away: it stays beside the weights."""

import pytest
import torch

from llama import load_model
from lora import LoRAConfig, inject_lora, lora_layers, set_lora_scale
from lora.merged_checkpoint import merge_unless_lost


@pytest.fixture
def tuned(chat_checkpoint):
    """The model in a dtype, its adapter at a scale; at 1 the update is 2 % of the weights."""

    def tuned(dtype: str, scale: float):
        model = load_model(chat_checkpoint, dtype=dtype)
        inject_lora(model, LoRAConfig(rank=4, alpha=4))
        generator = torch.Generator().manual_seed(0)
        for _, layer in lora_layers(model):
            update = torch.randn(layer.lora_B.shape, generator=generator)
            layer.lora_B.data.copy_(update)
            size = (layer.lora_B @ layer.lora_A).norm() / layer.weight.float().norm()
            layer.lora_B.data.mul_(0.02 / size)
        set_lora_scale(model, scale)
        return model

    return tuned


def logits(model) -> torch.Tensor:
    with torch.inference_mode():
        return model.logits(model(torch.arange(1, 40)[None]))[0].float()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_that_fits_is_merged(tuned, dtype):
    model = tuned(dtype, 1.0)
    assert merge_unless_lost(model) and not list(lora_layers(model))


def test_a_weak_one_is_merged_in_float32(tuned):
    model = tuned("float32", 0.05)
    before = logits(model)
    assert merge_unless_lost(model)
    assert torch.allclose(logits(model), before, atol=1e-4)


def test_a_weak_one_stays_apart_in_bfloat16(tuned):
    model = tuned("bfloat16", 0.05)
    before = logits(model)
    assert not merge_unless_lost(model) and list(lora_layers(model))
    assert torch.equal(logits(model), before)


def test_merging_would_have_lost_most_of_it(tuned):
    for _, layer in lora_layers(tuned("bfloat16", 0.05)):
        update = layer.scaling * (layer.lora_B @ layer.lora_A)
        kept = layer.merged().weight.float() - layer.weight.float()
        assert (kept - update).norm() > 0.5 * update.norm()
