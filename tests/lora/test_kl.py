"""The divergence to the base model and its gradients are those of the plain way, through PEFT's
switch as well.
"""

import math

import peft
import pytest
import torch
from torch.nn.functional import kl_div

from data.examples import IGNORE_INDEX, Example
from llama import load_model
from llama.errors import UserError
from lora import (
    LoRAConfig,
    kl_anchor,
    load_adapter,
    lora_disabled,
    lora_parameters,
    set_lora_scale,
)
from lora import kl as kl_module
from lora.kl import FrozenHeadKL, mean_divergences, position_divergences
from lora.kl_anchor import ANCHOR_TOKENS, Anchor, FirstTokens, continue_prompts, continue_sharded
from tests.tiny import save_transformers_model, tiny_transformers_model, with_random_lora


def make_examples(seed: int = 0) -> list[Example]:
    generator = torch.Generator().manual_seed(seed)
    examples = []
    for length, start in [(12, 4), (30, 29), (7, 0), (40, 10)]:
        ids = torch.randint(0, 199, (length,), generator=generator).tolist()
        examples.append(Example(ids, [IGNORE_INDEX] * start + ids[start:]))
    return examples


@pytest.fixture(params=["llama", "qwen3", "qwen2"])
def model(request, tiny_checkpoint):
    model = load_model(tiny_checkpoint(request.param))
    return with_random_lora(model, LoRAConfig(rank=4), seed=1)


def plain_divergences(model, example: Example) -> torch.Tensor:
    """One example, full logits, torch's kl_div."""
    ids = torch.tensor([example.input_ids])
    with torch.no_grad(), lora_disabled(model):
        base = model.logits(model(ids))[0].log_softmax(-1)
    tuned = model.logits(model(ids))[0].log_softmax(-1)
    places = [i - 1 for i, label in enumerate(example.labels) if label != IGNORE_INDEX and i]
    return kl_div(tuned[places], base[places], log_target=True, reduction="none").sum(-1)


@pytest.mark.parametrize("chunk", [128, 3])
def test_divergences_and_gradients_equal_the_plain_way(model, chunk, monkeypatch):
    monkeypatch.setattr(kl_module, "CHUNK", chunk)
    examples = make_examples()
    plain = [plain_divergences(model, example) for example in examples]
    actual, counts = position_divergences(model, examples)
    assert counts == [8, 1, 6, 30] and actual.min() > 0
    torch.testing.assert_close(actual, torch.cat(plain), rtol=1e-4, atol=1e-6)
    weights = torch.rand(45, generator=torch.Generator().manual_seed(2))
    expected = torch.autograd.grad((torch.cat(plain) * weights).sum(), lora_parameters(model))
    found = torch.autograd.grad((actual * weights).sum(), lora_parameters(model))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_gradcheck():
    torch.manual_seed(0)
    tuned, base, head = (torch.randn(n, 6, dtype=torch.float64) for n in (5, 5, 11))
    assert torch.autograd.gradcheck(
        lambda x: FrozenHeadKL.apply(x, base, head), tuned.requires_grad_()
    )


def test_means_are_of_each_example_and_in_passes(model, monkeypatch):
    monkeypatch.setattr(kl_module, "PASS_TOKENS", 45)
    examples = make_examples()
    expected = [plain_divergences(model, example).mean().item() for example in examples]
    model.train()
    assert mean_divergences(model, examples) == pytest.approx(expected, rel=1e-4)
    assert model.training


def test_a_divergence_that_is_not_finite_is_an_error(model):
    model.model["layers"][1].mlp.up_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(UserError, match=r"b: the divergence from the base is nan: without .*up_pr"):
        mean_divergences(model, make_examples()[1:2], names=["b"])


def test_what_all_begin_with_is_computed_once_and_changes_nothing(model, monkeypatch):
    shared = list(range(20))
    examples = [
        Example(
            shared + e.input_ids,
            [IGNORE_INDEX] * 20
            + [IGNORE_INDEX if i < 3 else label for i, label in enumerate(e.labels)],
        )
        for e in make_examples()
    ]
    assert kl_module.unsupervised_prefix_length(examples) == 20
    expected = [plain_divergences(model, example).mean().item() for example in examples]
    read = []
    model.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0].shape[1]))
    assert mean_divergences(model, examples) == pytest.approx(expected, rel=1e-4)
    assert read == [20, 89, 20, 89]  # base and tuned, the prefix once for each


def test_a_supervised_token_is_never_part_of_the_unsupervised_prefix_length(model):
    ids = list(range(10))
    examples = [
        Example([*ids, 11], [IGNORE_INDEX] * 4 + [*ids[4:], 11]),
        Example([*ids, 12], [IGNORE_INDEX] * 10 + [12]),
    ]
    assert kl_module.unsupervised_prefix_length(examples) == 3
    expected = [plain_divergences(model, example).mean().item() for example in examples]
    assert mean_divergences(model, examples) == pytest.approx(expected, rel=1e-4)


def test_an_anchors_gradients_are_those_of_its_weighted_mean(model, monkeypatch):
    examples = make_examples()
    mean = torch.cat([plain_divergences(model, example) for example in examples]).sum() / 45
    expected = torch.autograd.grad(mean, lora_parameters(model))
    monkeypatch.setattr(kl_anchor, "PASS_TOKENS", 45)  # in several passes
    anchor = Anchor(model, examples, weight=3.0, batch_size=8, seed=0)
    assert anchor.add_gradients(0, lambda loss: 2 * loss) == pytest.approx(mean.item(), rel=1e-4)
    for parameter, gradient in zip(lora_parameters(model), expected, strict=True):
        torch.testing.assert_close(parameter.grad, 6 * gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("pass_tokens", [45, 2048])
def test_first_tokens_weigh_more_in_the_gradients_and_not_in_the_log(
    model, monkeypatch, pass_tokens
):
    examples = make_examples()
    plain = [plain_divergences(model, example) for example in examples]
    first = FirstTokens(count=2, weight=5.0)
    weights = [torch.ones(len(each)) for each in plain]
    for each in weights:
        each[:2] = 5.0  # the second answer has one token alone
    total = sum(each.sum() for each in weights)
    assert first.weights([3, 1]) == [5.0, 5.0, 1.0, 5.0]
    weighted = (torch.cat(plain) * torch.cat(weights)).sum() / total
    expected = torch.autograd.grad(weighted, lora_parameters(model), retain_graph=True)
    monkeypatch.setattr(kl_anchor, "PASS_TOKENS", pass_tokens)
    anchor = Anchor(model, examples, weight=3.0, batch_size=8, seed=0, first=first)
    logged = anchor.add_gradients(0, lambda loss: loss)
    assert logged == pytest.approx(torch.cat(plain).mean().item(), rel=1e-4)
    for parameter, gradient in zip(lora_parameters(model), expected, strict=True):
        torch.testing.assert_close(parameter.grad, 3 * gradient, rtol=1e-3, atol=1e-5)


def test_every_anchor_has_its_turn_whatever_step_one_starts_at(model):
    examples = make_examples()
    anchor = Anchor(model, examples, weight=1.0, batch_size=3, seed=0)
    for epoch in range(3):
        seen = [example for step in (2 * epoch, 2 * epoch + 1) for example in anchor.batch(step)]
        assert sorted(map(id, seen)) == sorted(map(id, examples))
    assert anchor.batch(5) == Anchor(model, examples, 1.0, 3, seed=0).batch(5)


def test_an_adapter_scaled_to_nothing_is_the_base(model):
    set_lora_scale(model, 0.0)
    assert mean_divergences(model, make_examples()) == pytest.approx([0.0] * 4, abs=1e-6)


def test_divergence_equals_that_of_peft_with_its_adapter_disabled(tmp_path):
    theirs = tiny_transformers_model("llama")
    ours = load_model(save_transformers_model(theirs, tmp_path / "model"))
    torch.manual_seed(3)
    wrapped = peft.get_peft_model(
        theirs, peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"])
    )
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    wrapped.save_pretrained(tmp_path / "adapter")
    load_adapter(ours, tmp_path / "adapter")
    (example, *_) = make_examples()
    with torch.no_grad():
        tuned = wrapped(torch.tensor([example.input_ids])).logits[0].log_softmax(-1)
        with wrapped.disable_adapter():
            base = wrapped(torch.tensor([example.input_ids])).logits[0].log_softmax(-1)
    expected = (
        kl_div(tuned[3:-1], base[3:-1], log_target=True, reduction="none").sum(-1).mean().item()
    )
    assert mean_divergences(ours, [example]) == pytest.approx([expected], rel=1e-4)


def test_answers_of_sharded_weights_are_the_same(model, monkeypatch):
    """Passes without a cache, as FSDP needs them; here without FSDP."""
    prompts = [[5, 6, 7], [8, 9], list(range(10, 30)), [40] * 230]
    stop_ids = frozenset(range(0, 199, 7))
    expected = continue_prompts(model, prompts, stop_ids)
    monkeypatch.setattr(kl_anchor, "PASS_TOKENS", 30)
    assert continue_sharded(model, prompts, stop_ids) == expected
    assert len({len(example.input_ids) for example in expected}) > 2


def test_answers_of_sharded_weights_end_at_logits_that_are_not_finite(model):
    """As answers do that are generated otherwise: the argmax of NaN is a token like any other."""
    model.model["norm"].weight.data[0] = math.nan
    for answer in (continue_prompts, continue_sharded):
        with pytest.raises(
            UserError, match=r"prompt 0: the logits of new token 1 .*model\.norm hold"
        ):
            answer(model, [[5, 6, 7], [8, 9]], frozenset({2}))


def test_anchors_are_the_bases_own_answers(model):
    prompts = [[5, 6, 7], [8, 9]]
    answered = continue_prompts(model, prompts, stop_ids=frozenset({2}))
    with lora_disabled(model), torch.no_grad():
        for prompt, anchor in zip(prompts, answered, strict=True):
            answer = anchor.input_ids[len(prompt) :]
            assert (
                anchor.labels == [IGNORE_INDEX] * len(prompt) + answer
                and len(answer) <= ANCHOR_TOKENS
            )
            greedy = model.logits(model(torch.tensor([anchor.input_ids])))[0].argmax(-1).tolist()
            assert greedy[len(prompt) - 1 : -1] == answer
