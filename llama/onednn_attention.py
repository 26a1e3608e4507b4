"""Attention on a CPU by oneDNN's products, where all queries look at the same keys.

Flash attention takes its products from MKL, which runs at half of oneDNN's speed on processors that
are not Intel's.
"""

from functools import cache

import torch
from torch import Tensor

from llama.attention import softmax_with_log_sum
from llama.private_ops import (
    all_close,
    is_right,
    made_up_numbers,
    packed_linear,
    public_attention,
)

SCORES_IN_CACHE = 2**18  # 1 MiB: computed at a time, so that they stay in the processor's cache


def product_attention(queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Attention of many queries over one sequence's keys, and the logarithms of its softmax sums.

    float32 on the CPU: [1, K, Q, D] over [1, K, M, D] -> [1, K, Q, D] and log sums [1, K, Q]. Only
    if `has_product_attention()`.
    """
    out, log_sum = torch.empty_like(queries), queries.new_empty(queries.shape[:-1])
    rows = max(1, SCORES_IN_CACHE // keys.shape[2])
    scaled = queries * queries.shape[-1] ** -0.5
    for head, (head_keys, head_values) in enumerate(zip(keys[0], values[0], strict=True)):
        for begin in range(0, queries.shape[2], rows):
            block = 0, head, slice(begin, begin + rows)
            scores = packed_linear(scaled[block], head_keys)
            probabilities, log_sum[block] = softmax_with_log_sum(scores)
            out[block] = packed_linear(probabilities, head_values.T)
    return out, log_sum


@cache
def has_product_attention() -> bool:
    """True if `product_attention` is right here."""
    return torch.backends.mkldnn.is_available() and is_right(_check_product_attention)


def _check_product_attention() -> bool:
    """Compare it with public operators, on views as a cache has them."""
    queries, key_storage, value_storage = made_up_numbers(3, (1, 2, 24, 8))
    keys, values = key_storage[:, :, :17], value_storage[:, :, :17]
    expected = public_attention(queries, keys, values)
    return all_close(product_attention(queries, keys, values), expected)
