"""Texts of different lengths in one forward pass: sorted by length, padded on the right.

Causal attention never looks at what stands to the right, so padding changes nothing, and between
texts of like length there is little of it.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


def batches_by_length(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Indices in batches of at most `max_tokens` tokens, padding included (a longer text alone),
    longest first.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > max_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def pad(rows: Sequence[Sequence[int]], device: torch.device | str) -> Tensor:
    """Token ids as [B, longest] int64, zeros to the right of each row."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=device)
