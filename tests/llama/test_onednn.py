"""Packed weights give the same results, and every weight is back afterwards."""

import pytest
import torch

from llama import load_model
from llama.onednn import prepacked
from lora import LoRAConfig, inject_lora

TOKENS = torch.tensor([[5, 6, 7, 8, 5, 100, 150, 3]])


@pytest.fixture(params=["llama3-scaled", "qwen3", "qwen2", "smollm3"])
def model(request, tiny_checkpoint):
    return load_model(tiny_checkpoint(request.param))


def test_same_logits_and_every_weight_back(model):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plain = model.logits(model(TOKENS))
    with torch.inference_mode(), prepacked(model):
        packed = model.logits(model(TOKENS))
        assert model.model["layers"][0].mlp.up_proj.weight.numel() == 0, "no second copy"
    assert not torch.equal(plain, torch.zeros_like(plain))
    torch.testing.assert_close(packed, plain, atol=1e-5, rtol=1e-5)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(model.logits(model(TOKENS)), plain), "the plain way again"


def test_weights_come_back_after_an_error(model):
    with pytest.raises(RuntimeError, match="stop"), prepacked(model):
        raise RuntimeError("stop")
    assert model.model["layers"][0].mlp.up_proj.weight.numel() > 0


def test_adapted_layers_keep_their_update_and_training_goes_on(model):
    inject_lora(model, LoRAConfig(target_modules=("q_proj", "down_proj")))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    plain = model.logits(model(TOKENS))
    with torch.inference_mode(), prepacked(model):
        torch.testing.assert_close(model.logits(model(TOKENS)), plain, atol=1e-4, rtol=1e-4)
    model.logits(model(TOKENS)).sum().backward()
    gradients = [parameter.grad for name, parameter in model.named_parameters() if "lora" in name]
    assert all(gradient is not None for gradient in gradients)
