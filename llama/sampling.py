"""How the next token is chosen when decoding is not greedy."""

from dataclasses import dataclass

import torch
from torch import Tensor

from llama.errors import UserError

# tokens that the nucleus of a sharp distribution fits into; sorting the whole vocabulary takes far
# longer
HEAD = 256


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Temperature 0 is greedy; else nucleus sampling (Holtzman et al.
    2020).
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.temperature >= 0 and 0 < self.top_p <= 1):
            raise UserError(
                f"temperature = {self.temperature}, top_p = {self.top_p}: expected >= 0 and in (0, 1]"
            )


def sample(logits: Tensor, uniform: Tensor, temperature: float, top_p: float) -> Tensor:
    """Nucleus sampling by inverting the cumulative distribution: [N, V] logits, [N] draws in [0, 1)
    -> [N] int64.
    """
    unsorted = (logits.float() / temperature).softmax(-1)
    probabilities, order = unsorted.topk(min(HEAD, unsorted.shape[-1]), dim=-1)
    if (probabilities.double().sum(-1) < top_p).any():
        probabilities, order = unsorted.sort(descending=True, dim=-1)
    cumulative = probabilities.double().cumsum(-1)
    # The nucleus is the smallest set of tokens that reaches top_p: a token stays if those before it
    # fall short.
    nucleus = cumulative - probabilities < top_p
    mass = torch.where(nucleus, cumulative, 0).amax(-1, keepdim=True)
    chosen = (cumulative <= uniform[:, None] * mass).sum(-1, keepdim=True)
    chosen = torch.minimum(chosen, nucleus.sum(-1, keepdim=True) - 1)
    return order.gather(-1, chosen).squeeze(-1)
