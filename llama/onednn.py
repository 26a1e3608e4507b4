"""Inference in float32 on a CPU with weights in the blocked layout of oneDNN's matrix product.

PyTorch's `linear` repacks a weight in every call: with few rows that costs as much as the product.
oneDNN can keep the packed weight, and apply SwiGLU's elementwise steps to a product before it
leaves the processor's cache. TorchInductor's freezing does the same, through the same operators.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from llama.model import Attention, Block, Decoder
from llama.private_ops import (
    has_packed_linear,
    pack_weight,
    packed_linear,
    packed_linear_silu,
    packed_linear_times,
)


class PackedLinear(nn.Module):
    """y = W x + b of one linear, or of several side by side, with W in packed form only.

    Meanwhile the linears have no `weight` (unless `keep`); `unpack` gives it back bit for bit.
    """

    def __init__(self, *linears: nn.Linear, keep: bool = False) -> None:
        super().__init__()
        self.linears = linears  # a tuple: no submodules
        self.sizes = [linear.out_features for linear in linears]
        weights = [linear.weight.detach() for linear in linears]
        biases = [linear.bias.detach() for linear in linears if linear.bias is not None]
        self.packed = pack_weight(torch.cat(weights) if len(weights) > 1 else weights[0])
        self.bias = torch.cat(biases) if biases else None
        self.keep = keep
        if not keep:
            for linear in linears:
                linear.register_parameter("weight", None)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out], or the outs of all linears side by side."""
        return packed_linear(x, self.packed, self.bias)

    def unpack(self) -> None:
        """Give every linear its weight again."""
        if self.keep:
            return
        parts = self.packed.to_dense().split(self.sizes)
        for linear, part in zip(self.linears, parts, strict=True):
            weight = part.clone() if len(parts) > 1 else part
            linear.weight = nn.Parameter(weight, requires_grad=False)


class PackedAttention(Attention):
    """Attention whose projections are packed, those to queries, keys and values as one."""

    def __init__(self, attention: Attention, qkv_proj: PackedLinear, o_proj: PackedLinear) -> None:
        nn.Module.__init__(self)  # not Attention's own: it would allocate weights
        for name, value in vars(attention).items():
            if not name.startswith("_"):  # what belongs to nn.Module
                setattr(self, name, value)
        self.q_norm, self.k_norm = attention.q_norm, attention.k_norm
        self.qkv_proj = qkv_proj
        self.add_module("o_proj", o_proj)

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.qkv_proj(x).split(self.qkv_proj.sizes, dim=-1)


class PackedMLP(nn.Module):
    """SwiGLU feed-forward whose activation is part of the products."""

    def __init__(self, gate: PackedLinear, up: PackedLinear, down: PackedLinear) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = gate, up, down

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, E] -> [B, T, E]."""
        gate = packed_linear_silu(x, self.gate_proj.packed, self.gate_proj.bias)
        hidden = packed_linear_times(x, gate, self.up_proj.packed, self.up_proj.bias)
        return self.down_proj(hidden)


@contextmanager
def prepacked(model: Decoder) -> Iterator[None]:
    """Within the block, packed modules stand in place of the model's plain frozen ones.

    Weights are held in packed form only, so no memory is added; an output head tied to the
    embedding is the exception, needed in both forms. Linears of another class (LoRA, quantised),
    another device or dtype, and trainable ones stay as they are. Afterwards every module and every
    weight is back, bit for bit.
    """
    with ExitStack() as undo:
        # Weights must not become inference tensors: training may go on with them.
        with torch.inference_mode(False):
            for block in model.blocks:
                _pack_attention(undo, block)
                _pack_mlp(undo, block)
            if can_be_packed(model.lm_head):
                tied = model.lm_head.weight is model.embedding
                packed = _pack(undo, model.lm_head, keep=tied)
                _put_in_place(undo, model, "lm_head", packed)
        yield


def can_be_packed(*linears: nn.Module) -> bool:
    """True if all are plain frozen linears in float32 on a CPU, and packing works here."""
    return all(type(linear) is nn.Linear and has_packable_weight(linear) for linear in linears)


def has_packable_weight(linear: nn.Linear) -> bool:
    """True for a whole (not sharded) frozen float32 weight on a CPU, if packing works here."""
    weight = linear.weight
    if type(weight) is not nn.Parameter or weight.requires_grad:
        return False
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and has_packed_linear()


def _pack_attention(undo: ExitStack, block: Block) -> None:
    attention = block.self_attn
    projections = attention.q_proj, attention.k_proj, attention.v_proj
    if can_be_packed(*projections, attention.o_proj):
        qkv_proj, o_proj = _pack(undo, *projections), _pack(undo, attention.o_proj)
        _put_in_place(undo, block, "self_attn", PackedAttention(attention, qkv_proj, o_proj))


def _pack_mlp(undo: ExitStack, block: Block) -> None:
    mlp = block.mlp
    linears = mlp.gate_proj, mlp.up_proj, mlp.down_proj
    if can_be_packed(*linears):
        _put_in_place(undo, block, "mlp", PackedMLP(*[_pack(undo, each) for each in linears]))


def _pack(undo: ExitStack, *linears: nn.Linear, keep: bool = False) -> PackedLinear:
    packed = PackedLinear(*linears, keep=keep)
    undo.callback(_unpack, packed)
    return packed


def _unpack(packed: PackedLinear) -> None:
    with torch.inference_mode(False):
        packed.unpack()


def _put_in_place(undo: ExitStack, parent: nn.Module, name: str, module: nn.Module) -> None:
    undo.callback(setattr, parent, name, getattr(parent, name))
    setattr(parent, name, module.train(parent.training))
