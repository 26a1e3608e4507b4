"""Outputs of norms and activations are formed again in the backward pass and not saved for it."""

import pytest
import torch

from llama import Decoder
from lora import LoRAConfig, inject_lora, lora_layers, lora_parameters, merge_lora
from lora.recompute import recompute_activations_in_backward
from tests.tiny import tiny_decoder, with_random_lora

INPUT_IDS = torch.randint(0, 199, (1, 40), generator=torch.Generator().manual_seed(0))
TARGETS = {
    "all": LoRAConfig().target_modules,
    "some": ("q_proj", "v_proj", "down_proj"),
    "attention": ("q_proj", "k_proj", "v_proj", "o_proj"),
}


def make_model(targets: tuple[str, ...], dropout: float = 0.0) -> Decoder:
    config = LoRAConfig(rank=2, dropout=dropout, target_modules=targets)
    return with_random_lora(tiny_decoder("qwen3"), config).train()


def saved_bytes_and_gradients(model: Decoder) -> tuple[int, list[torch.Tensor]]:
    """Bytes of all tensors saved for backward but parameters, each counted once; gradients."""
    parameters = {parameter.data_ptr() for parameter in model.parameters()}
    sizes = {}

    def save(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in parameters:
            sizes[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(1)  # of dropout
    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        loss = model(INPUT_IDS).square().sum()
    loss.backward()
    return sum(sizes.values()), [parameter.grad for parameter in lora_parameters(model)]


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("targets", TARGETS.values(), ids=TARGETS)
def test_same_gradients_from_fewer_saved_bytes(targets, dropout):
    plain_bytes, plain = saved_bytes_and_gradients(make_model(targets, dropout))
    model = make_model(targets, dropout)
    recompute_activations_in_backward(model)
    fewer_bytes, actual = saved_bytes_and_gradients(model)
    assert all(map(torch.equal, actual, plain))
    config, tokens, expected = model.config, INPUT_IDS.numel(), 0
    # Blocks but the first, whose first norm reads the frozen embedding and saves nothing itself.
    if "q_proj" in targets:
        expected += (config.num_hidden_layers - 1) * tokens * config.hidden_size * 4
    if "gate_proj" in targets:
        expected += config.num_hidden_layers * tokens * config.hidden_size * 4
    if "down_proj" in targets:
        expected += config.num_hidden_layers * tokens * config.intermediate_size * 4
    assert plain_bytes - fewer_bytes == expected


def test_nothing_is_kept_after_a_pass():
    model = make_model(TARGETS["all"])
    recompute_activations_in_backward(model)
    model(INPUT_IDS).sum().backward()
    assert [name for name, layer in lora_layers(model) if layer.recompute] == []


def test_an_input_that_is_not_what_the_module_before_returned_is_noticed():
    """An operation put in between would make the recomputed input, and so gradients, wrong."""
    model = make_model(TARGETS["all"])
    recompute_activations_in_backward(model)
    attention = model.model["layers"][1].self_attn
    attention.register_forward_pre_hook(lambda _, inputs: (inputs[0] * 2, *inputs[1:]))
    with pytest.raises(AssertionError, match="not what the module before returned"):
        model(INPUT_IDS)


def test_layers_merged_and_injected_again_are_found():
    model = make_model(TARGETS["all"])
    recompute_activations_in_backward(model)
    merge_lora(model)
    model(INPUT_IDS)
    inject_lora(model, LoRAConfig(rank=2))
    model.train()
    saved, _ = saved_bytes_and_gradients(model)
    plain, _ = saved_bytes_and_gradients(make_model(TARGETS["all"]))
    assert saved < plain
