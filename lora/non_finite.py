"""Find out where a loss that is not finite comes from."""

import math
from collections.abc import Sequence

import torch

from data.examples import Example
from llama.errors import UserError
from llama.finite import first_non_finite_module
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
            place = first_non_finite_module(model, example.input_ids)
        if place is not None:
            dtype = str(model.dtype).removeprefix("torch.")
            condition = "without the adapter already, " if layers else ""
            return (
                f"{condition}{place} is the first layer whose output is not finite: check the "
                f"files of the model, or whether its activations overflow {dtype} (--dtype)"
            )
        place = first_non_finite_module(model, example.input_ids)
        if place is not None:
            return f"with the adapter, {place} is the first layer that is not finite; lower --lr"
    return "the forward pass is finite, the backward pass is not; lower --lr"
