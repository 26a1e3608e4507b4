"""Choosing the next token by temperature and nucleus sampling."""

from dataclasses import dataclass

import torch
from torch import Tensor

from llama.errors import UserError

# The nucleus of a sharp distribution fits into this many tokens; sorting the whole vocabulary takes
# far longer.
SORTED_HEAD = 256
SMALLEST_TEMPERATURE = torch.finfo(torch.float32).tiny
# What seeds a prompt's random numbers beside the seed: its place, or (place, sample).
SeedIndex = int | tuple[int, ...]


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

    @property
    def is_greedy(self) -> bool:
        """True for temperature 0, or one so small that float32 cannot tell it from 0."""
        return self.temperature < SMALLEST_TEMPERATURE


def sample(logits: Tensor, uniform: Tensor, temperature: float, top_p: float) -> Tensor:
    """Sample a token from each row by inverting the cumulative distribution.

    [N, V] logits and [N] draws in [0, 1) -> [N] int64. Tokens are taken in the order of their
    probability, equally likely ones in that of their ids: a row's token depends on no other row.
    """
    wide = logits.float()
    scaled = (wide - wide.amax(-1, keepdim=True)) / temperature  # at most 0: it cannot overflow
    probabilities = scaled.softmax(-1)
    head, token_ids = probabilities.topk(min(SORTED_HEAD, probabilities.shape[-1]), dim=-1)
    chosen = _invert(*_sort_ties_by_id(head, token_ids), uniform, top_p)
    # Of tokens as likely as the least likely one of the head, some may be missing in it.
    surely_complete = torch.where(head > head[:, -1:], head, 0).double().sum(-1) >= top_p
    if not surely_complete.all():
        beyond = ~surely_complete
        every = probabilities[beyond].sort(dim=-1, descending=True, stable=True)
        chosen[beyond] = _invert(every.values, every.indices, uniform[beyond], top_p)
    return chosen


def _sort_ties_by_id(probabilities: Tensor, token_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Sort [N, K] probabilities, falling, and their token ids, rising among equal probabilities."""
    token_ids, by_id = token_ids.sort(dim=-1)
    falling = probabilities.gather(-1, by_id).sort(dim=-1, descending=True, stable=True)
    return falling.values, token_ids.gather(-1, falling.indices)


def _invert(probabilities: Tensor, token_ids: Tensor, uniform: Tensor, top_p: float) -> Tensor:
    """The token ids at which the cumulative nucleus distribution passes the draws `uniform`.

    [N, K] probabilities in falling order, their token ids, [N] draws -> [N] int64.
    """
    cumulative = probabilities.double().cumsum(-1)
    # The nucleus is the smallest set of tokens that reaches top_p: a token stays if those before it
    # fall short.
    nucleus = cumulative - probabilities < top_p
    mass = torch.where(nucleus, cumulative, 0).amax(-1, keepdim=True)
    place = (cumulative <= uniform[:, None] * mass).sum(-1, keepdim=True)
    last = (nucleus.sum(-1, keepdim=True) - 1).clamp_min(0)  # no nucleus in a row of NaN
    return token_ids.gather(-1, torch.minimum(place, last)).squeeze(-1)
