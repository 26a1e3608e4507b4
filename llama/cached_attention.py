"""Attention of a forward pass over the key/value cache.

Shapes as in llama/cache.py, and N tokens of one forward pass, R sequences attended together, W
tokens of each, Q = G * W queries of a key/value head, M keys.

A forward pass carries a flat list of tokens. All of them attend to the shared prefix in one
product, and each attends to its own slot. The logarithms of both softmax sums merge the two results
exactly (online softmax, Milakov & Gimelshein 2018, https://arxiv.org/abs/1805.02867).
"""

from collections import abc

import torch
from torch import Tensor

from llama.attention import (
    PackedSequences,
    attention_with_log_sum,
    causal_bias,
    gathered_attention,
)
from llama.cache import KVCache, Segment
from llama.onednn_attention import has_product_attention, product_attention
from llama.packed_attention import merge, packed_attention
from llama.private_ops import flash_attention

# At or below this many query rows plain matmuls beat CPU flash attention.
FEW_QUERIES = 16
# From so many scores a head on, oneDNN's products beat it where all queries see the same keys.
MANY_SCORES = 2**16
# Sequences attended together are computed to the longest of them, masked values aside.
SEQUENCES_PER_PART = 32


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
        out, _ = _attend(queries[0], keys_so_far, values_so_far, bias)
        return out[None]


class StepAttention:
    """Attention of one engine step over the tokens of `segments`, in the order of their slots."""

    def __init__(self, cache: KVCache, segments: abc.Sequence[Segment]) -> None:
        self._locate(cache, segments)
        self.parts: list[Part] = []
        for neighbours in _neighbours(segments):
            self.parts.append(Part(neighbours, cache))

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
            prefix_out, prefix_log_sum = _attend(queries[0], prefix_keys, prefix_values)
            prefix_share = (prefix_log_sum - log_sum).sigmoid()[..., None]
            out = torch.lerp(out, prefix_out, prefix_share.to(out.dtype))
        return out[None]

    def _locate(self, cache: KVCache, segments: abc.Sequence[Segment]) -> None:
        """Note each token's places in the cache and its position in the text."""
        device = cache.keys.device
        slots: list[int] = []
        offsets: list[int] = []
        for segment in segments:
            slots += [segment.slot] * segment.length
            offsets += range(segment.start, segment.start + segment.length)
        self.cache = cache
        offsets_on_device = torch.tensor(offsets, device=device)
        self.places = cache.places(torch.tensor(slots, device=device), offsets_on_device)
        self.positions = offsets_on_device + cache.prefix_length

    def _store(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Put keys and values [N, K, D] at the tokens' places."""
        cache = self.cache
        key_rows = cache.keys[layer].view(-1, keys.shape[-1])
        value_rows = cache.values[layer].view(-1, values.shape[-1])
        key_rows[self.places] = keys.to(cache.keys.dtype)
        value_rows[self.places] = values.to(cache.values.dtype)

    def _attend_to_slots(self, layer: int, queries: Tensor) -> tuple[Tensor, Tensor]:
        """[N, H, D] queries -> [N, H, D] and log sums [N, H]."""
        outs: list[Tensor] = []
        log_sums: list[Tensor] = []
        begin = 0
        for part in self.parts:
            end = begin + part.num_tokens
            out, log_sum = part.attend(layer, queries[begin:end])
            outs.append(out)
            log_sums.append(log_sum)
            begin = end
        return torch.cat(outs), torch.cat(log_sums)


class Part:
    """Attention of neighbouring slots, each with W tokens, to what they hold."""

    def __init__(self, segments: list[Segment], cache: KVCache) -> None:
        self.cache = cache
        self.slots = slice(segments[0].slot, segments[-1].slot + 1)
        self.width = segments[0].length
        self.starts = torch.tensor([seg.start for seg in segments], device=cache.keys.device)
        self.longest = max(segment.start for segment in segments) + self.width
        self.num_tokens = len(segments) * self.width
        self.bias: Tensor | None = None  # the same in every layer, as `places` are
        self.places: Tensor | None = None

    def attend(self, layer: int, queries: Tensor) -> tuple[Tensor, Tensor]:
        """[R * W, H, D] queries -> [R * W, H, D] and log sums [R * W, H]."""
        cache = self.cache
        if self.bias is None:
            self.bias = causal_bias(self.starts, self.width, self.longest, cache.groups, queries)
        keys = cache.keys[layer, self.slots, :, : self.longest]
        if not self._can_gather(queries):
            values = cache.values[layer, self.slots, :, : self.longest]
            return _attend(queries, keys, values, self.bias)
        if self.places is None:
            self.places = self._places()
        grouped = _group(queries, len(keys), keys.shape[1])
        result = gathered_attention(grouped, keys, cache.values[layer], self.places, self.bias)
        return _ungroup(*result, self.width)

    def _can_gather(self, queries: Tensor) -> bool:
        """True if `gathered_attention` does for these, and is fast: few queries, on a CPU."""
        few_queries = self.cache.groups * self.width <= FEW_QUERIES
        dtypes = {queries.dtype, self.cache.values.dtype}
        return few_queries and queries.is_cpu and dtypes == {torch.float32}

    def _places(self) -> Tensor:
        """The rows [R * K * Q, M] of a layer's values [S, K, C, D] that queries look at.

        Beyond a sequence's last token all is masked: that token's row is read once more.
        """
        slots = torch.arange(self.slots.start, self.slots.stop)[:, None]
        last = self.starts[:, None] + self.width - 1
        offsets = torch.arange(self.longest).minimum(last)  # [R, M]
        places = self.cache.places(slots, offsets).transpose(1, 2)  # [R, K, M]
        num_queries = self.cache.groups * self.width
        return places.repeat_interleave(num_queries, dim=1).flatten(0, 1)


class PromptAttention(StepAttention):
    """Attention of one engine step over prompts from their first tokens on.

    They need nothing of their slots: one kernel attends within all of them, another to the prefix.
    """

    DEVICES = ("cuda",)  # device types that have such kernels

    def __init__(self, cache: KVCache, segments: abc.Sequence[Segment]) -> None:
        self._locate(cache, segments)
        device = cache.keys.device
        self.sequences = PackedSequences([segment.length for segment in segments], device)
        self.whole = PackedSequences([len(self.positions)], device)
        self.prefix = PackedSequences([cache.prefix_length], device)

    @classmethod
    def takes(cls, cache: KVCache, segments: abc.Sequence[Segment]) -> bool:
        """True if no segment needs what its slot holds, on a device that gains by that."""
        fresh = all(segment.start == 0 for segment in segments)
        return fresh and cache.keys.device.type in cls.DEVICES

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """As StepAttention's: [1, N, H, D], [1, N, K, D], [1, N, K, D] -> [1, N, H, D]."""
        cache, dtype = self.cache, queries.dtype
        self._store(layer, keys[0], values[0])
        queries = queries.transpose(1, 2)  # [1, H, N, D]
        keys = self._as_stored(keys).transpose(1, 2)
        values = self._as_stored(values).transpose(1, 2)
        own = self.sequences
        out, log_sum = packed_attention(queries, keys, values, own, own, causal=True)
        if cache.prefix_length:
            prefix_keys = cache.prefix_keys[layer, None].to(dtype)  # [1, K, P, D]
            prefix_values = cache.prefix_values[layer, None].to(dtype)
            of_prefix = packed_attention(
                queries, prefix_keys, prefix_values, self.whole, self.prefix, causal=False
            )
            out, _ = merge(out, log_sum, *of_prefix)
        return out.transpose(1, 2)

    def _as_stored(self, tensor: Tensor) -> Tensor:
        """Keys or values as later steps read them: a cache of another dtype rounds."""
        return tensor.to(self.cache.keys.dtype).to(tensor.dtype)


class StaticStepAttention(StepAttention):
    """Attention of one token of every slot, at places `offsets` [S] int64 below `longest`.

    Shapes and storage stay the same from step to step, which is what a CUDA graph needs. One
    softmax over the prefix and the slot takes half as many kernels as two that are merged.
    """

    def __init__(self, cache: KVCache, offsets: Tensor, longest: int) -> None:
        self.cache, self.offsets, self.longest = cache, offsets, longest
        self.places = cache.first_rows + offsets[:, None]  # [S, K]
        self.positions = offsets + cache.prefix_length
        self.bias: Tensor | None = None  # the same in every layer

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """As StepAttention's: [1, S, H, D], [1, S, K, D], [1, S, K, D] -> [1, S, H, D]."""
        cache, dtype = self.cache, queries.dtype
        self._store(layer, keys[0], values[0])
        if self.bias is None:
            self.bias = causal_bias(self.offsets, 1, self.longest, cache.groups, queries)
        own_keys = cache.keys[layer, :, :, : self.longest].to(dtype)  # [S, K, M, D]
        own_values = cache.values[layer, :, :, : self.longest].to(dtype)
        grouped = queries[0].unflatten(1, (-1, cache.groups)) * queries.shape[-1] ** -0.5
        scores = (grouped @ own_keys.transpose(-1, -2)).add_(self.bias)  # [S, K, G, M]
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


def _neighbours(segments: abc.Sequence[Segment]) -> list[list[Segment]]:
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
    queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Attention of R sequences of W tokens over the keys and values of each.

    [R * W, H, D] over [R, K, M, D] -> [R * W, H, D] and log sums [R * W, H].
    """
    sequences, kv_heads = keys.shape[:2]
    grouped = _group(queries, sequences, kv_heads)
    keys, values = keys.to(queries.dtype), values.to(queries.dtype)
    result = _grouped_attention(grouped, keys, values, bias)
    return _ungroup(*result, len(queries) // sequences)


def _group(queries: Tensor, sequences: int, kv_heads: int) -> Tensor:
    """[R * W, H, D] -> [R, K, G * W, D].

    The query heads that share a key/value head, and a sequence's tokens, become rows of one
    product.
    """
    tokens, heads, head_dim = queries.shape
    groups, width = heads // kv_heads, tokens // sequences
    split = queries.reshape(sequences, width, kv_heads, groups, head_dim)
    return split.permute(0, 2, 3, 1, 4).reshape(sequences, kv_heads, groups * width, head_dim)


def _ungroup(out: Tensor, log_sum: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """[R, K, G * W, D] and log sums [R, K, G * W] -> [R * W, H, D] and [R * W, H]."""
    out = out.unflatten(2, (-1, width)).permute(0, 3, 1, 2, 4)  # [R, W, K, G, D]
    log_sum = log_sum.unflatten(2, (-1, width)).permute(0, 3, 1, 2)
    return out.flatten(2, 3).flatten(0, 1), log_sum.flatten(2, 3).flatten(0, 1)


def _grouped_attention(
    queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """[R, K, Q, D] over [R, K, M, D] -> [R, K, Q, D] and log sums, by the fastest kernel."""
    num_queries, num_keys = queries.shape[2], keys.shape[2]
    if num_queries <= FEW_QUERIES or not queries.is_cpu:
        return attention_with_log_sum(queries, keys, values, bias)
    of_prefix = bias is None and queries.dtype == torch.float32
    if of_prefix and num_queries * num_keys >= MANY_SCORES and has_product_attention():
        return product_attention(queries, keys, values)
    return flash_attention(queries, keys, values, bias)
