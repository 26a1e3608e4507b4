"""PyTorch operators without a public name, in this file alone.

An operator is used if it exists and computes the right thing on a tiny input, which is checked
once, at its first use; otherwise a public way takes its place. Existing is not enough: with fewer
key/value heads than query heads, CPU flash attention of torch 2.6 to 2.8 reads past its tensors.

Shapes: R sequences, H query heads, K key/value heads, N queries, M keys, D head_dim.
"""

import os
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from llama.attention import (
    PackedSequences,
    attention_gradients,
    attention_with_log_sum,
    causal_bias,
    fold_groups,
)

LOG_SUM_ALIGNMENT = 32  # memory-efficient attention pads its log sums to a multiple of this
KERNELS_KEPT = 32  # of oneDNN's, each for one shape: those of two or three passes
TUNED_ROWS = 64  # oneDNN's layout is chosen for about so many rows of x; any number is exact


def flash_attention(
    queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None = None, causal: bool = False
) -> tuple[Tensor, Tensor]:
    """Attention on the CPU that also returns the logarithms of its softmax sums.

    [R, H, N, D] over [R, K, M, D] -> [R, H, N, D] and [R, H, N] (float32; float64 for float64).
    `bias` [R, 1, N, M] is added to the scores; `causal` needs N = M. It is what
    `scaled_dot_product_attention` runs on a CPU, which keeps the log sums to itself.
    """
    kv_heads = keys.shape[1]
    if not has_flash_attention():
        return public_attention(queries, keys, values, bias, causal)
    if kv_heads != queries.shape[1] and not has_grouped_flash_attention():
        keys, values = _expand(keys, queries), _expand(values, queries)
    operator = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return operator(queries, keys, values, 0.0, causal, attn_mask=bias)


def flash_attention_gradients(
    grad: Tensor,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    out: Tensor,
    log_sum: Tensor,
    causal: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values of `flash_attention`, given that of `out`.

    `out` and `log_sum` may be merged with those over other keys: see `attention_gradients`.
    """
    if not has_flash_attention():
        return public_attention_gradients(grad, queries, keys, values, out, log_sum, causal)
    operator = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    kv_heads = keys.shape[1]
    if kv_heads == queries.shape[1] or has_grouped_flash_attention():
        return operator(grad, queries, keys, values, out, log_sum, 0.0, causal)
    keys, values = _expand(keys, queries), _expand(values, queries)
    gradients = operator(grad, queries, keys, values, out, log_sum, 0.0, causal)
    grad_queries, grad_keys, grad_values = gradients
    return grad_queries, _sum_groups(grad_keys, kv_heads), _sum_groups(grad_values, kv_heads)


def flash_packed_attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    of_queries: PackedSequences,
    of_keys: PackedSequences,
    causal: bool,
) -> tuple[Tensor, Tensor]:
    """CUDA flash attention of sequences end to end; see llama/packed_attention.py, which checks it.

    The operator takes tokens first, [N, H, D], and any number of key/value heads.
    """
    inputs = [tensor[0].transpose(0, 1) for tensor in (queries, keys, values)]
    bounds = _flash_bounds(of_queries, of_keys)
    operator = torch.ops.aten._flash_attention_forward
    out, log_sum, *_ = operator(*inputs, *bounds, 0.0, causal, False)
    return out.transpose(0, 1)[None], log_sum[None]


def flash_packed_gradients(
    grad: Tensor,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    out: Tensor,
    log_sum: Tensor,
    of_queries: PackedSequences,
    of_keys: PackedSequences,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values of `flash_packed_attention`."""
    inputs = [tensor[0].transpose(0, 1) for tensor in (grad, queries, keys, values, out)]
    bounds = _flash_bounds(of_queries, of_keys)
    # The state of a random generator, which dropout alone reads.
    state = torch.empty(2, dtype=torch.uint64, device=grad.device)
    unused = torch.empty((), dtype=torch.uint64, device=grad.device)
    operator = torch.ops.aten._flash_attention_backward
    log_sum = log_sum[0].contiguous()
    gradients = operator(*inputs, log_sum, *bounds, 0.0, causal, state, unused)
    grad_queries, grad_keys, grad_values = (each.transpose(0, 1)[None] for each in gradients)
    return grad_queries, grad_keys, grad_values


def efficient_packed_attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    of_queries: PackedSequences,
    of_keys: PackedSequences,
    causal: bool,
) -> tuple[Tensor, Tensor]:
    """CUDA memory-efficient attention of sequences end to end; see llama/packed_attention.py.

    The operator takes tokens first, [1, N, H, D], and as many key/value heads as query heads. Its
    log sums are [S, H, longest sequence], padded.
    """
    keys, values = _expand(keys, queries), _expand(values, queries)
    inputs = [tensor.transpose(1, 2) for tensor in (queries, keys, values)]
    bounds = of_queries.offsets, of_keys.offsets, of_queries.longest, of_keys.longest
    operator = torch.ops.aten._efficient_attention_forward
    out, padded, *_ = operator(*inputs, None, *bounds, 0.0, int(causal), True)
    log_sum = padded[of_queries.numbers, :, of_queries.places]  # [N, H]
    return out.transpose(1, 2), log_sum.T[None]


def efficient_packed_gradients(
    grad: Tensor,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    out: Tensor,
    log_sum: Tensor,
    of_queries: PackedSequences,
    of_keys: PackedSequences,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values of `efficient_packed_attention`."""
    kv_heads = keys.shape[1]
    keys, values = _expand(keys, queries), _expand(values, queries)
    inputs = [tensor.transpose(1, 2) for tensor in (grad, queries, keys, values)]
    longest = -(-of_queries.longest // LOG_SUM_ALIGNMENT) * LOG_SUM_ALIGNMENT
    shape = len(of_queries.spans), queries.shape[1], longest
    padded = torch.full(shape, float("inf"), dtype=log_sum.dtype, device=log_sum.device)
    padded[of_queries.numbers, :, of_queries.places] = log_sum[0].T
    seed, offset = torch.empty(2, dtype=torch.int64, device=grad.device).unbind()  # of dropout
    bounds = of_queries.offsets, of_keys.offsets, of_queries.longest, of_keys.longest
    operator = torch.ops.aten._efficient_attention_backward
    out = out.transpose(1, 2).contiguous()
    options = (0.0, seed, offset, int(causal), False)
    gradients = operator(*inputs, None, out, *bounds, padded, *options)
    grad_queries, grad_keys, grad_values = (each.transpose(1, 2) for each in gradients[:3])
    return grad_queries, _sum_groups(grad_keys, kv_heads), _sum_groups(grad_values, kv_heads)


def pack_weight(weight: Tensor) -> Tensor:
    """[out, in] float32 on the CPU, in oneDNN's blocked layout; `to_dense()` gives it back.

    Only if `has_packed_linear()`.
    """
    return torch.ops.mkldnn._reorder_linear_weight(weight, TUNED_ROWS)


def packed_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """[..., in] -> [..., out] with a weight that `pack_weight` returned, or a plain one."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def packed_linear_silu(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """silu(packed_linear(x, weight, bias)), applied while the product is in the cache."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "swish", [], "")


def packed_linear_times(
    x: Tensor, factor: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    """packed_linear(x, weight, bias) * factor, applied while the product is in the cache."""
    return torch.ops.mkldnn._linear_pointwise(x, factor, weight, bias, "mul")


@cache
def has_flash_attention() -> bool:
    """True if CPU flash attention is right, forward and backward, for as many K as H."""
    return is_right(lambda: _check_flash_attention(kv_heads=4))


@cache
def has_grouped_flash_attention() -> bool:
    """True if it is right for fewer key/value heads too."""
    return has_flash_attention() and is_right(lambda: _check_flash_attention(kv_heads=2))


@cache
def has_packed_linear() -> bool:
    """True if oneDNN's packed linears are right and weights come back bit for bit."""
    limit_kernel_caches()
    return torch.backends.mkldnn.is_available() and is_right(_check_packed_linear)


def limit_kernel_caches() -> None:
    """Have oneDNN, and PyTorch before it, keep the KERNELS_KEPT kernels used last.

    There is one for each shape of a product: for each number of tokens in a pass. Of a kernel 0.4
    MB are kept, by default of 1,024, and a new one is made in a quarter of a millisecond. Both
    libraries read the variables when they are first used; a user's own values stand.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, str(KERNELS_KEPT))


def is_right(check: Callable[[], bool], device_type: str = "cpu") -> bool:
    """Run a check of an operator. Whatever mode the first use happens in must not disturb it."""
    try:
        with torch.no_grad(), torch.autocast(device_type, enabled=False):
            return check()
    except (AttributeError, RuntimeError, TypeError):  # absent, refused, another signature
        return False


def _check_flash_attention(kv_heads: int) -> bool:
    """Compare forward and, if that is right, backward with public operators on a tiny input.

    A wrong kernel that takes keys for as many heads as queries reads within these tensors: they
    are views of larger ones. Its backward pass would write past its results, so it is not tried.
    """
    heads, tokens, head_dim = 4, 24, 8
    queries, key_storage, value_storage, grad = made_up_numbers(4, (1, heads, tokens, head_dim))
    keys, values = key_storage[:, :kv_heads], value_storage[:, :kv_heads]
    operator = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    result = operator(queries, keys, values, 0.0, True)
    expected = public_attention(queries, keys, values, None, causal=True)
    if not all_close(result, expected):
        return False
    start = torch.zeros(1, dtype=torch.int64, device=queries.device)
    bias = causal_bias(start, tokens, tokens, 1, queries)
    if not all_close(operator(queries, keys, values, 0.0, False, attn_mask=bias), expected):
        return False
    inputs = (grad, queries, keys, values, *expected)
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    gradients = backward(*inputs, 0.0, True)
    return all_close(gradients, public_attention_gradients(*inputs, causal=True))


def _check_packed_linear() -> bool:
    """Compare every packed product with a plain one, and the unpacked weight with the original."""
    weight, other = made_up_numbers(2, (24, 40))
    x, bias, factor = other[:3], weight[:, 0].contiguous(), weight[:3, :24].contiguous()
    packed, plain = pack_weight(weight), F.linear(x, weight, bias)
    results = (
        packed_linear(x, packed, bias),
        packed_linear_silu(x, packed, bias),
        packed_linear_times(x, factor, packed, bias),
    )
    expected = plain, F.silu(plain), plain * factor
    return all_close(results, expected) and torch.equal(packed.to_dense(), weight)


def made_up_numbers(count: int, shape: tuple[int, ...]) -> list[Tensor]:
    """Tensors of numbers between -1 and 1, without touching any random generator."""
    size = count * torch.Size(shape).numel()
    numbers = torch.arange(size, dtype=torch.float32, device="cpu").mul_(1.7).sin_()
    return list(numbers.view(count, *shape).unbind())


def all_close(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> bool:
    pairs = zip(actual, expected, strict=True)
    return all(torch.allclose(a, e, rtol=1e-4, atol=1e-5) for a, e in pairs)


def _flash_bounds(
    of_queries: PackedSequences, of_keys: PackedSequences
) -> tuple[Tensor, Tensor, int, int]:
    """Offsets and bounds of the longest: with a bound of 1, log sums come in another order."""
    longest = max(2, of_queries.longest), max(2, of_keys.longest)
    return of_queries.offsets, of_keys.offsets, *longest


def public_attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    bias: Tensor | None = None,
    causal: bool = False,
) -> tuple[Tensor, Tensor]:
    """The same as `flash_attention` on any device, from public operators."""
    kv_heads = keys.shape[1]
    folded = fold_groups(queries, kv_heads)
    bias = _bias_of_groups(queries, kv_heads, bias, causal)
    out, log_sum = attention_with_log_sum(folded, keys, values, bias)
    return out.reshape(queries.shape), log_sum.reshape(queries.shape[:-1])


def public_attention_gradients(
    grad: Tensor,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    out: Tensor,
    log_sum: Tensor,
    causal: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same as `flash_attention_gradients` on any device, from public operators."""
    kv_heads = keys.shape[1]
    grad, out, log_sum = (fold_groups(tensor, kv_heads) for tensor in (grad, out, log_sum))
    bias = _bias_of_groups(queries, kv_heads, None, causal)
    gradients = attention_gradients(
        grad, fold_groups(queries, kv_heads), keys, values, out, log_sum, bias
    )
    return gradients[0].reshape(queries.shape), gradients[1], gradients[2]


def _bias_of_groups(
    queries: Tensor, kv_heads: int, bias: Tensor | None, causal: bool
) -> Tensor | None:
    """The bias of queries whose groups are folded; `causal` stands for one of N queries, N keys."""
    groups, tokens = queries.shape[1] // kv_heads, queries.shape[2]
    if causal:
        start = torch.zeros(1, dtype=torch.int64, device=queries.device)
        return causal_bias(start, tokens, tokens, groups, queries)
    return bias if bias is None else bias.repeat(1, 1, groups, 1)


def _expand(tensor: Tensor, queries: Tensor) -> Tensor:
    """[R, K, M, D] -> [R, H, M, D]: each key/value head once for every query head it serves."""
    return tensor.repeat_interleave(queries.shape[1] // tensor.shape[1], dim=1)


def _sum_groups(gradient: Tensor, kv_heads: int) -> Tensor:
    """[R, H, M, D] -> [R, K, M, D]: what `_expand` turns gradients of its result into."""
    return gradient.unflatten(1, (kv_heads, -1)).sum(2)
