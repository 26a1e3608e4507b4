"""Safe LoRA against the paper's formulas on dense matrices."""

import pytest
import torch

from llama import load_model
from llama.errors import UserError
from llama.model import Decoder
from lora import LoRAConfig, load_adapter, lora_layers, save_adapter
from lora.safe_lora import project_onto_alignment
from tests.tiny import tiny_decoder, with_random_lora

CONFIG = LoRAConfig(rank=3, alpha=12, target_modules=("q_proj", "down_proj"))


def untuned_of(model: Decoder, seed: int = 1) -> Decoder:
    """A model whose weights alignment would have moved a little to get those of `model`."""
    untuned = tiny_decoder("llama")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in untuned.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return untuned


@pytest.fixture
def tuned() -> Decoder:
    return with_random_lora(tiny_decoder("llama"), CONFIG)


def test_each_update_becomes_its_projection_where_the_cosine_is_small(tuned):
    untuned = untuned_of(tuned)
    expected, cosines = {}, {}
    for name, layer in lora_layers(tuned):
        update = layer.lora_B @ layer.lora_A
        alignment = layer.weight - untuned.get_parameter(f"{name}.weight")
        projected = alignment @ alignment.T / torch.linalg.matrix_norm(alignment) @ update
        cosines[name] = torch.cosine_similarity(update.flatten(), projected.flatten(), dim=0)
        expected[name] = update, projected
    threshold = sorted(cosines.values())[len(cosines) // 2].item() + 1e-4
    found = project_onto_alignment(tuned, untuned, threshold)
    kept = 0
    for name, layer in lora_layers(tuned):
        assert found[name] == pytest.approx(cosines[name].item(), abs=1e-5)
        wanted = expected[name][found[name] < threshold]
        kept += found[name] >= threshold
        torch.testing.assert_close(layer.lora_B @ layer.lora_A, wanted, rtol=1e-4, atol=1e-6)
    assert 0 < kept < len(found), "some are projected, some stay"


def test_the_projected_adapter_keeps_its_rank_and_its_files(tuned, tmp_path):
    project_onto_alignment(tuned, untuned_of(tuned), 2.0)
    save_adapter(tuned, tmp_path / "adapter")
    other = tiny_decoder("llama")
    load_adapter(other, tmp_path / "adapter")
    ids = torch.arange(20)[None]
    torch.testing.assert_close(other(ids), tuned(ids))


def test_a_layer_that_alignment_left_alone_has_no_update_left(tuned):
    """C is zero there: nothing points along it."""
    untuned = untuned_of(tuned)
    name, layer = next(iter(lora_layers(tuned)))
    with torch.no_grad():
        untuned.get_parameter(f"{name}.weight").copy_(layer.weight)
    assert project_onto_alignment(tuned, untuned, 0.5)[name] == 0
    assert layer.lora_B.count_nonzero() == 0


def test_over_a_quantised_base_the_alignment_is_that_of_the_dense_weights(
    tmp_path, chat_checkpoint
):
    base, quantised = load_model(chat_checkpoint), load_model(chat_checkpoint, quantize="int8")
    untuned = load_model(chat_checkpoint)
    with torch.no_grad():
        for parameter in untuned.parameters():
            parameter.mul_(0.5)
    plain = project_onto_alignment(with_random_lora(base, CONFIG), untuned, 2.0)
    rounded = project_onto_alignment(with_random_lora(quantised, CONFIG), untuned, 2.0)
    assert rounded == pytest.approx(plain, abs=0.02)


def test_the_model_itself_is_no_untuned_base(tuned):
    with pytest.raises(UserError, match="no alignment to project onto"):
        project_onto_alignment(tuned, tiny_decoder("llama"), 0.5)


def test_a_base_of_another_shape_is_refused(tuned):
    with pytest.raises(UserError, match=r"head_dim is \d+ in the untuned base, \d+ in the model"):
        project_onto_alignment(tuned, tiny_decoder("qwen3"), 0.5)
