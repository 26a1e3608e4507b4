"""Softmax attention from public operators, and with the logarithms of its softmax sums.

Two results over different keys, each with its log sum, merge into that over all keys (online
softmax, Milakov & Gimelshein 2018, https://arxiv.org/abs/1805.02867). Kernels that return log sums
have no public name: llama/private_ops.py has them, with these functions as their fallback.

Shapes: R sequences, K heads, Q queries, M keys, D head_dim. Log sums are float32 (float64 for
float64 inputs).
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from llama.notices import tell_once


def scaled_dot_product_attention(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None, causal: bool = False
) -> Tensor:
    """PyTorch's attention, or plain products where none of its kernels takes these tensors.

    [R, H, Q, D] over [R, K, M, D] -> [R, H, Q, D]; H is a multiple of K. `mask` bool broadcasts to
    [R, H, Q, M] and is True where a query may look; `causal` needs Q = M.
    """
    try:
        return F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, is_causal=causal, enable_gqa=True
        )
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
    tell_once(f"no attention kernel of this device works here ({reason}): plain products do")
    return plain_attention(queries, keys, values, mask, causal)


def plain_attention(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None, causal: bool = False
) -> Tensor:
    """`scaled_dot_product_attention` as two products and a softmax in float32."""
    groups = queries.shape[1] // keys.shape[1]
    keys, values = (tensor.repeat_interleave(groups, dim=1) for tensor in (keys, values))
    scores = (queries * queries.shape[-1] ** -0.5) @ keys.transpose(-1, -2)
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    probabilities = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))
    return probabilities.to(values.dtype) @ values


class PackedSequences:
    """The sequences of N tokens that lie end to end, as kernels for them want to have it.

    `spans` holds where each begins and ends. `offsets` [S + 1] int32 has the same on the device.
    `numbers` and `places` [N] int64 are each token's sequence and its place there.
    """

    def __init__(self, lengths: Sequence[int], device: torch.device | str) -> None:
        offsets = list(accumulate(lengths, initial=0))
        numbers: list[int] = []
        places: list[int] = []
        for number, length in enumerate(lengths):
            numbers += [number] * length
            places += range(length)
        self.spans = list(pairwise(offsets))
        self.longest = max(lengths, default=0)
        self.offsets = torch.tensor(offsets, dtype=torch.int32, device=device)
        self.numbers = torch.tensor(numbers, dtype=torch.int64, device=device)
        self.places = torch.tensor(places, dtype=torch.int64, device=device)


def attention_with_log_sum(
    queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Attention of [R, K, Q, D] over [R, K, M, D] -> [R, K, Q, D] and log sums [R, K, Q].

    `bias` is added to the scores and broadcasts to [R, K, Q, M].
    """
    scores = _scores(queries, keys, bias)
    top = scores.amax(-1, keepdim=True)
    scores = scores.sub_(top).exp_()
    total = scores.sum(-1, keepdim=True)
    out = (scores.to(values.dtype) @ values).div_(total.to(values.dtype))
    return out, total.log_().add_(top).squeeze(-1)


def gathered_attention(
    queries: Tensor, keys: Tensor, table: Tensor, places: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """`attention_with_log_sum` of few queries, whose values lie at rows `places` of `table`.

    [R, K, Q, D] queries over [R, K, M, D] keys, `table` [..., D] and `places` [R * K * Q, M] int64.
    A weighted sum of a table's rows, as of embeddings, takes half the time of products with few
    rows, and reads a masked value from wherever the place says.
    """
    scaled = queries * queries.shape[-1] ** -0.5
    scores = (keys @ scaled.transpose(-1, -2)).transpose(-1, -2).contiguous()  # keys first: faster
    probabilities, log_sum = softmax_with_log_sum(scores.add_(bias))
    weights = probabilities.view(places.shape)
    rows = table.view(-1, table.shape[-1])
    out = F.embedding_bag(places, rows, mode="sum", per_sample_weights=weights)
    return out.view(queries.shape), log_sum


def softmax_with_log_sum(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax over the last dimension, in place of `scores`, and the logarithms of its sums."""
    top = scores.amax(-1)
    probabilities = torch.softmax(scores, -1, out=scores)
    return probabilities, top - probabilities.amax(-1).log_()  # the largest is exp(0) / sum


def attention_gradients(
    grad: Tensor,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    out: Tensor,
    log_sum: Tensor,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values, given that of `out`; shapes as above.

    `out` and `log_sum` may be those of a softmax over more keys: then these are the gradients of
    its part over `keys` (Dao et al. 2022, appendix B, https://arxiv.org/abs/2205.14135).
    """
    probabilities = _scores(queries, keys, bias).sub_(log_sum[..., None]).exp_()
    grad_values = probabilities.to(grad.dtype).transpose(-1, -2) @ grad
    grad_probabilities = (grad @ values.transpose(-1, -2)).to(probabilities.dtype)
    row_sums = (grad * out).sum(-1, keepdim=True, dtype=probabilities.dtype)
    grad_scores = grad_probabilities.sub_(row_sums).mul_(probabilities)
    grad_scores = grad_scores.mul_(queries.shape[-1] ** -0.5).to(queries.dtype)
    return grad_scores @ keys, grad_scores.transpose(-1, -2) @ queries, grad_values


def _scores(queries: Tensor, keys: Tensor, bias: Tensor | None) -> Tensor:
    """[R, K, Q, M], in float32 at least."""
    scores = (queries * queries.shape[-1] ** -0.5) @ keys.transpose(-1, -2)
    if bias is not None:
        scores.add_(bias)
    return scores.to(torch.promote_types(scores.dtype, torch.float32))


def fold_groups(tensor: Tensor, kv_heads: int) -> Tensor:
    """Make the query heads that share a key/value head queries of it.

    [R, H, Q, ...] -> [R, K, H / K * Q, ...].
    """
    batch, _, _, *rest = tensor.shape
    return tensor.reshape(batch, kv_heads, -1, *rest)


def causal_bias(starts: Tensor, width: int, longest: int, groups: int, like: Tensor) -> Tensor:
    """Scores to add, [R, 1, groups * W, longest]: 0 where a query may look and -inf elsewhere.

    Sequence r has its W queries at places starts[r] .. starts[r] + W of its keys, in each of the
    `groups` query heads that share a key/value head. dtype and device are those of `like`.
    """
    places = starts[:, None] + torch.arange(width, device=like.device)  # [R, W]
    hidden = torch.arange(longest, device=like.device) > places[..., None]  # [R, W, longest]
    zeros = torch.zeros(hidden.shape, dtype=like.dtype, device=like.device)
    bias = zeros.masked_fill(hidden, float("-inf"))
    for_groups = bias[:, None, None].expand(-1, 1, groups, -1, -1)
    return for_groups.reshape(len(starts), 1, groups * width, longest)
