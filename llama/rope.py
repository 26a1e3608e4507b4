"""Rotary position embedding (Su et al. 2021) with Llama 3's frequency scaling, in the split-half
layout.
"""

import math

import torch
from torch import Tensor

from llama.config import ModelConfig


def inverse_frequencies(config: ModelConfig, device: torch.device | str | None = None) -> Tensor:
    """One angular frequency for each pair of dimensions: [head_dim / 2] float32, radians a
    position.

    Llama 3.1 stretches the slow ones so that contexts beyond `original_max_position_embeddings`
    look familiar: wavelengths above original / low_freq_factor are lengthened `factor` times, those
    below original / high_freq_factor stay, and in between the two are blended.
    """
    rope = config.rope
    exponents = (
        torch.arange(0, config.head_dim, 2, dtype=torch.int64, device=device).float()
        / config.head_dim
    )
    frequencies = 1.0 / (rope.theta**exponents)
    if rope.rope_type == "default":
        return frequencies
    wavelengths = 2 * math.pi / frequencies
    turns = (
        rope.original_max_position_embeddings / wavelengths
    )  # full rotations within the original context
    kept = ((turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)).clamp(
        0, 1
    )
    return (1 - kept) * frequencies / rope.factor + kept * frequencies


def rotary_tables(
    config: ModelConfig, positions: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Cosines and sines for `positions` [...] int64: two [..., 1, head_dim], formed in float32 and
    cast to `dtype`.

    The extra dimension broadcasts over heads; the first half of the sines is negated, as `rotate`
    needs it.
    """
    angles = (
        positions[..., None].float() * inverse_frequencies(config, positions.device)
    ).unsqueeze(-2)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), dim=-1).to(dtype), torch.cat((-sin, sin), dim=-1).to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (i, i + head_dim / 2) of `x` [..., heads, head_dim] by the angles of
    `rotary_tables`.
    """
    return (x * cos).add_(x.roll(x.shape[-1] // 2, dims=-1).mul_(sin))
