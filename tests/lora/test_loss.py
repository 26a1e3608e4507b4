"""Packed examples, the shared prefix and the chunked loss give the plain way's losses and
gradients.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from data.examples import IGNORE_INDEX, Example
from llama import Decoder
from llama.attention import PackedSequences
from llama.model import SwiGLU
from lora import LoRAConfig, lora_parameters
from lora import loss as loss_module
from lora.loss import FrozenHeadCrossEntropy, step_loss, summed_loss
from lora.packed_batch import PackedAttention, PackedBatch, SharedPrefix, micro_batches
from tests.tiny import tiny_decoder, with_random_lora


def make_examples(seed: int, prefix: int = 0, supervise_all: bool = False) -> list[Example]:
    generator = torch.Generator().manual_seed(seed)

    def draw(count):
        return torch.randint(0, 199, (count,), generator=generator).tolist()

    shared, examples = draw(prefix), []
    for prompt, answer in ((5, 9), (12, 3), (1, 20), (7, 7)):
        ids = shared + draw(prompt) + draw(answer)
        ignored = 0 if supervise_all else prefix + prompt
        examples.append(Example(ids, [IGNORE_INDEX] * ignored + ids[ignored:]))
    return examples


@pytest.fixture(params=["llama3-scaled", "qwen3", "qwen2", "smollm3"])
def model(request):
    return with_random_lora(tiny_decoder(request.param), LoRAConfig(rank=4), seed=1)


def plain_loss(model: Decoder, examples: list[Example]) -> torch.Tensor:
    """One example after another, full logits, torch's cross-entropy on shifted labels."""
    total = 0.0
    for example in examples:
        logits = model.logits(model(torch.tensor([example.input_ids])))[0]
        total = total + cross_entropy(
            logits[:-1],
            torch.tensor(example.labels[1:]),
            ignore_index=IGNORE_INDEX,
            reduction="sum",
        )
    return total


def gradients(model: Decoder, loss: torch.Tensor) -> list[torch.Tensor]:
    return torch.autograd.grad(loss, lora_parameters(model))


def packed(
    model: Decoder, examples: list[Example], max_tokens: int = 10**6
) -> tuple[float, list[torch.Tensor]]:
    """Loss and gradients the trainer's way."""
    parameters = lora_parameters(model)
    for parameter in parameters:
        parameter.grad = None
    return step_loss(model, examples, max_tokens, lambda loss: loss), [
        parameter.grad for parameter in parameters
    ]


def assert_same(actual, expected) -> None:
    (loss, grads), (wanted, wanted_grads) = actual, expected
    assert loss == pytest.approx(wanted, rel=1e-5)
    for ours, theirs in zip(grads, wanted_grads, strict=True):
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def plain(model: Decoder, examples: list[Example]) -> tuple[float, list[torch.Tensor]]:
    loss = plain_loss(model, examples)
    return loss.item(), list(torch.autograd.grad(loss, lora_parameters(model)))


@pytest.mark.parametrize("supervise_all", [False, True], ids=["answer", "all"])
@pytest.mark.parametrize("prefix", [0, 11])
@pytest.mark.parametrize("max_tokens", [1000, 30])
def test_packed_loss_and_gradients_equal_the_plain_way(model, prefix, supervise_all, max_tokens):
    examples = make_examples(1, prefix, supervise_all)
    shared = SharedPrefix(examples, prefix)
    assert PackedBatch(examples, shared).input_ids.shape[1] == sum(
        len(e.input_ids) - prefix for e in examples
    )
    assert_same(packed(model, examples, max_tokens), plain(model, examples))


def test_the_prefix_is_computed_once(model):
    lengths = []
    model.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
    packed(
        model, make_examples(1, prefix=11), max_tokens=30
    )  # 14, 15, 21 and 14 tokens of their own
    assert lengths == [11, 29, 21, 14]


def test_gradients_through_the_prefix_matter(model, monkeypatch):
    """The test above notices if gradients through the shared keys and values are dropped."""
    examples = make_examples(1, prefix=11)
    expected = plain(model, examples)[1]
    attend = SharedPrefix.attend

    def detached(self, layer, queries, keys, values):
        out = attend(self, layer, queries, keys, values)
        self.leaves = [leaf.detach() for leaf in self.leaves]
        return out

    monkeypatch.setattr(SharedPrefix, "attend", detached)
    monkeypatch.setattr(SharedPrefix, "backward", lambda *_: None)
    actual = packed(model, examples)[1]
    worst = max(
        ((a - e).abs().max() / e.abs().max()).item() for a, e in zip(actual, expected, strict=True)
    )
    assert worst > 1e-2


def test_examples_do_not_see_each_other(model):
    first, second = make_examples(2)[:2]
    other = Example([5] * 8, [IGNORE_INDEX] * 4 + [5] * 4)
    alone = packed(model, [second])[0]
    for neighbour in (first, other):
        together = packed(model, [neighbour, second])[0]
        assert together - packed(model, [neighbour])[0] == pytest.approx(alone, rel=1e-4)


def test_chunks_change_nothing(model, monkeypatch):
    examples = make_examples(3)
    whole = packed(model, examples)
    monkeypatch.setattr(loss_module, "CHUNK", 5)
    assert_same(packed(model, examples), whole)


def test_gradcheck_swiglu():
    torch.manual_seed(0)
    inputs = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True).unbind()
    assert torch.autograd.gradcheck(SwiGLU(), inputs)
    assert torch.equal(SwiGLU()(*inputs), torch.nn.functional.silu(inputs[0]) * inputs[1])


@pytest.mark.parametrize("prefix", [0, 3])
def test_gradcheck_packed_attention(prefix):
    torch.manual_seed(0)
    shapes = [(1, 4, 7, 3), (1, 2, 7, 3), (1, 2, 7, 3), *[(1, 2, prefix, 3)] * 2]
    inputs = [
        torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes if shape[2]
    ]
    lengths = ([5, 2], [7], [prefix])  # of the examples, of all their tokens, of the prefix
    sequences = [PackedSequences(each, "cpu") for each in lengths]
    assert torch.autograd.gradcheck(
        lambda *inputs: PackedAttention.apply(*sequences, *inputs), inputs
    )


def test_gradcheck():
    torch.manual_seed(0)
    hidden = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    head, targets = torch.randn(11, 5, dtype=torch.float64), torch.tensor([0, 10, 3, 3, 7, 1, 2])
    weights = torch.tensor([1.0, 2.0, 1.0, 0.5, 3.0, 1.0, 1.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda h: FrozenHeadCrossEntropy.apply(h, head, targets, weights) * 0.3, hidden
    )
    expected = (cross_entropy(hidden @ head.T, targets, reduction="none") * weights).sum()
    assert FrozenHeadCrossEntropy.apply(hidden, head, targets, weights).item() == pytest.approx(
        expected.item()
    )


def test_loss_and_backward_on_the_meta_device(model):
    """Every tensor follows the model's device: the only CUDA check a CPU machine can make."""
    meta = model.to("meta")
    prefix = SharedPrefix(make_examples(1, prefix=11, supervise_all=True), 11, "meta")
    prefix_loss = summed_loss(meta, prefix)
    summed_loss(meta, PackedBatch(make_examples(1, prefix=11), prefix)).backward()
    assert all(leaf.grad.device.type == "meta" for leaf in prefix.leaves)
    prefix.backward(prefix_loss)
    assert all(parameter.grad.device.type == "meta" for parameter in lora_parameters(meta))


def test_micro_batches_keep_order_and_bound():
    examples = make_examples(0)  # 14, 15, 21 and 14 tokens
    assert [len(part) for part in micro_batches(examples, 0, 30)] == [2, 1, 1]
    assert [len(part) for part in micro_batches(examples, 0, 1)] == [1, 1, 1, 1]
    assert [len(part) for part in micro_batches(examples, 0, 1000)] == [4]
    assert [len(part) for part in micro_batches(examples, 13, 30)] == [4], (
        "what is computed apart does not count"
    )
    assert [example for part in micro_batches(examples, 0, 30) for example in part] == examples


PEAK = """
import torch
from lora.loss import CHUNK, FrozenHeadCrossEntropy
from common.runs import peak_memory_bytes
def step(vocabulary):
    hidden = torch.randn(8 * CHUNK, 48, requires_grad=True)
    targets, weights = torch.randint(0, vocabulary, (8 * CHUNK,)), torch.ones(8 * CHUNK)
    FrozenHeadCrossEntropy.apply(hidden, torch.randn(vocabulary, 48), targets, weights).backward()
step(1_000)
before = peak_memory_bytes(torch.device("cpu"))
step(101_000)
print(peak_memory_bytes(torch.device("cpu")) - before, 101_000 * (48 + CHUNK) * 4)
"""


@pytest.mark.slow
def test_a_larger_vocabulary_costs_its_head_and_one_chunk_of_logits():
    """Two chunks, or logits of all positions, would be 100 and 700 MB more."""
    root = Path(loss_module.__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", PEAK], cwd=root, capture_output=True, text=True, check=True
    )
    grown, allowed = map(int, done.stdout.split())
    assert allowed * 0.5 < grown < allowed + 30e6
