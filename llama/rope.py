"""Rotary position embedding with Llama 3's frequency scaling, in the split-half layout.

Source: Su et al. 2021, https://arxiv.org/abs/2104.09864.
"""

import math

import torch
from torch import Tensor

from llama.config import ModelConfig


def inverse_frequencies(config: ModelConfig, device: torch.device | str | None = None) -> Tensor:
    """Return the angular frequency of each pair of dimensions, in radians a position.

    The result is [head_dim / 2] float32. Llama 3.1 scales them for contexts beyond
    `original_max_position_embeddings`. Wavelengths above original / low_freq_factor grow `factor`
    times, those below original / high_freq_factor stay, and in between the two frequencies are
    blended.
    """
    rope = config.rope
    dimensions = torch.arange(0, config.head_dim, 2, dtype=torch.int64, device=device)
    frequencies = 1.0 / (rope.theta ** (dimensions.float() / config.head_dim))
    if rope.rope_type == "default":
        return frequencies
    wavelengths = 2 * math.pi / frequencies
    rotations = rope.original_max_position_embeddings / wavelengths  # within the original context
    width = rope.high_freq_factor - rope.low_freq_factor
    unscaled_share = ((rotations - rope.low_freq_factor) / width).clamp(0, 1)
    return (1 - unscaled_share) * frequencies / rope.factor + unscaled_share * frequencies


def rotary_tables(
    config: ModelConfig, positions: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return the cosines and sines of the rotation angles, computed in float32 and cast to `dtype`.

    `positions` [...] int64 -> two [..., 1, head_dim]. The dimension of size 1 broadcasts over
    heads. The first half of the sines is negated, as `rotate` needs it.
    """
    frequencies = inverse_frequencies(config, positions.device)
    angles = (positions[..., None].float() * frequencies).unsqueeze(-2)  # [..., 1, head_dim / 2]
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), dim=-1).to(dtype), torch.cat((-sin, sin), dim=-1).to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (i, i + head_dim / 2) of `x` by the angles of `rotary_tables`.

    `x` is [..., heads, head_dim].
    """
    return (x * cos).add_(x.roll(x.shape[-1] // 2, dims=-1).mul_(sin))
