"""Packed frozen weights change neither losses nor gradients beyond rounding, and come back bit for
bit.
"""

import pytest
import torch

from data.examples import Example
from llama import load_model
from lora import LoRAConfig, lora_disabled
from lora.onednn import packed_weights
from lora.trainer import Trainer, TrainerOptions
from tests.tiny import with_random_lora


def make_examples() -> list[Example]:
    generator = torch.Generator().manual_seed(0)
    rows = [
        torch.randint(0, 199, (length,), generator=generator).tolist() for length in (12, 30, 7, 40)
    ]
    return [Example([1, 2, 3, *ids], [-100, -100, -100, *ids]) for ids in rows]


@pytest.fixture(params=["llama", "qwen3", "qwen2"])
def folder(request, tiny_checkpoint):
    return tiny_checkpoint(request.param)


def load(folder, quantize=None):
    return with_random_lora(load_model(folder, quantize=quantize), LoRAConfig(rank=4))


def test_losses_are_those_of_plain_weights(folder):
    losses = {}
    for packed in (False, True):
        model = load(folder)
        trainer = Trainer(model, TrainerOptions(total_steps=6, learning_rate=1e-2))
        before = {
            name: tensor.clone()
            for name, tensor in model.state_dict().items()
            if "lora" not in name
        }
        if packed:
            with packed_weights(model):
                up_proj = model.model["layers"][0].mlp.up_proj
                assert up_proj.weight is None and up_proj.packed, "held in packed form only"
                losses[packed] = [trainer.step(make_examples()).loss for _ in range(6)]
                with torch.no_grad(), lora_disabled(model):
                    base = model(torch.arange(20)[None])
        else:
            losses[packed] = [trainer.step(make_examples()).loss for _ in range(6)]
    assert (
        losses[True] == pytest.approx(losses[False], rel=1e-5)
        and losses[True][-1] < losses[True][0]
    )
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    with torch.no_grad(), lora_disabled(model):
        torch.testing.assert_close(model(torch.arange(20)[None]), base, rtol=1e-4, atol=1e-5)


def test_weights_are_back_after_an_error(folder):
    model = load(folder)
    with pytest.raises(ZeroDivisionError), packed_weights(model):
        _ = 1 / 0
    assert model.model["layers"][0].mlp.up_proj.weight is not None


def test_quantised_and_narrow_weights_stay_as_they_are(folder):
    for model in (load(folder, quantize="int8"), load(folder).bfloat16()):
        with packed_weights(model):
            assert model.model["layers"][0].mlp.up_proj.weight is not None
