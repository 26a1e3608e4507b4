"""One linear layer with a trainable low-rank update: y = W x + (alpha / rank) B A dropout(x).

A frozen weight takes part in two products a token, forward and backward to the input. Nothing is
kept for the backward pass but the input, and not even that where it is cheap to make again (see
`recompute_activations_in_backward`).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llama.errors import UserError
from llama.onednn import has_packable_weight
from llama.private_ops import packed_linear
from llama.quantization import dense_weight

ATTENTION_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP_LINEARS = ("gate_proj", "up_proj", "down_proj")
ALL_LINEARS = (*ATTENTION_LINEARS, *MLP_LINEARS)
# Short names for the command line.
TARGET_ALIASES = {"all": ALL_LINEARS, "attention": ATTENTION_LINEARS, "mlp": MLP_LINEARS}


@dataclass(frozen=True)
class LoRAConfig:
    """The adapted linears and their rank, scale and dropout; the update is scaled by `alpha /
    rank`.

    UserError for a rank, alpha or dropout out of range, or no target.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    target_modules: tuple[str, ...] = ALL_LINEARS

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0 or not 0 <= self.dropout < 1:
            raise UserError(
                f"rank = {self.rank}, alpha = {self.alpha}, dropout = {self.dropout}: "
                "expected rank >= 1, alpha > 0 and 0 <= dropout < 1"
            )
        if not self.target_modules:
            raise UserError("target_modules is empty: name at least one linear layer")


@dataclass(frozen=True)
class Recompute:
    """The way to form a layer's input again: `output` is what `function(*inputs)` returned.

    `inputs` are detached. They are saved for backward in place of `output`.
    """

    function: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]
    output: Tensor


class LowRankLinear(torch.autograd.Function):
    """The product of a frozen weight and its low-rank update, with hand-written gradients.

    x [..., in], weight [out, in] and bias, A [rank, in], B [out, rank] -> [..., out] in the dtype
    of `x`.

    `weight_scale` is None unless the weight is quantised; `packed` is None or the weight and its
    transpose, packed, and `weight` is None then. With `recompute`, backward forms `x` again and
    only what it is made from is saved. `dropout_mask` [..., in] bool is true where dropout leaves a
    value; `scaling` includes what makes up for the others. Products with A and B are written so
    that the short side is the number of rows: BLAS is up to five times slower the other way.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        weight_scale: Tensor | None,
        packed: tuple[Tensor, Tensor] | None,
        bias: Tensor | None,
        A: Tensor,
        B: Tensor,
        dropout_mask: Tensor | None,
        scaling: float,
        recompute: Recompute | None,
    ) -> Tensor:
        ctx.function = recompute.function if recompute else None
        inputs = recompute.inputs if recompute else (x,)
        ctx.scaling, ctx.packed = scaling, packed
        bias = None if bias is None else bias.to(x.dtype)
        if packed:
            out = packed_linear(x, packed[0], bias)
        else:
            assert weight is not None
            out = F.linear(x, dense_weight(weight, weight_scale, x.dtype), bias)
        low_A, low_B = A.to(x.dtype), B.to(x.dtype)
        low_rank = _rows(_drop(x, dropout_mask)) @ low_A.T
        _rows(out).addmm_(low_rank, low_B.T, alpha=scaling)
        ctx.dtype = A.dtype
        ctx.save_for_backward(weight, weight_scale, low_A, low_B, dropout_mask, low_rank, *inputs)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, weight_scale, low_A, low_B, dropout_mask, low_rank, *inputs = ctx.saved_tensors
        x = ctx.function(*inputs) if ctx.function else inputs[0]
        grad = grad.to(x.dtype)
        rows, dropped = _rows(grad), _rows(_drop(x, dropout_mask))
        grad_low = _scaled_product(low_B.T, rows.T, ctx.scaling)  # [rank, N]
        grad_A = (grad_low @ dropped).to(ctx.dtype)
        if rows.is_cuda:
            grad_B = _scaled_product(low_rank.T, rows, ctx.scaling).T.to(ctx.dtype)
        else:
            grad_B = ((low_rank * ctx.scaling).T @ rows).T.to(ctx.dtype)
        grad_x = None
        if ctx.needs_input_grad[0]:  # not so in the first block: embeddings are frozen
            if ctx.packed:
                grad_x = packed_linear(rows, ctx.packed[1]).view(x.shape)
            else:
                grad_x = (rows @ dense_weight(weight, weight_scale, x.dtype)).view(x.shape)
            through_low_rank = _rows(grad_x)
            if dropout_mask is None:
                through_low_rank.addmm_(grad_low.T, low_A)
            else:
                through_low_rank += _drop(grad_low.T @ low_A, _rows(dropout_mask))
        return grad_x, None, None, None, None, grad_A, grad_B, None, None, None


def _scaled_product(left: Tensor, right: Tensor, scaling: float) -> Tensor:
    """`left @ right` times `scaling`; on CUDA in one kernel."""
    if not left.is_cuda:
        return (left @ right) * scaling
    nothing = left.new_empty(1)  # `beta` leaves it out, whatever it holds
    return torch.addmm(nothing, left, right, beta=0, alpha=scaling)


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _drop(x: Tensor, dropout_mask: Tensor | None) -> Tensor:
    return x if dropout_mask is None else x * dropout_mask


class LoRALinear(nn.Linear):
    """A frozen linear, its `weight` and `bias` under their names, with float32 `lora_A`, `lora_B`.

    `lora_A` [rank, in] starts Kaiming-uniform and `lora_B` [out, rank] at zero, so a fresh layer
    changes nothing.
    """

    def __init__(self, linear: nn.Linear, config: LoRAConfig) -> None:
        nn.Module.__init__(self)  # not Linear's own: it would allocate a second weight
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.weight_scale = getattr(linear, "weight_scale", None)  # of a QuantizedLinear
        self.packed: tuple[Tensor, Tensor] | None = None  # see lora/onednn.py
        self.recompute: Recompute | None = None  # of the next input, see lora/recompute.py
        self.config = config
        self.scale = 1.0  # set_lora_scale changes it
        self.enabled = True
        device = linear.weight.device
        self.lora_A = nn.Parameter(
            torch.empty(config.rank, self.in_features, dtype=torch.float32, device=device)
        )
        self.lora_B = nn.Parameter(
            torch.zeros(self.out_features, config.rank, dtype=torch.float32, device=device)
        )
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self.train(linear.training)

    @property
    def scaling(self) -> float:
        return self.scale * self.config.alpha / self.config.rank

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out], in the dtype of `x`, or autocast's where that is on."""
        recompute, self.recompute = self.recompute, None  # good for one call
        assert recompute is None or recompute.output is x, "not what the module before returned"
        device_type = x.device.type
        if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
            dtype = torch.get_autocast_dtype(device_type)
            if x.dtype != dtype:
                recompute, x = None, x.to(dtype)  # what is saved is the cast input
        if not self.enabled and self.packed:
            return packed_linear(x, self.packed[0], self.bias)
        if not self.enabled:
            return F.linear(x, dense_weight(self.weight, self.weight_scale, x.dtype), self.bias)
        dropout_mask, scaling = None, self.scaling
        if self.training and self.config.dropout:
            kept_share = 1 - self.config.dropout
            dropout_mask = torch.empty(x.shape, dtype=torch.bool, device=x.device)
            dropout_mask.bernoulli_(kept_share)
            scaling /= kept_share
        return LowRankLinear.apply(
            x,
            self.weight,
            self.weight_scale,
            self.packed,
            self.bias,
            self.lora_A,
            self.lora_B,
            dropout_mask,
            scaling,
            recompute,
        )

    def can_be_packed(self) -> bool:
        """True for a plain frozen float32 weight on a CPU, if packing works here."""
        return self.weight_scale is None and has_packable_weight(self)

    def merged(self) -> nn.Linear:
        """A plain linear with the update added, rounded once from float32 to the weight's dtype.

        UserError if the weight is quantised: most of an update is smaller than a step of 8 bits.
        """
        if self.weight_scale is not None:
            raise UserError(
                "an adapter cannot be merged into quantised weights; load the model without "
                "quantize"
            )
        linear = nn.Linear(
            self.in_features, self.out_features, bias=self.bias is not None, device="meta"
        )
        update = self.scaling * (self.lora_B @ self.lora_A)
        weight = (self.weight.float() + update).to(self.weight.dtype).detach()
        linear.weight = nn.Parameter(weight, requires_grad=False)
        linear.bias = self.bias
        return linear.train(self.training)
