"""8-bit weights: as near as rounding allows, differentiable to the input, trainable through LoRA,
small in memory.
"""

import pytest
import torch

from llama import load_model
from llama.quantization import QuantizedLinear, dense_weight, quantize_weight
from lora import LoRAConfig, inject_lora, lora_parameters, merge_lora

INPUT_IDS = torch.randint(0, 199, (2, 30), generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=["llama-biased", "qwen3", "qwen2"])
def folder(request, tiny_checkpoint):
    return tiny_checkpoint(request.param)


def test_rounding_is_half_a_step_of_each_row():
    weight = torch.randn(20, 30) * torch.logspace(-3, 3, 20)[:, None]
    weight[7] = 0
    rounded, scale = quantize_weight(weight)
    assert rounded.dtype == torch.int8 and scale.shape == (20, 1)
    assert ((dense_weight(rounded, scale, torch.float32) - weight).abs() <= scale / 2 * 1.001).all()
    assert rounded.abs().amax(1).tolist() == [127] * 7 + [0] + [127] * 12


def test_loaded_model_computes_with_the_rounded_weights(folder):
    """Exactly what the plain model computes whose weights are rounded likewise; embedding and head
    are left alone.
    """
    plain, small = load_model(folder), load_model(folder, quantize="int8")
    exact = plain.logits(plain(INPUT_IDS))
    for name, module in plain.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            assert isinstance(small.get_submodule(name), QuantizedLinear), name
            module.weight.data = dense_weight(*quantize_weight(module.weight), torch.float32)
    expected, actual = plain.logits(plain(INPUT_IDS)), small.logits(small(INPUT_IDS))
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (actual - exact).abs().max() > 1e-3 * exact.abs().max()
    assert torch.equal(small.lm_head.weight, plain.lm_head.weight)


def test_gradients_reach_the_input():
    torch.manual_seed(0)
    linear = QuantizedLinear(
        *quantize_weight(torch.randn(4, 5)), torch.nn.Parameter(torch.randn(4))
    )
    linear.bias.requires_grad_(False)
    assert torch.autograd.gradcheck(
        linear, torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    )


@pytest.mark.parametrize(
    "targets", [("q_proj", "down_proj"), ("v_proj", "o_proj", "gate_proj", "up_proj")]
)
def test_lora_over_quantised_weights(folder, targets):
    """Gradients equal those over a plain model with the rounded weights, through adapted and bare
    linears.
    """
    gradients = []
    for quantize in (None, "int8"):
        model = load_model(folder, quantize=quantize)
        for name, module in model.named_modules():
            if not quantize and isinstance(module, torch.nn.Linear) and name != "lm_head":
                module.weight.data = dense_weight(*quantize_weight(module.weight), torch.float32)
        inject_lora(model, LoRAConfig(rank=2, target_modules=targets))
        generator = torch.Generator().manual_seed(0)
        for parameter in lora_parameters(model):
            parameter.data.normal_(std=0.1, generator=generator)
        model(INPUT_IDS).square().sum().backward()
        gradients.append([parameter.grad for parameter in lora_parameters(model)])
    for plain, small in zip(*gradients, strict=True):
        assert (plain - small).abs().max() <= 1e-5 * plain.abs().max()
    with pytest.raises(ValueError, match="cannot be merged into quantised weights"):
        merge_lora(model)


def test_a_quarter_of_the_memory(folder):
    def size(model):
        return sum(
            p.nbytes
            for name, p in model.named_parameters()
            if "layers" in name and "norm" not in name
        )

    assert size(load_model(folder, quantize="int8")) < 0.35 * size(load_model(folder))


def test_unknown_scheme_is_refused(folder):
    with pytest.raises(ValueError, match="quantize = 'int3': expected None or one of int8"):
        load_model(folder, quantize="int3")
