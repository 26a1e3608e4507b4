"""Packed weights give the same results, and every weight is back afterwards."""

import gc
import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch

from llama import load_model, onednn
from llama.onednn import PackedAttention, PackedLinear, PackedMLP, prepacked
from lora import LoRAConfig, inject_lora

TOKENS = torch.tensor([[5, 6, 7, 8, 5, 100, 150, 3]])


@pytest.fixture(params=["llama3-scaled", "qwen3", "qwen2", "smollm3"])
def model(request, tiny_checkpoint):
    return load_model(tiny_checkpoint(request.param))


def test_same_logits_and_everything_back(model):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modules = dict(model.named_modules())
    plain = model.logits(model(TOKENS))
    with torch.inference_mode(), prepacked(model):
        packed = model.logits(model(TOKENS))
        assert isinstance(model.model["layers"][0].self_attn, PackedAttention)
        assert isinstance(model.model["layers"][0].mlp, PackedMLP)
        assert isinstance(model.lm_head, PackedLinear)
        assert (model.device, model.dtype) == (torch.device("cpu"), torch.float32)
    assert not torch.equal(plain, torch.zeros_like(plain))
    torch.testing.assert_close(packed, plain, atol=1e-5, rtol=1e-5)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(module is modules[name] for name, module in model.named_modules())
    assert torch.equal(model.logits(model(TOKENS)), plain), "the plain way again"


def test_no_weight_is_held_twice_but_a_tied_head(model):
    """The plain weights are really gone: nothing keeps them alive, wherever it might be."""
    embedding = model.model["embed_tokens"].weight
    tied = model.lm_head.weight is embedding
    linears = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    weights = [weakref.ref(linear.weight) for linear in linears]
    with prepacked(model):
        gc.collect()
        alive = [weight() for weight in weights if weight() is not None]
        assert len(alive) == (1 if tied else 0)
        assert all(weight is embedding for weight in alive)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux tells there")
@pytest.mark.parametrize("architecture", ["llama3-scaled", "qwen2"])  # untied, tied and biases
def test_packed_weights_leave_nothing_of_the_file_in_memory(architecture, tiny_checkpoint):
    folder = tiny_checkpoint(architecture)
    model = load_model(folder)
    assert str(folder) in Path("/proc/self/maps").read_text(), "the file is read as it is needed"
    with torch.inference_mode(), prepacked(model):
        gc.collect()
        assert str(folder) not in Path("/proc/self/maps").read_text()


def test_weights_come_back_after_an_error(model, monkeypatch):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(RuntimeError, match="stop"), prepacked(model):
        raise RuntimeError("stop")
    real, calls = onednn.pack_weight, []

    def failing(weight):
        calls.append(weight.shape)
        if len(calls) == 4:  # in the middle of the first feed-forward layer
            raise MemoryError
        return real(weight)

    monkeypatch.setattr(onednn, "pack_weight", failing)
    with pytest.raises(MemoryError), prepacked(model):
        pass
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_trainable_weights_stay_what_an_optimizer_knows(model):
    model.model["layers"][0].mlp.up_proj.weight.requires_grad_()
    before = dict(model.named_parameters())["model.layers.0.mlp.up_proj.weight"]
    with prepacked(model):
        assert not isinstance(model.model["layers"][0].mlp, PackedMLP)
        assert isinstance(model.model["layers"][1].mlp, PackedMLP)
    assert model.model["layers"][0].mlp.up_proj.weight is before


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


MANY_SHAPES = """
import resource
import torch
from torch import nn
from llama.onednn import PackedLinear, can_be_packed

torch.set_grad_enabled(False)
torch.set_num_threads(1)
linear = nn.Linear(64, 48).requires_grad_(False)
assert can_be_packed(linear)
packed = PackedLinear(linear)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for rows in range(1, 800):
    packed(torch.zeros(1, rows, 64))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.slow
def test_kernels_for_passes_of_every_length_do_not_fill_the_memory():
    """oneDNN and PyTorch would keep one for each number of tokens: some 300 MB here."""
    libraries = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"}
    environment = {name: value for name, value in os.environ.items() if name not in libraries}
    command, root = [sys.executable, "-c", MANY_SHAPES], Path(__file__).parents[2]
    result = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert int(result.stdout) < 120, result.stderr
