import pytest
import torch

from common import likelihood
from common.errors import UserError
from common.likelihood import mean_log_likelihoods
from data.examples import IGNORE_INDEX, Example
from llama import load_model
from tests.tiny import tiny_transformers_model


@pytest.mark.parametrize("chunk", [256, 3])
@pytest.mark.parametrize("variant", ["llama", "qwen3", "qwen2"])
def test_likelihoods_are_transformers_losses(variant, chunk, tiny_checkpoint, monkeypatch):
    monkeypatch.setattr(likelihood, "CHUNK", chunk)
    monkeypatch.setattr(likelihood, "PASS_TOKENS", 70)
    theirs = tiny_transformers_model(variant)
    ours = load_model(tiny_checkpoint(variant))
    generator = torch.Generator().manual_seed(5)
    examples = []
    for length, start in [(30, 10), (7, 0), (61, 60), (25, 24)]:
        ids = torch.randint(0, 199, (length,), generator=generator).tolist()
        examples.append(Example(ids, [IGNORE_INDEX] * start + ids[start:]))
    expected = [
        -theirs(torch.tensor([e.input_ids]), labels=torch.tensor([e.labels])).loss.item()
        for e in examples
    ]
    assert mean_log_likelihoods(ours, examples) == pytest.approx(expected, rel=1e-5)


def test_a_likelihood_that_is_not_finite_is_an_error(tiny_checkpoint):
    model = load_model(tiny_checkpoint("llama"))
    model.model["layers"][0].self_attn.v_proj.weight.data[0, 0] = torch.nan
    place = r"model\.layers\.0\.self_attn\.v_proj is the first layer"
    with pytest.raises(UserError, match=f"the log-likelihood of answer 1 is nan: {place}"):
        mean_log_likelihoods(model, [Example([1, 2, 3], [-100, 2, 3])])
