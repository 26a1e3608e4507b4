"""Choosing the next token by temperature and nucleus sampling."""

from dataclasses import dataclass

import torch
from torch import Tensor

from llama.errors import UserError

# A draw mostly hits one of this many tokens; sorting the whole vocabulary takes far longer.
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
    total = probabilities.sum(-1, dtype=torch.float64)
    chosen, certain = _sample_head(*_sort_ties_by_id(head, token_ids), total, uniform, top_p)
    if not certain.all():
        rest = ~certain
        every = probabilities[rest].sort(dim=-1, descending=True, stable=True)
        chosen[rest] = _invert(every.values, every.indices, uniform[rest], top_p)
    return chosen


def _sample_head(
    head: Tensor, token_ids: Tensor, total: Tensor, uniform: Tensor, top_p: float
) -> tuple[Tensor, Tensor]:
    """The tokens [N] that the draws [N] hit, and whether that is certain, knowing the head alone.

    [N, K] largest probabilities in falling order, their token ids, [N] sums of all probabilities.
    """
    least = head[:, -1:]
    complete = head > least  # of tokens as likely as the last, some may be missing
    is_whole_nucleus = torch.where(complete, head, 0).double().sum(-1) >= top_p
    chosen = _invert(head, token_ids, uniform, top_p)
    if is_whole_nucleus.all():
        return chosen, is_whole_nucleus
    # Else the nucleus ends beyond the head, with the token that reaches top_p or with the last of
    # all; its mass is known to one probability, none of which is larger than the head's last.
    lowest = total.clamp(max=top_p)
    highest = torch.minimum(total, top_p + least[:, 0].double())
    cumulative = head.double().cumsum(-1)
    places = [(cumulative <= (uniform * mass)[:, None]).sum(-1) for mass in (lowest, highest)]
    is_known = (places[0] == places[1]) & (places[1] < complete.sum(-1))
    place = places[0].clamp(max=head.shape[-1] - 1)
    hit = token_ids.gather(-1, place[:, None])[:, 0]
    return torch.where(is_whole_nucleus, chosen, hit), is_whole_nucleus | is_known


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
