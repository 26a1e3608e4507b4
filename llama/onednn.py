"""Inference in float32 on a CPU with weights in the blocked layout of oneDNN's matrix product.

PyTorch's `linear` repacks a weight in every call: with few rows that costs as much as the product.
oneDNN can keep the packed weight, and apply SwiGLU's elementwise steps to a product before it
leaves the processor's cache. TorchInductor's freezing does the same, through the same operators.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from llama.model import MLP, Attention, Decoder

ROWS = 64  # the layout is chosen for about so many rows; any number is exact

Packed = tuple[Tensor, Tensor | None]  # weight and bias


@contextmanager
def prepacked(model: Decoder) -> Iterator[None]:
    """Within the block, the model's plain linears hold their weights in packed form only, so no
    memory is added.

    An output head tied to the embedding is the exception: it is needed in both forms. Linears of
    another class (LoRA, quantised), another device or dtype stay as they are. Afterwards every
    weight is back, bit for bit.
    """
    with ExitStack() as undo:
        with torch.inference_mode(
            False
        ):  # a weight must not become an inference tensor: training goes on with it
            for module in model.modules():
                if isinstance(module, MLP) and _all_plain(
                    module.gate_proj, module.up_proj, module.down_proj
                ):
                    gate, up = _pack(undo, module.gate_proj), _pack(undo, module.up_proj)
                    _replace(undo, module, "activate", partial(_swiglu, gate, up))
                    _replace(
                        undo,
                        module.down_proj,
                        "forward",
                        partial(_linear, _pack(undo, module.down_proj)),
                    )
                elif isinstance(module, Attention):
                    linears = module.q_proj, module.k_proj, module.v_proj
                    if not _all_plain(*linears, module.o_proj):
                        continue
                    sizes = [linear.out_features for linear in linears]
                    _replace(
                        undo, module, "project", partial(_projections, _pack(undo, *linears), sizes)
                    )
                    _replace(
                        undo, module.o_proj, "forward", partial(_linear, _pack(undo, module.o_proj))
                    )
            if _all_plain(model.lm_head):
                tied = model.lm_head.weight is model.model["embed_tokens"].weight
                _replace(
                    undo,
                    model.lm_head,
                    "forward",
                    partial(_linear, _pack(undo, model.lm_head, keep=tied)),
                )
        yield


def pack(weight: Tensor) -> Tensor:
    """[out, in] float32 on the CPU, in the layout that `packed_linear` takes."""
    return torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)


def packed_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """[..., in] -> [..., out] with a weight that `pack` returned."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _all_plain(*linears: nn.Module) -> bool:
    return torch.backends.mkldnn.is_available() and all(
        type(linear) is nn.Linear
        and linear.weight.device.type == "cpu"
        and linear.weight.dtype == torch.float32
        for linear in linears
    )


def _replace(undo: ExitStack, module: nn.Module, name: str, function: Callable) -> None:
    setattr(module, name, function)
    undo.callback(delattr, module, name)


def _pack(undo: ExitStack, *linears: nn.Linear, keep: bool = False) -> Packed:
    """Weights of one linear, or of several side by side, packed; unless kept, the plain ones are
    let go meanwhile.
    """
    weights = [linear.weight.detach() for linear in linears]
    packed = pack(torch.cat(weights) if len(weights) > 1 else weights[0])
    if not keep:
        undo.callback(_unpack, packed, linears)
        for linear in linears:
            linear.weight.data = torch.empty(0)
    biases = [linear.bias.detach() for linear in linears if linear.bias is not None]
    return packed, torch.cat(biases) if biases else None


def _unpack(packed: Tensor, linears: tuple[nn.Linear, ...]) -> None:
    with torch.inference_mode(False):
        parts = packed.to_dense().split([linear.out_features for linear in linears])
        for linear, part in zip(linears, parts, strict=True):
            linear.weight.data = part.clone() if len(parts) > 1 else part


def _linear(packed: Packed, x: Tensor) -> Tensor:
    return packed_linear(x, *packed)


def _projections(packed: Packed, sizes: list[int], x: Tensor) -> tuple[Tensor, ...]:
    return _linear(packed, x).split(sizes, dim=-1)


def _swiglu(gate: Packed, up: Packed, x: Tensor) -> Tensor:
    activated = torch.ops.mkldnn._linear_pointwise(x, *gate, "swish", [], "")
    return torch.ops.mkldnn._linear_pointwise(x, activated, *up, "mul")
