"""Find out where a loss that is not finite comes from."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from data.examples import Example
from llama.errors import UserError
from llama.model import Decoder
from lora.inject import lora_disabled, lora_layers


def require_finite(what: str, value: float, model: Decoder, examples: Sequence[Example]) -> None:
    """UserError, saying what one more pass over `examples` finds out, if `value` is not finite."""
    if not math.isfinite(value):
        raise UserError(f"{what} is {value}: {explain_non_finite(model, examples)}")


@torch.no_grad()
def explain_non_finite(model: Decoder, examples: Sequence[Example]) -> str:
    """Find the first layer that is not finite, by a pass or two more; say what to do.

    `examples` are those of the step; each is tried on its own until one shows it.
    """
    layers = list(lora_layers(model))
    for name, layer in layers:
        if not (layer.lora_A.isfinite().all() and layer.lora_B.isfinite().all()):
            return f"the trained weights of {name} are not finite any more; lower --lr"
    for example in examples:
        with lora_disabled(model):
            place = first_non_finite_module(model, example)
        if place is not None:
            dtype = str(model.dtype).removeprefix("torch.")
            condition = "without the adapter already, " if layers else ""
            return (
                f"{condition}{place} is the first layer whose output is not finite: check the "
                f"files of the model, or whether its activations overflow {dtype} (--dtype)"
            )
        place = first_non_finite_module(model, example)
        if place is not None:
            return f"with the adapter, {place} is the first layer that is not finite; lower --lr"
    return "the forward pass is finite, the backward pass is not; lower --lr"


def first_non_finite_module(model: Decoder, example: Example) -> str | None:
    """The name of the first module whose output is not finite for `example`; None if all are."""
    places: list[str] = []
    handles = []

    def hook_for(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def note(module: nn.Module, inputs: Any, output: Tensor) -> None:
            if not places and not output.isfinite().all():
                places.append(name)

        return note

    for name, module in model.named_modules():
        if not list(module.children()):
            handles.append(module.register_forward_hook(hook_for(name)))
    try:
        hidden = model(torch.tensor([example.input_ids], device=model.device))
        logits = model.logits(hidden[:, -1])
        if not places and not logits.isfinite().all():
            places.append("lm_head")
    finally:
        for handle in handles:
            handle.remove()
    return places[0] if places else None
