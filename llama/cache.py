"""The key/value cache: the shared prefix of all prompts once, and a slot for each sequence.

Shapes: L layers, S slots, H query heads, K key/value heads, G = H / K query heads per key/value
head, D head_dim, P prefix tokens, C capacity of a slot in tokens.
"""

import math
import mmap
from contextlib import suppress
from typing import NamedTuple

import torch
from torch import Tensor

from llama.config import ModelConfig


def bytes_per_token(config: ModelConfig, dtype: torch.dtype) -> int:
    """Memory of one token's keys and values in all layers, in bytes."""
    numbers = config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    return 2 * numbers * dtype.itemsize


class KVCache:
    """Preallocated keys and values of `slots` sequences of up to `capacity` tokens, and a prefix.

    `keys` and `values` are [L, S, K, C, D], `prefix_keys` and `prefix_values` [L, K, P, D].
    """

    def __init__(
        self,
        config: ModelConfig,
        slots: int,
        capacity: int,
        prefix_length: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        layers, kv_heads = config.num_hidden_layers, config.num_key_value_heads
        own = (layers, slots, kv_heads, capacity, config.head_dim)
        prefix = (layers, kv_heads, prefix_length, config.head_dim)
        self.keys = _zeros(own, dtype, device)
        self.values = _zeros(own, dtype, device)
        self.prefix_keys = _zeros(prefix, dtype, device)
        self.prefix_values = _zeros(prefix, dtype, device)
        self.slots, self.capacity, self.prefix_length = slots, capacity, prefix_length
        self.groups = config.num_attention_heads // kv_heads  # G
        # Of a layer's keys and values, seen as [S * K * C, D]: the first row of each slot and head.
        heads = torch.arange(slots * kv_heads, device=device).view(slots, kv_heads)
        self.first_rows = heads * capacity  # [S, K] int64

    def places(self, slots: Tensor, offsets: Tensor) -> Tensor:
        """The rows of a layer's keys and values, seen as [S * K * C, D], of tokens in slots.

        Two [...] int64 -> [..., K] int64.
        """
        return self.first_rows[slots] + offsets[..., None]

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` tokens' keys and values of one slot to another."""
        self.keys[:, target, :, :length] = self.keys[:, source, :, :length]
        self.values[:, target, :, :length] = self.values[:, source, :, :length]


class Segment(NamedTuple):
    """`length` tokens of one sequence in a forward pass, the first at place `start` of `slot`."""

    slot: int
    start: int
    length: int


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """Zeros, since masked values must be finite. On a CPU, untouched pages never take memory."""
    size = math.prod(shape) * dtype.itemsize
    if torch.device(device).type != "cpu" or not size:
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.frombuffer(_small_pages(size), dtype=dtype).view(shape)


def _small_pages(size: int) -> mmap.mmap:
    """Memory of `size` bytes, all 0, in pages that are not huge. MemoryError if there is none.

    A huge page holds the slots of many sequences: the first of them would take memory for all.
    """
    if not hasattr(mmap, "MAP_ANONYMOUS"):  # Windows
        return mmap.mmap(-1, size)
    try:
        pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"no {size / 2**30:.3f} GiB for the key/value cache") from error
    if hasattr(mmap, "MADV_NOHUGEPAGE"):  # Linux
        with suppress(OSError):  # a kernel without huge pages
            pages.madvise(mmap.MADV_NOHUGEPAGE)
    return pages
