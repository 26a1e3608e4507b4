"""Each private operator absent or wrong: its check notices, and the public way does the same."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from data.examples import IGNORE_INDEX, Example
from llama import cached_attention, generate, load_model, private_ops
from llama.onednn import PackedMLP, prepacked
from llama.onednn_attention import has_product_attention
from llama.private_ops import flash_attention, flash_attention_gradients
from lora import LoRAConfig, inject_lora, lora_parameters
from lora.loss import step_loss
from lora.onednn import packed_weights

CHECKS = (
    private_ops.has_flash_attention,
    private_ops.has_grouped_flash_attention,
    private_ops.has_packed_linear,
    has_product_attention,
)
FLASH = "_scaled_dot_product_flash_attention_for_cpu"
ATEN, MKLDNN = torch.ops.aten, torch.ops.mkldnn
forward, backward = getattr(ATEN, FLASH), getattr(ATEN, f"{FLASH}_backward")
linear_pointwise = MKLDNN._linear_pointwise


def absent(*_, **__):
    raise AttributeError("no such operator")


def wrong_result(*inputs, **options):
    out, log_sum = forward(*inputs, **options)
    return out * 1.01, log_sum


def one_key_head_for_each_query_head(queries, keys, values, *options, **more):
    """Read key/value heads that are not there, as torch 2.6 to 2.8 do."""
    if keys.shape[1] != queries.shape[1]:
        shape = (*queries.shape[:2], *keys.shape[2:])
        keys, values = (x.as_strided(shape, x.stride()) for x in (keys, values))
    return forward(queries, keys, values, *options, **more)


def wrong_gradients(*inputs):
    grad_queries, grad_keys, grad_values = backward(*inputs)
    return grad_queries, grad_keys * 1.01, grad_values


def wrong_activation(x, weight, bias, name, *options):
    return linear_pointwise(x, weight, bias, name, *options) + (0.1 if name == "swish" else 0)


def wrong_for_plain_weights(*inputs):
    packed = any(isinstance(each, Tensor) and each.is_mkldnn for each in inputs)
    return linear_pointwise(*inputs) * (1 if packed else 1.01)


# Which checks notice, in the order of CHECKS.
NO_FLASH, NO_GROUPS = [True, True, False, False], [False, True, False, False]
NO_PACKING, NO_PLAIN = [False, False, True, False], [False, False, False, True]
NO_PRODUCTS = [False, False, True, True]

# fault -> namespace, operator, what stands in its place, which checks must notice
FAULTS = {
    "flash absent": (ATEN, FLASH, absent, NO_FLASH),
    "flash wrong": (ATEN, FLASH, wrong_result, NO_FLASH),
    "fewer key heads wrong": (ATEN, FLASH, one_key_head_for_each_query_head, NO_GROUPS),
    "backward absent": (ATEN, f"{FLASH}_backward", absent, NO_FLASH),
    "backward wrong": (ATEN, f"{FLASH}_backward", wrong_gradients, NO_FLASH),
    "packing absent": (MKLDNN, "_reorder_linear_weight", absent, NO_PACKING),
    "products absent": (MKLDNN, "_linear_pointwise", absent, NO_PRODUCTS),
    "activation wrong": (MKLDNN, "_linear_pointwise", wrong_activation, NO_PACKING),
    "plain weights wrong": (MKLDNN, "_linear_pointwise", wrong_for_plain_weights, NO_PLAIN),
}


def forget_checks() -> None:
    for check in CHECKS:
        check.cache_clear()


@pytest.fixture(params=FAULTS)
def break_operator(request, monkeypatch):
    """A function that puts the fault in place; the checks run anew, and again after the test."""
    namespace, name, stand_in, failing = FAULTS[request.param]

    def put_in_place() -> list[bool]:
        monkeypatch.setattr(namespace, name, stand_in)
        forget_checks()
        return failing

    yield put_in_place
    monkeypatch.undo()
    forget_checks()


def test_operators_of_this_version_are_right():
    """On a CPU with oneDNN, and a version of torch that this project is developed with."""
    assert [check() for check in CHECKS] == [
        True,
        True,
        *[torch.backends.mkldnn.is_available()] * 2,
    ]


def test_each_fault_is_noticed(break_operator):
    failing = break_operator()
    assert [not check() for check in CHECKS] == failing


@pytest.mark.parametrize("mode", ["inference", "autocast", "meta", "float64"])
def test_checks_do_not_depend_on_the_mode_they_run_in(mode):
    forget_checks()
    contexts = {
        "inference": torch.inference_mode(),
        "autocast": torch.autocast("cpu", torch.bfloat16),
        "meta": torch.device("meta"),
    }
    state = torch.get_rng_state()
    if mode == "float64":
        torch.set_default_dtype(torch.float64)
    try:
        with contexts.get(mode, torch.no_grad()):
            assert [check() for check in CHECKS] == [True] * 4
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.get_rng_state(), state)


def reference(queries: Tensor, keys: Tensor, values: Tensor, causal: bool, grad: Tensor):
    """Output, log sums and gradients, by autograd through a plain softmax."""
    inputs = [x.clone().requires_grad_() for x in (queries, keys, values)]
    groups = queries.shape[1] // keys.shape[1]
    wide_keys, wide_values = (x.repeat_interleave(groups, dim=1) for x in inputs[1:])
    scores = inputs[0] @ wide_keys.transpose(-1, -2) / queries.shape[-1] ** 0.5
    if causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(hidden, float("-inf"))
    out = scores.softmax(-1) @ wide_values
    return out, scores.logsumexp(-1), torch.autograd.grad(out, inputs, grad)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "all keys"])
@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_attention_and_gradients_equal_autograd(break_operator, kv_heads, causal):
    break_operator()
    torch.manual_seed(0)
    queries, grad = torch.randn(2, 1, 6, 33, 12).unbind()
    keys, values = torch.randn(2, 1, kv_heads, 33 if causal else 50, 12).unbind()
    out, log_sum = flash_attention(queries, keys, values, causal=causal)
    gradients = flash_attention_gradients(grad, queries, keys, values, out, log_sum, causal)
    expected_out, expected_log_sum, expected_gradients = reference(
        queries, keys, values, causal, grad
    )
    torch.testing.assert_close((out, log_sum), (expected_out, expected_log_sum))
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-4, atol=1e-5)


def test_a_bias_hides_keys(break_operator):
    break_operator()
    torch.manual_seed(0)
    queries, keys, values = torch.randn(3, 2, 4, 20, 8).unbind()
    bias = torch.zeros(2, 1, 20, 20).masked_fill(torch.rand(2, 1, 20, 20) < 0.3, float("-inf"))
    bias[..., 0] = 0
    expected = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias)
    torch.testing.assert_close(flash_attention(queries, keys, values, bias)[0], expected)


def test_decoding_gives_the_same_tokens(break_operator, tiny_checkpoint, monkeypatch):
    monkeypatch.setattr(cached_attention, "MANY_SCORES", 0)
    model = load_model(tiny_checkpoint("qwen3"))
    generator = torch.Generator().manual_seed(0)
    shared = torch.randint(12, 199, (30,), generator=generator).tolist()
    prompts = [shared + [50 + i] * (i + 1) for i in range(8)]
    expected = generate(model, prompts, 20, frozenset(), 4)
    break_operator()
    assert generate(model, prompts, 20, frozenset(), 4) == expected


def test_training_gives_the_same_loss_and_gradients(break_operator, tiny_checkpoint):
    model = load_model(tiny_checkpoint("llama3-scaled"))
    torch.manual_seed(0)
    inject_lora(model, LoRAConfig(rank=2))
    for parameter in lora_parameters(model):
        torch.nn.init.normal_(parameter, std=0.1)
    shared, own = list(range(20, 60)), [list(range(70 + i, 100 + i)) for i in range(3)]
    examples = [Example(shared + ids, [IGNORE_INDEX] * 40 + ids) for ids in own]

    def loss_and_gradients() -> tuple[float, list[Tensor]]:
        model.zero_grad(set_to_none=True)
        with packed_weights(model):
            loss = step_loss(model, examples, 1000, lambda loss: loss)
        return loss, [parameter.grad for parameter in lora_parameters(model)]

    expected_loss, expected = loss_and_gradients()
    break_operator()
    loss, gradients = loss_and_gradients()
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    torch.testing.assert_close(gradients, expected, rtol=1e-4, atol=1e-4)


def test_nothing_is_packed_without_the_operators(break_operator, tiny_checkpoint):
    model = load_model(tiny_checkpoint("llama"))
    cannot_pack = break_operator()[2]
    with prepacked(model):
        assert isinstance(model.model["layers"][0].mlp, PackedMLP) != cannot_pack
