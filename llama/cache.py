"""The key/value cache: the shared prefix of all prompts once, and a slot for each sequence.

Shapes: L layers, S slots, H query heads, K key/value heads, G = H / K query heads per key/value
head, D head_dim, P prefix tokens, C capacity of a slot in tokens, N tokens of one forward pass, R
sequences attended together, W tokens of each, M keys.

A forward pass carries a flat list of tokens. All of them attend to the shared prefix in one
product, and each attends to its own slot. The logarithms of both softmax sums merge the two results
exactly (online softmax, Milakov & Gimelshein 2018, https://arxiv.org/abs/1805.02867).
"""

import math
import mmap
from collections import abc
from contextlib import suppress
from typing import NamedTuple

import torch
from torch import Tensor

from llama.attention import attention_with_log_sum, causal_bias
from llama.config import ModelConfig
from llama.private_ops import flash_attention

# At or below this many query rows plain matmuls beat CPU flash attention.
FEW_QUERIES = 16
# Sequences attended together are computed to the longest of them: few enough to differ little.
SEQUENCES_PER_PART = 16


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

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` tokens' keys and values of one slot to another."""
        self.keys[:, target, :, :length] = self.keys[:, source, :, :length]
        self.values[:, target, :, :length] = self.values[:, source, :, :length]


class Segment(NamedTuple):
    """`length` tokens of one sequence in a forward pass, the first at place `start` of `slot`."""

    slot: int
    start: int
    length: int


class PrefixAttention:
    """Attention of a forward pass over tokens `start` .. `start + length` of the shared prefix."""

    def __init__(self, cache: KVCache, start: int, length: int) -> None:
        self.cache, self.start, self.length = cache, start, length
        self.positions = torch.arange(start, start + length, device=cache.keys.device)

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Store keys and values and attend to the prefix so far.

        [1, N, H, D] queries and [1, N, K, D] keys and values -> [1, N, H, D].
        """
        end = self.start + self.length
        prefix_keys, prefix_values = self.cache.prefix_keys[layer], self.cache.prefix_values[layer]
        prefix_keys[:, self.start : end] = keys[0].transpose(0, 1)
        prefix_values[:, self.start : end] = values[0].transpose(0, 1)
        bias = causal_bias(self.positions[:1], self.length, end, self.cache.groups, queries)
        keys_so_far, values_so_far = prefix_keys[None, :, :end], prefix_values[None, :, :end]
        out, _ = _attend(queries[0], 1, keys_so_far, values_so_far, bias)
        return out[None]


class StepAttention:
    """Attention of one engine step over the tokens of `segments`, in the order of their slots."""

    def __init__(self, cache: KVCache, segments: abc.Sequence[Segment]) -> None:
        device = cache.keys.device
        slots: list[int] = []
        offsets: list[int] = []
        for segment in segments:
            slots += [segment.slot] * segment.length
            offsets += range(segment.start, segment.start + segment.length)
        self.cache = cache
        self.slots = torch.tensor(slots, device=device)
        self.offsets = torch.tensor(offsets, device=device)
        self.positions = self.offsets + cache.prefix_length
        self.parts = _parts(segments)
        self.biases: list[Tensor] = []

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Store keys and values; attend to each sequence's own tokens and to the prefix.

        [1, N, H, D] queries and [1, N, K, D] keys and values -> [1, N, H, D].
        """
        cache = self.cache
        self._store(layer, keys[0], values[0])
        out, log_sum = self._attend_to_slots(layer, queries[0])
        if cache.prefix_length:
            prefix_keys = cache.prefix_keys[layer, None]
            prefix_values = cache.prefix_values[layer, None]
            prefix_out, prefix_log_sum = _attend(queries[0], 1, prefix_keys, prefix_values, None)
            prefix_share = (prefix_log_sum - log_sum).sigmoid()[..., None]
            out = torch.lerp(out, prefix_out, prefix_share.to(out.dtype))
        return out[None]

    def _store(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Put keys and values [N, K, D] at the tokens' places."""
        cache = self.cache
        cache.keys[layer, self.slots, :, self.offsets] = keys.to(cache.keys.dtype)
        cache.values[layer, self.slots, :, self.offsets] = values.to(cache.values.dtype)

    def _attend_to_slots(self, layer: int, queries: Tensor) -> tuple[Tensor, Tensor]:
        """[N, H, D] queries -> [N, H, D] and log sums [N, H]."""
        if not self.biases:  # the same in every layer
            self.biases = [self._bias(part, queries) for part in self.parts]
        outs: list[Tensor] = []
        log_sums: list[Tensor] = []
        begin = 0
        for part, bias in zip(self.parts, self.biases, strict=True):
            end, longest = begin + len(part) * part[0].length, bias.shape[-1]
            slots = slice(part[0].slot, part[-1].slot + 1)
            keys = self.cache.keys[layer, slots, :, :longest]
            values = self.cache.values[layer, slots, :, :longest]
            out, log_sum = _attend(queries[begin:end], len(part), keys, values, bias)
            outs.append(out)
            log_sums.append(log_sum)
            begin = end
        return torch.cat(outs), torch.cat(log_sums)

    def _bias(self, part: list[Segment], like: Tensor) -> Tensor:
        starts, width = [segment.start for segment in part], part[0].length
        first = torch.tensor(starts, device=like.device)
        return causal_bias(first, width, max(starts) + width, self.cache.groups, like)


class StaticStepAttention(StepAttention):
    """Attention of one token of every slot, at places `offsets` [S] int64 below `longest`.

    Shapes and storage stay the same from step to step, which is what a CUDA graph needs. One
    softmax over the prefix and the slot takes half as many kernels as two that are merged.
    """

    def __init__(self, cache: KVCache, offsets: Tensor, longest: int) -> None:
        self.cache, self.offsets, self.longest = cache, offsets, longest
        self.slots = torch.arange(cache.slots, device=offsets.device)
        self.positions = offsets + cache.prefix_length
        self.biases = []

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """As StepAttention's: [1, S, H, D], [1, S, K, D], [1, S, K, D] -> [1, S, H, D]."""
        cache, dtype = self.cache, queries.dtype
        self._store(layer, keys[0], values[0])
        if not self.biases:  # the same in every layer
            bias = causal_bias(self.offsets, 1, self.longest, cache.groups, queries)
            self.biases.append(bias)
        own_keys = cache.keys[layer, :, :, : self.longest].to(dtype)  # [S, K, M, D]
        own_values = cache.values[layer, :, :, : self.longest].to(dtype)
        grouped = queries[0].unflatten(1, (-1, cache.groups)) * queries.shape[-1] ** -0.5
        scores = (grouped @ own_keys.transpose(-1, -2)).add_(self.biases[0])  # [S, K, G, M]
        if cache.prefix_length:
            prefix_keys = cache.prefix_keys[layer].to(dtype)  # [K, P, D]
            together = grouped.transpose(0, 1).flatten(1, 2)  # [K, S * G, D]
            prefix_scores = self._by_slot(together @ prefix_keys.transpose(-1, -2))
            scores = torch.cat((prefix_scores, scores), dim=-1)  # [S, K, G, P + M]
        softmax_dtype = dtype if dtype == torch.float64 else torch.float32
        probabilities = scores.softmax(-1, dtype=softmax_dtype).to(dtype)
        out = probabilities[..., cache.prefix_length :] @ own_values  # [S, K, G, D]
        if cache.prefix_length:
            prefix_values = cache.prefix_values[layer].to(dtype)
            of_prefix = probabilities[..., : cache.prefix_length].transpose(0, 1).flatten(1, 2)
            out += self._by_slot(of_prefix @ prefix_values)
        return out.flatten(1, 2)[None]

    def _by_slot(self, tensor: Tensor) -> Tensor:
        """[K, S * G, ...] -> [S, K, G, ...]."""
        return tensor.unflatten(1, (-1, self.cache.groups)).transpose(0, 1)


def _parts(segments: abc.Sequence[Segment]) -> list[list[Segment]]:
    """Neighbouring slots with equally many tokens, to be attended together."""
    parts: list[list[Segment]] = []
    for segment in segments:
        last = parts[-1] if parts else []
        follows = bool(last) and segment.slot == last[-1].slot + 1
        if follows and segment.length == last[-1].length and len(last) < SEQUENCES_PER_PART:
            last.append(segment)
        else:
            parts.append([segment])
    return parts


def _attend(
    queries: Tensor, sequences: int, keys: Tensor, values: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Attention of R sequences of W tokens over the keys and values of each.

    [R * W, H, D] over [R, K, M, D] -> [R * W, H, D] and log sums [R * W, H]. The query heads that
    share a key/value head, and a sequence's tokens, become rows of one product: [R, K, G * W, D].
    """
    tokens, heads, head_dim = queries.shape
    kv_heads = keys.shape[1]
    groups, width = heads // kv_heads, tokens // sequences
    split = queries.reshape(sequences, width, kv_heads, groups, head_dim)
    grouped = split.permute(0, 2, 3, 1, 4).reshape(sequences, kv_heads, groups * width, head_dim)
    keys, values = keys.to(queries.dtype), values.to(queries.dtype)
    few_queries = groups * width <= FEW_QUERIES
    kernel = attention_with_log_sum if few_queries or not queries.is_cpu else flash_attention
    out, log_sum = kernel(grouped, keys, values, bias)
    out = out.reshape(sequences, kv_heads, groups, width, head_dim).permute(0, 3, 1, 2, 4)
    log_sum = log_sum.reshape(sequences, kv_heads, groups, width).permute(0, 3, 1, 2)
    return out.reshape(tokens, heads, head_dim), log_sum.reshape(tokens, heads)


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
