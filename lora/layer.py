"""One linear layer with a trainable low-rank update: y = W x + (alpha / rank) B A dropout(x)."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
ALL_LINEARS = (*ATTENTION, *MLP)
TARGETS = {"all": ALL_LINEARS, "attention": ATTENTION, "mlp": MLP}  # short names for the command line


@dataclass(frozen=True)
class LoRAConfig:
    """Which linears are adapted and how; the update is scaled by `alpha / rank`."""

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    target_modules: tuple[str, ...] = ALL_LINEARS

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0 or not 0 <= self.dropout < 1:
            raise ValueError(
                f"rank = {self.rank}, alpha = {self.alpha}, dropout = {self.dropout}: "
                "expected rank >= 1, alpha > 0 and 0 <= dropout < 1"
            )
        if not self.target_modules:
            raise ValueError("target_modules is empty: name at least one linear layer")


class LoRALinear(nn.Linear):
    """A frozen linear (its `weight` and `bias`, under their old names) with float32 `lora_A` and `lora_B`.

    `lora_A` [rank, in] starts Kaiming-uniform and `lora_B` [out, rank] at zero, so a fresh layer changes nothing.
    """

    def __init__(self, linear: nn.Linear, config: LoRAConfig) -> None:
        nn.Module.__init__(self)  # not Linear's own: it would allocate a second weight
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.config = config
        self.scale = 1.0  # set_lora_scale changes it
        self.enabled = True
        device = linear.weight.device
        self.lora_A = nn.Parameter(torch.empty(config.rank, self.in_features, dtype=torch.float32, device=device))
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, config.rank, dtype=torch.float32, device=device))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self.train(linear.training)

    @property
    def scaling(self) -> float:
        return self.scale * self.config.alpha / self.config.rank

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out], in the dtype of `x`."""
        out = F.linear(x, self.weight, self.bias)
        if not self.enabled:
            return out
        dropped = F.dropout(x, self.config.dropout, self.training)
        low_rank = F.linear(dropped, self.lora_A.to(x.dtype))
        return out + F.linear(low_rank * self.scaling, self.lora_B.to(x.dtype))

    def merged(self) -> nn.Linear:
        """A plain linear with the update added, formed in float32 and rounded once to the weight's dtype."""
        linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        update = self.scaling * (self.lora_B @ self.lora_A)
        weight = (self.weight.float() + update).to(self.weight.dtype).detach()
        linear.weight = nn.Parameter(weight, requires_grad=False)
        linear.bias = self.bias
        return linear.train(self.training)
