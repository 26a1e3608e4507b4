"""Choosing the next token by temperature and nucleus sampling."""

from dataclasses import dataclass

import torch
from torch import Tensor

from llama.errors import UserError

# The nucleus of a sharp distribution fits into this many tokens; sorting the whole vocabulary takes
# far longer.
SORTED_HEAD = 256


@dataclass(frozen=True)
class Sampling:
    """Sampling settings. Temperature 0 is greedy; else nucleus sampling with `top_p`.

    Source: Holtzman et al. 2020, https://arxiv.org/abs/1904.09751. UserError if out of range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.temperature >= 0 and 0 < self.top_p <= 1):
            raise UserError(
                f"temperature = {self.temperature}, top_p = {self.top_p}: "
                "expected >= 0 and in (0, 1]"
            )


def sample(logits: Tensor, uniform: Tensor, temperature: float, top_p: float) -> Tensor:
    """Sample a token from each row by inverting the cumulative distribution.

    [N, V] logits and [N] draws in [0, 1) -> [N] int64.
    """
    unsorted = (logits.float() / temperature).softmax(-1)
    head = min(SORTED_HEAD, unsorted.shape[-1])
    probabilities, token_ids = unsorted.topk(head, dim=-1)
    if (probabilities.double().sum(-1) < top_p).any():
        probabilities, token_ids = unsorted.sort(descending=True, dim=-1)
    cumulative = probabilities.double().cumsum(-1)
    # The nucleus is the smallest set of tokens that reaches top_p: a token stays if those before it
    # fall short.
    nucleus = cumulative - probabilities < top_p
    mass = torch.where(nucleus, cumulative, 0).amax(-1, keepdim=True)
    place = (cumulative <= uniform[:, None] * mass).sum(-1, keepdim=True)
    place = torch.minimum(place, nucleus.sum(-1, keepdim=True) - 1)
    return token_ids.gather(-1, place).squeeze(-1)
