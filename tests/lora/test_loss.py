"""Packed examples, the shared prefix and the chunked loss give the plain way's losses and gradients."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from data.examples import IGNORED, Example
from llama import Decoder, ModelConfig
from lora import LoRAConfig, inject_lora, lora_parameters
from lora import loss as loss_module
from lora.loss import FrozenHeadCrossEntropy, summed_loss
from lora.packing import PackedBatch, micro_batches
from tests.tiny import tiny_transformers_model


def make_examples(seed: int, prefix: int = 0, supervise_all: bool = False) -> list[Example]:
    generator = torch.Generator().manual_seed(seed)

    def draw(count):
        return torch.randint(0, 199, (count,), generator=generator).tolist()

    shared, examples = draw(prefix), []
    for prompt, answer in ((5, 9), (12, 3), (1, 20), (7, 7)):
        ids = shared + draw(prompt) + draw(answer)
        ignored = 0 if supervise_all else prefix + prompt
        examples.append(Example(ids, [IGNORED] * ignored + ids[ignored:]))
    return examples


@pytest.fixture(params=["llama3-scaled", "qwen3"])
def model(request):
    torch.manual_seed(0)
    theirs = tiny_transformers_model(request.param)
    model = Decoder(ModelConfig.from_dict(theirs.config.to_dict()))
    model.load_state_dict(theirs.state_dict(), strict=False)
    inject_lora(model, LoRAConfig(rank=4))
    for parameter in lora_parameters(model):
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def plain_loss(model: Decoder, examples: list[Example]) -> torch.Tensor:
    """One example after another, full logits, torch's cross-entropy on shifted labels."""
    total = 0.0
    for example in examples:
        logits = model.logits(model(torch.tensor([example.input_ids])))[0]
        total = total + cross_entropy(
            logits[:-1], torch.tensor(example.labels[1:]), ignore_index=IGNORED, reduction="sum"
        )
    return total


def gradients(model: Decoder, loss: torch.Tensor) -> list[torch.Tensor]:
    return torch.autograd.grad(loss, lora_parameters(model))


@pytest.mark.parametrize("supervise_all", [False, True], ids=["answer", "all"])
@pytest.mark.parametrize("prefix", [0, 11])
def test_packed_loss_and_gradients_equal_the_plain_way(model, prefix, supervise_all):
    examples = make_examples(1, prefix, supervise_all)
    batch = PackedBatch(examples)
    expected, actual = plain_loss(model, examples), summed_loss(model, batch)
    assert batch.prefix_length == prefix
    assert batch.input_ids.shape[1] == batch.tokens - 3 * prefix, "the prefix is computed once"
    assert actual.item() == pytest.approx(expected.item(), rel=1e-5)
    for ours, theirs in zip(gradients(model, actual), gradients(model, expected), strict=True):
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def test_gradients_through_the_prefix_matter(model, monkeypatch):
    """The test above notices if gradients through the shared keys and values are dropped."""
    examples = make_examples(1, prefix=11)
    expected = gradients(model, plain_loss(model, examples))
    attend = PackedBatch.attend

    def detached(self, layer, queries, keys, values):
        p = self.prefix_length
        keys = torch.cat((keys[:, :p].detach(), keys[:, p:]), dim=1)
        values = torch.cat((values[:, :p].detach(), values[:, p:]), dim=1)
        return attend(self, layer, queries, keys, values)

    monkeypatch.setattr(PackedBatch, "attend", detached)
    actual = gradients(model, summed_loss(model, PackedBatch(examples)))
    worst = max(((a - e).abs().max() / e.abs().max()).item() for a, e in zip(actual, expected, strict=True))
    assert worst > 1e-2


def test_examples_do_not_see_each_other(model):
    first, second = make_examples(2)[:2]
    other = Example([5] * 8, [IGNORED] * 4 + [5] * 4)
    alone = summed_loss(model, PackedBatch([second])).item()
    for neighbour in (first, other):
        together = summed_loss(model, PackedBatch([neighbour, second])).item()
        assert together - summed_loss(model, PackedBatch([neighbour])).item() == pytest.approx(alone, rel=1e-4)


def test_chunks_change_nothing(model, monkeypatch):
    batch = PackedBatch(make_examples(3))
    whole = summed_loss(model, batch)
    expected = gradients(model, whole)
    monkeypatch.setattr(loss_module, "CHUNK", 5)
    chunked = summed_loss(model, batch)
    assert chunked.item() == pytest.approx(whole.item(), rel=1e-6)
    for ours, theirs in zip(gradients(model, chunked), expected, strict=True):
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def test_gradcheck():
    torch.manual_seed(0)
    hidden = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    head, targets = torch.randn(11, 5, dtype=torch.float64), torch.tensor([0, 10, 3, 3, 7, 1, 2])
    weights = torch.tensor([1.0, 2.0, 1.0, 0.5, 3.0, 1.0, 1.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda h: FrozenHeadCrossEntropy.apply(h, head, targets, weights) * 0.3, hidden)
    expected = (cross_entropy(hidden @ head.T, targets, reduction="none") * weights).sum()
    assert FrozenHeadCrossEntropy.apply(hidden, head, targets, weights).item() == pytest.approx(expected.item())


def test_loss_and_backward_on_the_meta_device(model):
    """Every tensor follows the model's device: the only CUDA check a CPU machine can make."""
    meta = model.to("meta")
    loss = summed_loss(meta, PackedBatch(make_examples(1, prefix=11), "meta"))
    loss.backward()
    assert all(parameter.grad.device.type == "meta" for parameter in lora_parameters(meta))


def test_micro_batches_keep_order_and_bound():
    examples = make_examples(0)  # 14, 15, 21 and 14 tokens
    assert [len(part) for part in micro_batches(examples, 30)] == [2, 1, 1]
    assert [len(part) for part in micro_batches(examples, 1)] == [1, 1, 1, 1]
    assert [len(part) for part in micro_batches(examples, 1000)] == [4]
    assert [example for part in micro_batches(examples, 30) for example in part] == examples


def test_micro_batches_count_a_shared_prefix_once():
    examples = make_examples(0, prefix=50)  # 14, 15, 21 and 14 tokens of their own
    assert [len(part) for part in micro_batches(examples, 85)] == [2, 2]
    assert [len(part) for part in micro_batches(examples, 50 + 64)] == [4]
    assert PackedBatch(examples).input_ids.shape[1] == 50 + 64
