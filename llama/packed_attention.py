"""Attention of sequences that lie end to end, forward and backward, on every device.

On CUDA it is one operator for all sequences: flash attention, or memory-efficient attention where
that is not to be had. Both have no public name (llama/private_ops.py): the first use on a device
compares them with public operators. Elsewhere, and where neither is right, one sequence follows the
other.

Shapes: H query heads, K key/value heads, N queries, M keys, D head_dim.
"""

from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor

from llama import private_ops
from llama.attention import PackedSequences
from llama.notices import tell_once

HALF_DTYPES = (torch.float16, torch.bfloat16)

Forward = Callable[..., tuple[Tensor, Tensor]]
Backward = Callable[..., tuple[Tensor, Tensor, Tensor]]
Kernel = tuple[Forward, Backward]  # with the arguments of the two functions that follow


def packed_attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    of_queries: PackedSequences,
    of_keys: PackedSequences,
    causal: bool,
) -> tuple[Tensor, Tensor]:
    """Attention of each sequence's queries over the keys of the sequence of the same number.

    [1, H, N, D] over [1, K, M, D] -> [1, H, N, D] and the logarithms of softmax sums [1, H, N]
    (float32; float64 for float64). `causal` needs sequences of as many keys as queries.
    """
    forward, _ = choose_kernel(queries, keys)
    return forward(queries, keys, values, of_queries, of_keys, causal)


def packed_attention_gradients(
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
    """Gradients of queries, keys and values of `packed_attention`, given that of `out`.

    `out` and `log_sum` may be merged with those over other keys: see `attention_gradients`.
    """
    _, backward = choose_kernel(queries, keys)
    inputs = (grad, queries, keys, values, out, log_sum)
    return backward(*inputs, of_queries, of_keys, causal)


def _one_by_one(
    attention: Forward,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    of_queries: PackedSequences,
    of_keys: PackedSequences,
    causal: bool,
) -> tuple[Tensor, Tensor]:
    """`packed_attention` with a function for a single sequence."""
    if not causal and len(of_queries.spans) == 1:  # a prefix: nothing to cut, nothing to copy
        return attention(queries, keys, values)
    outs: list[Tensor] = []
    log_sums: list[Tensor] = []
    for (begin, end), (first, last) in zip(of_queries.spans, of_keys.spans, strict=True):
        own_keys, own_values = keys[:, :, first:last], values[:, :, first:last]
        out, log_sum = attention(queries[:, :, begin:end], own_keys, own_values, causal=causal)
        outs.append(out)
        log_sums.append(log_sum)
    return torch.cat(outs, dim=2), torch.cat(log_sums, dim=2)


def _one_by_one_gradients(
    gradients: Backward,
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
    """`packed_attention_gradients` with a function for a single sequence."""
    if not causal and len(of_queries.spans) == 1:
        return gradients(grad, queries, keys, values, out, log_sum)
    parts = []
    for (begin, end), (first, last) in zip(of_queries.spans, of_keys.spans, strict=True):
        parts.append(
            gradients(
                grad[:, :, begin:end],
                queries[:, :, begin:end],
                keys[:, :, first:last],
                values[:, :, first:last],
                out[:, :, begin:end],
                log_sum[:, :, begin:end],
                causal=causal,
            )
        )
    of_queries_, of_keys_, of_values_ = (
        torch.cat(each, dim=2) for each in zip(*parts, strict=True)
    )
    return of_queries_, of_keys_, of_values_


CPU: Kernel = (
    partial(_one_by_one, private_ops.flash_attention),
    partial(_one_by_one_gradients, private_ops.flash_attention_gradients),
)
PUBLIC: Kernel = (
    partial(_one_by_one, private_ops.public_attention),
    partial(_one_by_one_gradients, private_ops.public_attention_gradients),
)
FLASH: Kernel = private_ops.flash_packed_attention, private_ops.flash_packed_gradients
EFFICIENT: Kernel = private_ops.efficient_packed_attention, private_ops.efficient_packed_gradients


def choose_kernel(queries: Tensor, keys: Tensor) -> Kernel:
    """The kernel for tensors of this device, dtype and shape."""
    if queries.is_cpu:
        return CPU
    if queries.device.type != "cuda":
        return PUBLIC
    groups = queries.shape[1] // keys.shape[1]
    return cuda_kernel(queries.device, queries.dtype, queries.shape[-1], groups)


@cache
def cuda_kernel(device: torch.device, dtype: torch.dtype, head_dim: int, groups: int) -> Kernel:
    """The fastest kernel that this device has and that is right there.

    Flash attention needs 16-bit numbers and compute capability 8.0.
    """
    candidates = [EFFICIENT]
    if dtype in HALF_DTYPES and head_dim % 8 == 0:
        candidates.insert(0, FLASH)
    for kernel in candidates:
        check = partial(is_right_kernel, kernel, device, dtype, head_dim, groups)
        if private_ops.is_right(check, device.type):
            return kernel
    tell_once(
        f"no attention kernel for training in {dtype} is right on {device}: plain products do"
    )
    return PUBLIC


def is_right_kernel(
    kernel: Kernel, device: torch.device, dtype: torch.dtype, head_dim: int, groups: int
) -> bool:
    """Compare a kernel with public operators in float32, on four sequences behind a prefix.

    Both directions count. What rounding to `dtype` changes is allowed for.
    """
    numbers = private_ops.made_up_numbers(4, (1, 2 * groups, 56, head_dim))
    queries, keys, values, grad = (tensor.to(device, dtype) for tensor in numbers)
    keys, values = keys[:, :2], values[:, :2]
    inputs = [grad, queries, keys, values, keys[:, :, 20:29], values[:, :, 20:29]]
    actual = _with_prefix(kernel, inputs)
    expected = _with_prefix(PUBLIC, [tensor.float() for tensor in inputs])
    tolerance = 2e-2 if dtype in HALF_DTYPES else 5e-3  # TensorFloat-32 may be switched on
    for ours, theirs in zip(actual, expected, strict=True):
        error = (ours.float() - theirs).abs().max()
        if not error <= tolerance * theirs.abs().max():  # a NaN is not right either
            return False
    return True


def _with_prefix(kernel: Kernel, inputs: list[Tensor]) -> list[Tensor]:
    """All that training gets of a kernel: sequences attend to themselves and to a prefix."""
    forward, backward = kernel
    grad, queries, keys, values, *shared = inputs
    own = PackedSequences((5, 33, 1, 17), grad.device)
    whole, prefix = PackedSequences((56,), grad.device), PackedSequences((9,), grad.device)
    out, log_sum = merge(
        *forward(queries, keys, values, own, own, True),
        *forward(queries, *shared, whole, prefix, False),
    )
    of_own = backward(grad, queries, keys, values, out, log_sum, own, own, True)
    of_prefix = backward(grad, queries, *shared, out, log_sum, whole, prefix, False)
    return [out, log_sum, *of_own, *of_prefix]


def merge(
    out: Tensor, log_sum: Tensor, other_out: Tensor, other_log_sum: Tensor
) -> tuple[Tensor, Tensor]:
    """One attention of two over different keys, from their log sums; changes the two in place."""
    total = torch.logaddexp(log_sum, other_log_sum)
    out *= (log_sum - total).exp_()[..., None]
    out += other_out.mul_((other_log_sum - total).exp_()[..., None])
    return out, total
