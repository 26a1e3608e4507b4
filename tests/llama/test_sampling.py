"""A sample depends on its own logits and its own draw: on no neighbour, retry or order of ties."""

import pytest
import torch

from llama import engine, generate, load_model, sampling
from llama.sampling import Sampling, sample

PROMPTS = [[5, 6, 7, 8], [5, 6, 9], [5, 6, 10, 11, 12, 13], [7], [8, 9, 10, 3, 50]]


def test_sample_follows_the_nucleus_distribution():
    probabilities = torch.tensor([0.05, 0.5, 0.3, 0.15])
    draws = torch.linspace(0, 1, 10001)[:-1]
    logits = probabilities.log().expand(len(draws), -1)
    counts = torch.bincount(sample(logits, draws, 1.0, 1.0), minlength=4) / len(draws)
    assert torch.allclose(counts, probabilities, atol=2e-3)
    # 0.5 + 0.3 reaches 0.75: the rest is out, and what is left is renormalised
    counts = torch.bincount(sample(logits, draws, 1.0, 0.75), minlength=4) / len(draws)
    assert torch.allclose(counts, torch.tensor([0, 0.625, 0.375, 0]), atol=2e-3)
    cold = torch.bincount(sample(logits, draws, 0.5, 1.0), minlength=4) / len(draws)
    assert torch.allclose(cold, probabilities**2 / (probabilities**2).sum(), atol=2e-3)


def test_a_nucleus_within_the_likeliest_tokens_needs_no_sorted_vocabulary(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 500, generator=generator) * torch.linspace(0.1, 6, 200)[:, None]
    draws = torch.rand(200, generator=generator)
    drawn = {}
    for head in (20, 500):
        monkeypatch.setattr(sampling, "SORTED_HEAD", head)
        drawn[head] = sample(logits, draws, 0.7, 0.9).tolist()
    assert drawn[20] == drawn[500]
    reaching = (logits / 0.7).softmax(-1).topk(20).values.sum(-1) >= 0.9
    assert 20 < reaching.sum() < 180, "some nuclei fit, some do not"


@pytest.mark.parametrize("top_p", [0.5, 0.95, 1.0])
def test_a_draw_that_hits_the_head_needs_no_sorted_vocabulary(top_p, monkeypatch):
    """However far the nucleus reaches beyond it, as all of it does with top_p 1."""
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(300, 2000, generator=generator) * torch.linspace(0.1, 4, 300)[:, None]
    logits = torch.cat((logits, logits.mul(4).round()))  # and with ties
    draws = torch.rand(600, generator=generator)
    monkeypatch.setattr(sampling, "SORTED_HEAD", 2000)
    expected = sample(logits, draws, 1.0, top_p)
    sorted_rows = []
    invert = sampling._invert

    def count(probabilities, *rest):
        sorted_rows.append(len(probabilities) if probabilities.shape[-1] == 2000 else 0)
        return invert(probabilities, *rest)

    monkeypatch.setattr(sampling, "SORTED_HEAD", 100)
    monkeypatch.setattr(sampling, "_invert", count)
    assert torch.equal(sample(logits, draws, 1.0, top_p), expected)
    reach = logits.softmax(-1).topk(100).values.sum(-1)
    missed = int((draws * top_p > reach).sum())
    assert missed <= sum(sorted_rows) < missed + 120 < 500


@pytest.mark.parametrize("head", [8, 64, 400])
def test_a_sample_does_not_depend_on_its_neighbours_at_ties(head, monkeypatch):
    """Rounded logits are often equal: in the nucleus, and where the head ends."""
    monkeypatch.setattr(sampling, "SORTED_HEAD", head)
    generator = torch.Generator().manual_seed(1)
    scales = torch.linspace(0.2, 8, 60)[:, None]
    logits = (torch.randn(60, 400, generator=generator) * scales).mul(4).round().bfloat16()
    assert all(len(row.unique()) < 200 for row in logits), "ties"
    draws = torch.rand(60, generator=generator)
    together = sample(logits, draws, 1.0, 0.9).tolist()
    alone = [sample(logits[i : i + 1], draws[i : i + 1], 1.0, 0.9).item() for i in range(60)]
    assert together == alone
    order = torch.randperm(60, generator=generator)
    assert sample(logits[order], draws[order], 1.0, 0.9).tolist() == [together[i] for i in order]


def test_equally_likely_tokens_are_taken_in_the_order_of_their_ids(monkeypatch):
    logits = torch.zeros(4, 300).bfloat16()
    draws = torch.tensor([0.0, 0.25, 0.5, 0.999])
    assert sample(logits, draws, 1.0, 1.0).tolist() == [0, 75, 150, 299]
    logits[:, 100:] = 3  # the nucleus is among 200 equal ones
    monkeypatch.setattr(sampling, "SORTED_HEAD", 250)
    by_head = sample(logits, draws, 1.0, 0.5).tolist()
    monkeypatch.setattr(sampling, "SORTED_HEAD", 300)
    assert by_head == sample(logits, draws, 1.0, 0.5).tolist()
    assert by_head[0] == 100 and by_head == sorted(by_head)


@pytest.mark.parametrize("temperature", [1e-45, 1e-40, 1e-39, 1e-300, 5e-324])
def test_a_temperature_too_small_for_float32_is_greedy(temperature, tiny_checkpoint):
    model = load_model(tiny_checkpoint("qwen3"))
    assert Sampling(temperature).is_greedy
    assert generate(model, PROMPTS, 12, temperature=temperature) == generate(model, PROMPTS, 12)


@pytest.mark.parametrize("temperature", [1e-37, 1e-30, 1e-10])
def test_a_small_temperature_takes_the_likeliest_token(temperature):
    assert not Sampling(temperature).is_greedy
    logits = torch.randn(50, 400, generator=torch.Generator().manual_seed(0)) * 1e4
    chosen = sample(logits, torch.rand(50), temperature, 1.0)
    assert torch.equal(chosen, logits.argmax(-1))


@pytest.mark.parametrize("name", ["choose_tokens", "StepAttention"])
def test_samples_are_the_same_after_running_out_of_memory(name, tiny_checkpoint, monkeypatch):
    """Also where memory ends after the draws: a token has one draw, however often it is tried."""
    model = load_model(tiny_checkpoint("qwen3"))
    settings = {"max_new_tokens": 12, "temperature": 1.0, "seed": 3}
    expected = generate(model, PROMPTS, **settings)
    real, calls = getattr(engine, name), []

    def failing(*inputs):
        result = real(*inputs)
        calls.append(1)
        if len(calls) in (3, 7):
            raise torch.OutOfMemoryError("no memory left")
        return result

    monkeypatch.setattr(engine, name, failing)
    assert generate(model, PROMPTS, **settings) == expected
    assert len(calls) > 7


def test_greedy_takes_the_first_of_equal_logits(tiny_checkpoint):
    """As argmax does, which transformers uses."""
    model = load_model(tiny_checkpoint("llama"), dtype="bfloat16")
    model.lm_head.weight[60:120] = model.lm_head.weight[60]
    model.lm_head.weight[:60] = 0
    model.lm_head.weight[120:] = 0
    outputs = generate(model, PROMPTS, 8)
    assert {token for output in outputs for token in output.token_ids} <= {0, 60}
