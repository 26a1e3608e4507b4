"""The key/value cache: one copy of the prefix all prompts share, and a slot for each row's own tokens.

Shapes: L layers, S slots, K key/value heads, G query heads per key/value head, D head_dim, P prefix tokens,
C capacity of a slot in tokens, N tokens of one forward pass.

Attention over [prefix | own] is one softmax over both parts, so sharing changes no result. A forward pass carries a
flat list of tokens: first one token for each decoding slot, then chunks of prompts still being read.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from llama.config import ModelConfig


@dataclass(frozen=True)
class Chunk:
    """`length` tokens of one prompt, the first of them at own position `start` of `slot`."""

    slot: int
    start: int
    length: int


class KVCache:
    """Preallocated storage for `slots` rows of up to `capacity` own tokens behind a prefix of `prefix_length`."""

    def __init__(
        self,
        config: ModelConfig,
        slots: int,
        capacity: int,
        prefix_length: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        layers, heads, head_dim = config.num_hidden_layers, config.num_key_value_heads, config.head_dim
        own, prefix = (layers, slots, heads, capacity, head_dim), (layers, heads, prefix_length, head_dim)
        self.keys = torch.zeros(own, dtype=dtype, device=device)  # zeros, not empty: masked slots must stay finite
        self.values = torch.zeros(own, dtype=dtype, device=device)
        self.prefix_keys = torch.zeros(prefix, dtype=dtype, device=device)
        self.prefix_values = torch.zeros(prefix, dtype=dtype, device=device)
        self.prefix_length = prefix_length

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` own tokens of one slot to another."""
        self.keys[:, target, :, :length] = self.keys[:, source, :, :length]
        self.values[:, target, :, :length] = self.values[:, source, :, :length]


class PrefixPass:
    """Attention of a forward pass over tokens `start` .. `start + N` of the shared prefix."""

    def __init__(self, cache: KVCache, start: int, length: int) -> None:
        self.cache, self.start, self.end = cache, start, start + length
        self.mask = _causal_mask(length, self.end, cache.keys.device)

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """[1, N, H, D] queries and [1, N, K, D] keys and values -> [1, N, H, D]; stores keys and values."""
        prefix_keys, prefix_values = self.cache.prefix_keys[layer], self.cache.prefix_values[layer]
        prefix_keys[:, self.start : self.end] = keys[0].transpose(0, 1)
        prefix_values[:, self.start : self.end] = values[0].transpose(0, 1)
        return _attend_chunk(queries[0], prefix_keys[:, : self.end], prefix_values[:, : self.end], self.mask)[None]


class StepPass:
    """Attention of one engine step: a token for each of `decoding` slots, then `chunks` of prompts.

    `lengths[i]` counts the own tokens that slot `decoding[i]` holds before this step.
    """

    def __init__(self, cache: KVCache, decoding: list[int], lengths: list[int], chunks: list[Chunk]) -> None:
        device = cache.keys.device
        self.cache, self.chunks, self.count = cache, chunks, len(decoding)
        slots = decoding + [chunk.slot for chunk in chunks for _ in range(chunk.length)]
        offsets = lengths + [chunk.start + i for chunk in chunks for i in range(chunk.length)]
        self.slots = torch.tensor(slots, device=device)
        self.offsets = torch.tensor(offsets, device=device)
        self.positions = self.offsets + cache.prefix_length
        self.chunk_masks = [
            _causal_mask(chunk.length, cache.prefix_length + chunk.start + chunk.length, device) for chunk in chunks
        ]
        if decoding:
            # All slots up to the highest are computed; what an idle one yields is never read.
            self.used = max(decoding) + 1
            self.longest = max(lengths) + 1
            visible = torch.zeros(self.used, dtype=torch.int64, device=device)
            visible[self.slots[: self.count]] = self.offsets[: self.count] + 1
            hidden = torch.arange(self.longest, device=device) >= visible[:, None]
            self.hidden = hidden[:, None, None]  # [used, 1, 1, longest]

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """[1, N, H, D] queries and [1, N, K, D] keys and values -> [1, N, H, D]; stores keys and values."""
        cache = self.cache
        cache.keys[layer, self.slots, :, self.offsets] = keys[0].to(cache.keys.dtype)
        cache.values[layer, self.slots, :, self.offsets] = values[0].to(cache.values.dtype)
        out = torch.empty_like(queries[0])
        if self.count:
            out[: self.count] = self._attend_decoding(layer, queries[0, : self.count])
        begin = self.count
        for chunk, mask in zip(self.chunks, self.chunk_masks, strict=True):
            end = chunk.start + chunk.length
            own_keys, own_values = cache.keys[layer, chunk.slot, :, :end], cache.values[layer, chunk.slot, :, :end]
            rows = slice(begin, begin + chunk.length)
            out[rows] = _attend_chunk(
                queries[0, rows],
                torch.cat((cache.prefix_keys[layer], own_keys), dim=1),
                torch.cat((cache.prefix_values[layer], own_values), dim=1),
                mask,
            )
            begin = rows.stop
        return out[None]

    def _attend_decoding(self, layer: int, queries: Tensor) -> Tensor:
        """One query a slot, [count, H, D] -> [count, H, D]: every slot meets the one prefix, then its own tokens."""
        cache, prefix = self.cache, self.cache.prefix_length
        heads, head_dim = cache.keys.shape[2], cache.keys.shape[4]
        grouped = queries.new_zeros(self.used, heads, queries.shape[1] // heads, head_dim)  # [used, K, G, D]
        grouped[self.slots[: self.count]] = queries.view(self.count, *grouped.shape[1:]) * head_dim**-0.5
        own_keys = cache.keys[layer, : self.used, :, : self.longest].to(queries.dtype)
        own_values = cache.values[layer, : self.used, :, : self.longest].to(queries.dtype)
        own = (grouped @ own_keys.transpose(-1, -2)).masked_fill(self.hidden, float("-inf"))
        if prefix:
            stacked = grouped.transpose(0, 1).flatten(1, 2)  # [K, used * G, D]: one product for all slots
            shared = stacked @ cache.prefix_keys[layer].to(queries.dtype).transpose(-1, -2)
            shared = shared.view(heads, self.used, -1, prefix).transpose(0, 1)
            own = torch.cat((shared, own), dim=-1)
        weights = own.float().softmax(-1).to(queries.dtype)  # [used, K, G, P + longest]
        out = weights[..., prefix:] @ own_values
        if prefix:
            stacked = weights[..., :prefix].transpose(0, 1).flatten(1, 2) @ cache.prefix_values[layer].to(queries.dtype)
            out = out + stacked.view(heads, self.used, -1, head_dim).transpose(0, 1)
        return out.flatten(1, 2)[self.slots[: self.count]]


def _causal_mask(queries: int, keys: int, device: torch.device) -> Tensor:
    """True where the last `queries` of `keys` positions may look: [queries, keys]."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def _attend_chunk(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """[n, H, D] queries over [K, m, D] keys and values under mask [n, m] -> [n, H, D]."""
    keys, values = keys.to(queries.dtype)[None], values.to(queries.dtype)[None]
    out = F.scaled_dot_product_attention(queries.transpose(0, 1)[None], keys, values, attn_mask=mask, enable_gqa=True)
    return out[0].transpose(0, 1)
