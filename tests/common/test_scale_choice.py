"""The scale of an adapter: the smallest that held-back examples cannot tell from the best."""

import pytest
import torch

from common.likelihood import mean_log_likelihoods
from common.scale_choice import choose_scale, losses_at_scales, scale_adapter
from data.examples import IGNORE_INDEX, Example
from llama import load_model
from lora import LoRAConfig, lora_layers, merge_lora, set_lora_scale
from tests.tiny import with_random_lora


@pytest.mark.parametrize(
    ("losses", "chosen"),
    [
        ({1.0: [1, 1, 1, 1], 0.5: [2, 2, 2, 2]}, 1.0),  # always worse: no chance in that
        ({1.0: [1, 1, 1, 1], 0.5: [2, 0.9, 0.9, 1.1]}, 0.5),  # a mean above, within its error
        ({1.0: [1, 2, 3, 4], 0.5: [1, 2, 3, 4], 0.25: [1, 2, 3, 4]}, 0.25),  # all the same
        ({1.0: [1, 9, 1, 9], 0.5: [1.1, 9.1, 1.1, 9.1]}, 1.0),  # by pairs, not by the spread
        ({0.5: [2, 1, 2, 1], 1.5: [1, 2, 1, 2], 1.0: [0, 0, 0, 0]}, 1.0),
    ],
)
def test_the_smallest_within_a_standard_error_of_the_best(losses, chosen):
    assert choose_scale(losses) == chosen


@pytest.fixture
def model(tiny_checkpoint):
    model = load_model(tiny_checkpoint("llama"))
    return with_random_lora(model, LoRAConfig(rank=4), seed=1)


@pytest.fixture
def examples():
    generator = torch.Generator().manual_seed(0)
    made = []
    for length in (9, 14, 9, 20, 11, 12, 16, 10):
        ids = torch.randint(0, 199, (length,), generator=generator).tolist()
        made.append(Example(ids, [IGNORE_INDEX] * 4 + ids[4:]))
    return made


def test_losses_are_those_of_the_adapter_at_each_scale(model, examples):
    losses = losses_at_scales(model, examples, (0.5, 2.0))
    assert {layer.scale for _, layer in lora_layers(model)} == {1.0}
    for scale, values in losses.items():
        set_lora_scale(model, scale)
        assert values == [-value for value in mean_log_likelihoods(model, examples)]
    assert losses[0.5] != losses[2.0]


def test_the_update_is_multiplied_by_the_chosen_scale(model, examples):
    losses = losses_at_scales(model, examples, (0.25, 1.0))
    summary = scale_adapter(model, examples, (0.25, 1.0))["scale"]
    assert summary["chosen"] == 0.25, "a random adapter is best when it is least"
    assert summary["examples"] == 8 and set(summary["losses"]) == {"0.25", "1"}
    assert {layer.scale for _, layer in lora_layers(model)} == {1.0}
    after = [-value for value in mean_log_likelihoods(model, examples)]
    assert after == pytest.approx(losses[0.25], rel=1e-5)
    merge_lora(model)
    merged = [-value for value in mean_log_likelihoods(model, examples)]
    assert merged == pytest.approx(losses[0.25], rel=1e-4)
