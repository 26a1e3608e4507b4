"""Batches of texts of like length for one forward pass, padded on the right.

Causal attention never looks to the right, so padding changes nothing.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

PADDING_ID = 0


def batches_by_length(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Yield batches of indices, longest text first, of at most `max_tokens` tokens with padding.

    A text longer than that is a batch of its own.
    """
    batch: list[int] = []
    longest_first = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    for index in longest_first:
        if batch and (len(batch) + 1) * lengths[batch[0]] > max_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def pad(texts: Sequence[Sequence[int]], device: torch.device | str) -> Tensor:
    """Token ids of B texts as [B, longest] int64, padded on the right."""
    longest = max(map(len, texts))
    padded = [[*text, *[PADDING_ID] * (longest - len(text))] for text in texts]
    return torch.tensor(padded, device=device)
