"""Frozen linears with 8-bit weights and one float32 scale for each output channel.

Source: absmax quantisation, Dettmers et al. 2022, section 2, https://arxiv.org/abs/2208.07339.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SCHEMES = ("int8",)


def quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round each row to multiples of its largest magnitude / 127.

    [out, in] -> int8 [out, in] and float32 scales [out, 1].
    """
    wide = weight.float()
    scale = wide.abs().amax(dim=1, keepdim=True) / 127
    scale = scale.clamp_min(torch.finfo(torch.float32).tiny)
    return (wide / scale).round().to(torch.int8), scale


def dense_weight(weight: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The weight matrix in `dtype`. `scale` is None if `weight` is not quantised."""
    if scale is None:
        return weight.to(dtype)
    return weight.to(dtype).mul_(scale.to(dtype))


class QuantizedLinear(nn.Linear):
    """y = W x + b with `weight` int8 [out, in] and `weight_scale` float32 [out, 1].

    Only `x` has a gradient.
    """

    def __init__(
        self, weight: Tensor, weight_scale: Tensor, bias: nn.Parameter | None = None
    ) -> None:
        nn.Module.__init__(self)  # not Linear's own: it would allocate a float weight
        self.out_features, self.in_features = weight.shape
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.weight_scale = nn.Parameter(weight_scale, requires_grad=False)
        self.register_parameter("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out], in the dtype of `x`."""
        return _Product.apply(x, self.weight, self.weight_scale, self.bias)


class _Product(torch.autograd.Function):
    """A product whose dense weight is formed again in backward.

    Autograd would keep the dense weight of every layer until then.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight, scale)
        bias = None if bias is None else bias.to(x.dtype)
        return F.linear(x, dense_weight(weight, scale, x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        weight, scale = ctx.saved_tensors
        return grad @ dense_weight(weight, scale, grad.dtype), None, None, None


def quantize_linears(model: nn.Module) -> None:
    """Replace every linear in the decoder's blocks by a `QuantizedLinear` with empty weights.

    `load_model` fills them in. Embedding and output head stay as they are: they are often one
    matrix, and rounding the head costs most.
    """
    for name, linear in list(model.named_modules()):
        if not isinstance(linear, nn.Linear) or not name.startswith("model.layers."):
            continue
        weight = torch.empty_like(linear.weight, dtype=torch.int8)
        scale = torch.empty(len(weight), 1, device=weight.device)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, QuantizedLinear(weight, scale, linear.bias))
