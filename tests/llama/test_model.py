"""The decoder computes what transformers computes, for every variant, through the real loader."""

import dataclasses

import pytest
import torch
from torch.nn.functional import cross_entropy

from llama import Decoder, ModelConfig, load_model
from llama.config import RopeConfig
from tests.tiny import VARIANTS, save_transformers_model, tiny_transformers_model

TOLERANCE = 2e-5  # of the largest logit


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("spelling", "shards"), [(4, False), (5, True)])
def test_logits_equal_transformers(variant, spelling, shards, tmp_path):
    theirs = tiny_transformers_model(variant)
    ours = load_model(save_transformers_model(theirs, tmp_path, spelling, shards))
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == shards
    input_ids = torch.randint(0, 199, (3, 200), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = theirs(input_ids).logits
        actual = ours.logits(ours(input_ids))
    assert difference(actual, expected) <= TOLERANCE


@pytest.mark.parametrize(
    "wrong",
    [
        {"rope": RopeConfig(500.0)},
        {"rope": RopeConfig(500.0, "llama3", 8.0, 1.0, 4.0, 64)},
        {"rms_norm_eps": 1e-2},
    ],
    ids=["scaling-ignored", "other-original-length", "other-epsilon"],
)
def test_parity_inputs_tell_a_wrong_implementation(wrong, tmp_path):
    """The comparison above must be able to fail: the same weights under a wrong setting differ
    visibly.
    """
    theirs = tiny_transformers_model("llama3-scaled")
    right = load_model(save_transformers_model(theirs, tmp_path))
    model = Decoder(dataclasses.replace(right.config, **wrong)).eval()
    model.load_state_dict(right.state_dict())
    input_ids = torch.randint(0, 199, (1, 200), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert (
            difference(model.logits(model(input_ids)), theirs(input_ids).logits) > 100 * TOLERANCE
        )


def test_positions_argument_shifts_the_rotation(tmp_path):
    """Positions given by hand equal transformers' position_ids."""
    theirs = tiny_transformers_model("llama3-scaled")
    ours = load_model(save_transformers_model(theirs, tmp_path))
    input_ids = torch.arange(20)[None]
    positions = torch.cat((torch.arange(10), torch.arange(100, 110)))[None]
    with torch.inference_mode():
        expected = theirs(
            input_ids, position_ids=positions, attention_mask=torch.ones_like(input_ids)
        ).logits
        actual = ours.logits(ours(input_ids, positions))
        assert difference(actual, expected) <= TOLERANCE
        assert difference(ours.logits(ours(input_ids)), expected) > 100 * TOLERANCE


@pytest.mark.parametrize("variant", VARIANTS)
def test_meta_device_forward_loss_backward(variant):
    """No tensor is created on another device than the model's: the only CUDA check a CPU machine
    can make.
    """
    config = ModelConfig.from_dict(tiny_transformers_model(variant).config.to_dict())
    with torch.device("meta"):
        model = Decoder(config)
    input_ids = torch.zeros(2, 8, dtype=torch.int64, device="meta")
    logits = model.logits(model(input_ids))
    assert logits.shape == (2, 8, config.vocab_size)
    loss = cross_entropy(logits.flatten(0, 1), input_ids.flatten())
    loss.backward()
    assert all(parameter.grad.device.type == "meta" for parameter in model.parameters())


def test_bfloat16_stays_close(tmp_path):
    """Norms and rotary tables are formed in float32, so bfloat16 errs by its own rounding only."""
    theirs = tiny_transformers_model("llama3-scaled")
    ours = load_model(save_transformers_model(theirs, tmp_path), dtype="bfloat16")
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.bfloat16}
    input_ids = torch.randint(0, 199, (2, 200), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        exact = theirs(input_ids).logits
        actual = ours.logits(ours(input_ids)).float()
        expected = theirs.bfloat16()(input_ids).logits.float()
    assert difference(actual, expected) <= 0.05
    assert (actual - exact).abs().mean() <= 1.2 * (expected - exact).abs().mean()


def test_smollm2_logits_and_choices_equal_transformers(smollm2_folder):
    """The real model at 512 positions of mixed text: logits within 1e-4, the same argmax
    everywhere.
    """
    import transformers

    theirs = transformers.AutoModelForCausalLM.from_pretrained(smollm2_folder, dtype=torch.float32)
    ours = load_model(smollm2_folder)
    input_ids = torch.randint(17, 49152, (1, 512), generator=torch.Generator().manual_seed(0))
    input_ids[0, :256] = torch.arange(300, 556)
    with torch.inference_mode():
        expected = theirs(input_ids).logits
        actual = ours.logits(ours(input_ids))
    assert difference(actual, expected) <= 1e-4
    assert torch.equal(actual.argmax(-1), expected.argmax(-1))
