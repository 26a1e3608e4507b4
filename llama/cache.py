"""The key/value cache: one copy of the prefix all prompts share, and a slot for each row's own
tokens.

Shapes: L layers, S slots, K key/value heads, G query heads per key/value head, D head_dim, P prefix
tokens, C capacity of a slot in tokens, N tokens of one forward pass, R rows of a part, W tokens of
each.

A forward pass carries a flat list of tokens. All of them meet the shared prefix in one product, and
each meets its own slot; the logarithms of both softmax sums merge the two results exactly (online
softmax, Milakov & Gimelshein 2018).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llama.config import ModelConfig

FEW_QUERIES = (
    16  # up to so many at once, PyTorch's flash attention on the CPU is slower than plain products
)
ROWS_PER_PART = (
    16  # rows attended together are computed to the longest of them: few enough to differ little
)


def bytes_per_token(config: ModelConfig, dtype: torch.dtype) -> int:
    """Memory that the keys and values of one token need, in all layers."""
    return (
        2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * dtype.itemsize
    )


class KVCache:
    """Preallocated storage for `slots` rows of up to `capacity` own tokens behind a prefix of
    `prefix_length`.
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
        layers, heads, head_dim = (
            config.num_hidden_layers,
            config.num_key_value_heads,
            config.head_dim,
        )
        own, prefix = (
            (layers, slots, heads, capacity, head_dim),
            (layers, heads, prefix_length, head_dim),
        )
        self.keys, self.values = _zeros(own, dtype, device), _zeros(own, dtype, device)
        self.prefix_keys, self.prefix_values = (
            _zeros(prefix, dtype, device),
            _zeros(prefix, dtype, device),
        )
        self.slots, self.capacity, self.prefix_length = slots, capacity, prefix_length
        self.groups = config.num_attention_heads // heads  # query heads that share a key/value head

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` own tokens of one slot to another."""
        self.keys[:, target, :, :length] = self.keys[:, source, :, :length]
        self.values[:, target, :, :length] = self.values[:, source, :, :length]


@dataclass(frozen=True)
class Feed:
    """`length` tokens of one row in a forward pass, the first of them at own position `start` of
    `slot`.
    """

    slot: int
    start: int
    length: int


class PrefixPass:
    """Attention of a forward pass over tokens `start` .. `start + length` of the shared prefix."""

    def __init__(self, cache: KVCache, start: int, length: int) -> None:
        self.cache, self.start, self.length = cache, start, length
        self.positions = torch.arange(start, start + length, device=cache.keys.device)

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """[1, N, H, D] queries and [1, N, K, D] keys and values -> [1, N, H, D]; stores keys and
        values.
        """
        end = self.start + self.length
        prefix_keys, prefix_values = self.cache.prefix_keys[layer], self.cache.prefix_values[layer]
        prefix_keys[:, self.start : end] = keys[0].transpose(0, 1)
        prefix_values[:, self.start : end] = values[0].transpose(0, 1)
        bias = _causal_bias(self.positions[:1], self.length, end, self.cache.groups, queries)
        out, _ = _attend(
            queries[0], 1, prefix_keys[None, :, :end], prefix_values[None, :, :end], bias
        )
        return out[None]


class StepPass:
    """Attention of one engine step over the tokens of `feeds`, one after the other, in the order of
    their slots.
    """

    def __init__(self, cache: KVCache, feeds: Sequence[Feed]) -> None:
        device = cache.keys.device
        self.cache = cache
        self.slots = torch.tensor(
            [feed.slot for feed in feeds for _ in range(feed.length)], device=device
        )
        offsets = [feed.start + i for feed in feeds for i in range(feed.length)]
        self.offsets = torch.tensor(offsets, device=device)
        self.positions = self.offsets + cache.prefix_length
        self.parts: list[
            list[Feed]
        ] = []  # neighbouring slots with equally many tokens are attended together
        for feed in feeds:
            part = self.parts[-1] if self.parts else []
            joins = part and feed.slot == part[-1].slot + 1 and feed.length == part[-1].length
            if joins and len(part) < ROWS_PER_PART:
                part.append(feed)
            else:
                self.parts.append([feed])
        self.biases: list[Tensor] = []

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """[1, N, H, D] queries and [1, N, K, D] keys and values -> [1, N, H, D]; stores keys and
        values.
        """
        cache = self.cache
        cache.keys[layer, self.slots, :, self.offsets] = keys[0].to(cache.keys.dtype)
        cache.values[layer, self.slots, :, self.offsets] = values[0].to(cache.values.dtype)
        if not self.biases:  # the same in every layer
            self.biases = [self._bias(part, queries) for part in self.parts]
        outs, log_sums, begin = [], [], 0
        for part, bias in zip(self.parts, self.biases, strict=True):
            end, longest = begin + len(part) * part[0].length, bias.shape[-1]
            slots = slice(part[0].slot, part[-1].slot + 1)
            own_keys, own_values = (
                cache.keys[layer, slots, :, :longest],
                cache.values[layer, slots, :, :longest],
            )
            out, log_sum = _attend(queries[0, begin:end], len(part), own_keys, own_values, bias)
            outs.append(out)
            log_sums.append(log_sum)
            begin = end
        out = torch.cat(outs)
        if cache.prefix_length:
            prefix = cache.prefix_keys[layer, None], cache.prefix_values[layer, None]
            shared, shared_log_sum = _attend(queries[0], 1, *prefix, None)
            share = (shared_log_sum - torch.cat(log_sums)).sigmoid()[..., None]
            out = torch.lerp(out, shared, share.to(out.dtype))
        return out[None]

    def _bias(self, part: list[Feed], like: Tensor) -> Tensor:
        starts, width = [feed.start for feed in part], part[0].length
        return _causal_bias(
            torch.tensor(starts, device=like.device),
            width,
            max(starts) + width,
            self.cache.groups,
            like,
        )


class SlotsPass(StepPass):
    """One token of every slot, at the own positions `offsets` [S] int64, which must be below
    `longest`.

    Shapes and storage stay the same from step to step, which is what a CUDA graph needs.
    """

    def __init__(self, cache: KVCache, offsets: Tensor, longest: int) -> None:
        self.cache, self.offsets, self.longest = cache, offsets, longest
        self.slots = torch.arange(cache.slots, device=offsets.device)
        self.positions = offsets + cache.prefix_length
        self.parts, self.biases = [[Feed(slot, 0, 1) for slot in range(cache.slots)]], []

    def _bias(self, part: list[Feed], like: Tensor) -> Tensor:
        return _causal_bias(self.offsets, 1, self.longest, self.cache.groups, like)


def _attend(
    queries: Tensor, rows: int, keys: Tensor, values: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Attention of R rows of W tokens: [R * W, H, D] over [R, K, M, D] -> [R * W, H, D] and log
    sums [R * W, H].

    The query heads that share a key/value head, and a row's tokens, become rows of one product: [R,
    K, G * W, D].
    """
    tokens, heads, head_dim = queries.shape
    kv_heads = keys.shape[1]
    split = (rows, tokens // rows, kv_heads, heads // kv_heads)  # R, W, K, G
    grouped = (
        queries.reshape(*split, head_dim)
        .permute(0, 2, 3, 1, 4)
        .reshape(rows, kv_heads, -1, head_dim)
    )
    out, log_sum = _attention_with_log_sum(
        grouped, keys.to(queries.dtype), values.to(queries.dtype), bias
    )
    apart = (rows, kv_heads, split[3], split[1])  # R, K, G, W
    out = out.reshape(*apart, head_dim).permute(0, 3, 1, 2, 4).reshape(tokens, heads, head_dim)
    return out, log_sum.reshape(apart).permute(0, 3, 1, 2).reshape(tokens, heads)


def _attention_with_log_sum(
    queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Softmax attention, [R, K, Q, D] over [R, K, M, D] -> [R, K, Q, D], and float32 logs of the
    softmax sums.
    """
    if queries.device.type == "cpu" and queries.shape[-2] > FEW_QUERIES:
        # What scaled_dot_product_attention runs, but that keeps the sums to itself.
        flash_attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return flash_attention(queries, keys, values, attn_mask=bias)
    scores = (queries * queries.shape[-1] ** -0.5) @ keys.transpose(-1, -2)
    scores = scores.float() if bias is None else scores.add_(bias).float()
    top = scores.amax(-1, keepdim=True)
    scores = scores.sub_(top).exp_()
    total = scores.sum(-1, keepdim=True)
    out = (scores.to(values.dtype) @ values).div_(total.to(values.dtype))
    return out, total.log_().add_(top).squeeze(-1)


def _causal_bias(starts: Tensor, width: int, longest: int, groups: int, like: Tensor) -> Tensor:
    """0 where a query may look and -inf elsewhere: [R, 1, G * W, longest], for queries at `start`
    .. `start + W`.
    """
    positions = starts[:, None] + torch.arange(width, device=like.device)
    hidden = torch.arange(longest, device=like.device) > positions[..., None]  # [R, W, longest]
    bias = torch.zeros(hidden.shape, dtype=like.dtype, device=like.device).masked_fill(
        hidden, float("-inf")
    )
    return (
        bias[:, None, None]
        .expand(-1, 1, groups, -1, -1)
        .reshape(len(starts), 1, groups * width, -1)
    )


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """Zeros, since what is masked must be finite. On a CPU, pages that are never written never take
    memory.
    """
    size = int(np.prod(shape)) * dtype.itemsize
    if torch.device(device).type != "cpu" or not size:
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.from_numpy(np.zeros(size, dtype=np.uint8)).view(dtype).view(shape)
