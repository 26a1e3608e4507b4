"""Inference in float32 on a CPU with weights in the blocked layout of oneDNN's matrix product.

PyTorch's `linear` repacks a weight in every call: with few rows that costs as much as the product. oneDNN can keep the
packed weight, and apply SwiGLU's elementwise steps to a product before it leaves the processor's cache. TorchInductor's
freezing does the same, through the same operators.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from llama.model import MLP, Attention, Decoder

ROWS = 64  # the layout is chosen for about so many rows; any number is exact


@contextmanager
def prepacked(model: Decoder) -> Iterator[None]:
    """Within the block, the model's plain linears use packed copies of their weights, where that is faster.

    The copies cost as much memory as the weights. Weights must not change within the block. Linears of another class
    (LoRA, quantised), another device or dtype stay as they are.
    """
    changed: list[tuple[nn.Module, str]] = []

    def replace(module: nn.Module, name: str, function: partial) -> None:
        setattr(module, name, function)
        changed.append((module, name))

    for module in model.modules():
        if type(module) is MLP and _all_plain(module.gate_proj, module.up_proj, module.down_proj):
            weights = [(_pack(linear.weight), linear.bias) for linear in (module.gate_proj, module.up_proj)]
            replace(module, "activate", partial(_swiglu, *weights))
            down = module.down_proj
            replace(down, "forward", partial(_linear, _pack(down.weight), down.bias))
        elif type(module) is Attention and _all_plain(module.q_proj, module.k_proj, module.v_proj, module.o_proj):
            linears = module.q_proj, module.k_proj, module.v_proj
            weight = torch.cat([linear.weight for linear in linears])
            bias = None if linears[0].bias is None else torch.cat([linear.bias for linear in linears])
            sizes = [linear.out_features for linear in linears]
            replace(module, "project", partial(_projections, _pack(weight), bias, sizes))
            replace(module.o_proj, "forward", partial(_linear, _pack(module.o_proj.weight), module.o_proj.bias))
    if _all_plain(model.lm_head):
        replace(model.lm_head, "forward", partial(_linear, _pack(model.lm_head.weight), None))
    try:
        yield
    finally:
        for module, name in changed:
            delattr(module, name)


def _all_plain(*linears: nn.Module) -> bool:
    return torch.backends.mkldnn.is_available() and all(
        type(linear) is nn.Linear and linear.weight.device.type == "cpu" and linear.weight.dtype == torch.float32
        for linear in linears
    )


def _pack(weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS)


def _linear(weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _projections(weight: Tensor, bias: Tensor | None, sizes: list[int], x: Tensor) -> tuple[Tensor, ...]:
    return _linear(weight, bias, x).split(sizes, dim=-1)


def _swiglu(gate: tuple[Tensor, Tensor | None], up: tuple[Tensor, Tensor | None], x: Tensor) -> Tensor:
    activated = torch.ops.mkldnn._linear_pointwise(x, *gate, "swish", [], "")
    return torch.ops.mkldnn._linear_pointwise(x, activated, *up, "mul")
