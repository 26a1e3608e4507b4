"""CUDA's attention of sequences end to end, on CPU tensors: the operators are emulated.

The emulations take and return what the operators do, in their layouts: tokens first, log sums
[H, N] of flash attention and padded ones [S, H, longest] of memory-efficient attention.
"""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from llama import packed_attention
from llama.attention import PackedSequences
from llama.packed_attention import EFFICIENT, FLASH, PUBLIC, cuda_kernel, is_right_kernel
from llama.private_ops import public_attention, public_attention_gradients
from lora import LoRAConfig
from tests.lora.test_loss import make_examples, packed, plain
from tests.tiny import tiny_decoder, with_random_lora

ATEN = torch.ops.aten
DEVICE = torch.device("cpu")
PADDED = 32


def spans(offsets: Tensor) -> list[tuple[int, int]]:
    assert offsets.dtype == torch.int32
    ends = offsets.tolist()
    return list(pairwise(ends))


def heads_first(tensor: Tensor) -> Tensor:
    """[N, H, D] -> [1, H, N, D]."""
    return tensor.transpose(0, 1)[None]


def tokens_first(tensor: Tensor) -> Tensor:
    return tensor[0].transpose(0, 1)


def flash_forward(q, k, v, starts, key_starts, longest, key_longest, dropout, causal, debug):
    assert longest >= 2 and key_longest >= 2 and not dropout and not debug
    out, log_sum = torch.empty_like(q), torch.empty(q.shape[1], len(q))
    for (b, e), (f, g) in zip(spans(starts), spans(key_starts), strict=True):
        assert e - b <= longest and g - f <= key_longest
        own = [heads_first(x).float() for x in (q[b:e], k[f:g], v[f:g])]
        own_out, own_sum = public_attention(*own, causal=causal)
        out[b:e], log_sum[:, b:e] = tokens_first(own_out), own_sum[0]
    return out, log_sum, torch.empty(2), torch.empty(()), torch.empty(0)


def flash_backward(
    grad, q, k, v, out, log_sum, starts, key_starts, longest, key_longest, dropout, causal, *state
):
    assert len(state) == 2 and log_sum.is_contiguous()
    grads = [torch.zeros_like(tensor) for tensor in (q, k, v)]
    for (b, e), (f, g) in zip(spans(starts), spans(key_starts), strict=True):
        own = [heads_first(x).float() for x in (grad[b:e], q[b:e], k[f:g], v[f:g], out[b:e])]
        parts = public_attention_gradients(*own, log_sum[None, :, b:e], causal=causal)
        for whole, part, (first, last) in zip(grads, parts, ((b, e), (f, g), (f, g)), strict=True):
            whole[first:last] = tokens_first(part)
    return tuple(grads)


def efficient_forward(q, k, v, bias, starts, key_starts, longest, key_longest, p, mask, with_sums):
    assert bias is None and with_sums and mask in (0, 1) and q.shape[2] == k.shape[2]
    assert longest <= q.shape[1] and key_longest <= k.shape[1]
    bounds = (starts, key_starts, max(2, longest), max(2, key_longest))
    out, log_sum, *_ = flash_forward(q[0], k[0], v[0], *bounds, p, bool(mask), False)
    size = math.ceil(longest / PADDED) * PADDED
    padded = torch.full((len(starts) - 1, q.shape[2], size), float("nan"))
    for number, (b, e) in enumerate(spans(starts)):
        padded[number, :, : e - b] = log_sum[:, b:e]
    return out[None], padded, torch.empty(()), torch.empty(()), longest, key_longest


def efficient_backward(
    grad, q, k, v, bias, out, starts, key_starts, longest, key_longest, padded, p, *options
):
    _, _, mask, of_bias = options
    assert bias is None and not of_bias and out.is_contiguous()
    log_sum = torch.cat([padded[i, :, : e - b] for i, (b, e) in enumerate(spans(starts))], dim=-1)
    assert padded.shape[-1] % PADDED == 0 and log_sum.isfinite().all()
    inputs = [tensor[0] for tensor in (grad, q, k, v, out)]
    bounds = (starts, key_starts, max(2, longest), max(2, key_longest))
    grads = flash_backward(*inputs, log_sum.contiguous(), *bounds, p, bool(mask), None, None)
    return *[each[None] for each in grads], None


EMULATIONS = {
    "_flash_attention_forward": flash_forward,
    "_flash_attention_backward": flash_backward,
    "_efficient_attention_forward": efficient_forward,
    "_efficient_attention_backward": efficient_backward,
}
OPERATORS = {"flash": "_flash_attention", "memory-efficient": "_efficient_attention"}
KERNELS = {"flash": FLASH, "memory-efficient": EFFICIENT}


@pytest.fixture(autouse=True)
def emulated(monkeypatch):
    cuda_kernel.cache_clear()
    for name, function in EMULATIONS.items():
        monkeypatch.setattr(ATEN, name, function)
    yield
    cuda_kernel.cache_clear()


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize("groups", [1, 3])
def test_a_kernel_that_keeps_to_its_interface_is_right(kernel, groups):
    assert is_right_kernel(kernel, DEVICE, torch.float32, 8, groups)


def scale(place: int):
    """Spoil one result by a tenth."""

    def spoil(results):
        spoiled = list(results)
        spoiled[place] = spoiled[place] * 1.1
        return tuple(spoiled)

    return spoil


FAULTS = {
    "out": ("forward", scale(0)),
    "log sums": ("forward", scale(1)),
    "gradient of queries": ("backward", scale(0)),
    "gradient of keys": ("backward", scale(1)),
    "gradient of values": ("backward", scale(2)),
    "not a number": ("backward", lambda results: (results[0] * float("nan"), *results[1:])),
}


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_kernel_is_found_out(name, fault, monkeypatch):
    half, spoil = FAULTS[fault]
    operator = f"{OPERATORS[name]}_{half}"
    whole = EMULATIONS[operator]
    monkeypatch.setattr(ATEN, operator, lambda *inputs: spoil(whole(*inputs)))
    assert not is_right_kernel(KERNELS[name], DEVICE, torch.float32, 8, 2)


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_that_is_not_causal_is_found_out(name, monkeypatch):
    operator = f"{OPERATORS[name]}_forward"
    whole, place = EMULATIONS[operator], {"flash": 8, "memory-efficient": 9}[name]
    monkeypatch.setattr(
        ATEN, operator, lambda *x: whole(*x[:place], type(x[place])(0), *x[place + 1 :])
    )
    assert not is_right_kernel(KERNELS[name], DEVICE, torch.float32, 8, 2)


def absent(*_):
    raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.")


@pytest.mark.parametrize(
    ("dtype", "head_dim", "refused", "expected"),
    [
        (torch.bfloat16, 64, (), FLASH),
        (torch.float16, 64, (), FLASH),
        (torch.float32, 64, (), EFFICIENT),
        (torch.bfloat16, 20, (), EFFICIENT),
        (torch.float16, 64, ("_flash_attention_forward",), EFFICIENT),  # a T4
        (torch.bfloat16, 64, ("_flash_attention_backward",), EFFICIENT),
        (torch.float32, 64, ("_efficient_attention_forward",), PUBLIC),
        (
            torch.bfloat16,
            64,
            ("_flash_attention_forward", "_efficient_attention_backward"),
            PUBLIC,
        ),
    ],
)
def test_the_fastest_kernel_that_is_there_is_chosen(
    dtype, head_dim, refused, expected, monkeypatch
):
    for name in refused:
        monkeypatch.setattr(ATEN, name, absent)
    assert cuda_kernel(DEVICE, dtype, head_dim, 2) is expected


def test_the_check_is_made_once(monkeypatch):
    assert cuda_kernel(DEVICE, torch.float32, 64, 2) is EFFICIENT
    monkeypatch.setattr(ATEN, "_efficient_attention_forward", absent)
    assert cuda_kernel(DEVICE, torch.float32, 64, 2) is EFFICIENT


@pytest.mark.parametrize("prefix", [0, 11])
@pytest.mark.parametrize("kernel", [PUBLIC, FLASH, EFFICIENT], ids=["public", *KERNELS])
def test_training_has_the_plain_ways_losses_and_gradients(kernel, prefix, monkeypatch):
    """The whole path of a CUDA device, in several passes."""
    monkeypatch.setattr(packed_attention, "choose_kernel", lambda *_: kernel)
    model = with_random_lora(tiny_decoder("llama3-scaled"), LoRAConfig(rank=4), seed=1)
    examples = make_examples(prefix, prefix, supervise_all=True)
    loss, gradients = packed(model, examples, 30)
    plain_loss, plain_gradients = plain(model, examples)
    assert loss == pytest.approx(plain_loss, rel=1e-5)
    for ours, theirs in zip(gradients, plain_gradients, strict=True):
        assert (ours - theirs).abs().max() <= 3e-5 * theirs.abs().max()


def test_sequences_end_to_end():

    batch = PackedSequences([1, 3], DEVICE)
    assert batch.offsets.tolist() == [0, 1, 4]
    assert batch.numbers.tolist() == [0, 1, 1, 1]
    assert batch.places.tolist() == [0, 0, 1, 2]
    assert (batch.longest, batch.spans) == (3, [(0, 1), (1, 4)])
