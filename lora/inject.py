"""Put LoRA into a decoder, scale it, switch it off, merge it away."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from llama.errors import UserError
from llama.model import Decoder
from lora.layer import LoRAConfig, LoRALinear


def inject_lora(model: Decoder, config: LoRAConfig) -> list[str]:
    """Replace every linear of the decoder's blocks that `target_modules` names; freeze all else.

    A target matches a module's full name or its last parts, as in PEFT. Returns the adapted
    modules' names. Raises one UserError listing every target that matches nothing, or if the model
    has LoRA already.
    """
    if any(True for _ in lora_layers(model)):
        raise UserError(
            "the model has LoRA layers already; merge_lora them before injecting others"
        )
    linears = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.startswith("model.layers.")
    }
    matched = {
        name for name in linears if any(_matches(name, target) for target in config.target_modules)
    }
    unmatched = [t for t in config.target_modules if not any(_matches(name, t) for name in linears)]
    if unmatched:
        known = sorted({name.rsplit(".", 1)[-1] for name in linears})
        raise UserError(
            f"target_modules {unmatched} match no linear of the decoder; it has {known}"
        )
    model.requires_grad_(False)
    names = [name for name in linears if name in matched]
    for name in names:
        _replace(model, name, LoRALinear(linears[name], config))
    return names


def lora_layers(model: nn.Module) -> Iterator[tuple[str, LoRALinear]]:
    """Every LoRA layer with its module name, in the order of the decoder."""
    return (
        (name, module) for name, module in model.named_modules() if isinstance(module, LoRALinear)
    )


def lora_parameters(model: nn.Module) -> list[nn.Parameter]:
    """What is trained: the A and B of every layer."""
    return [
        parameter for _, layer in lora_layers(model) for parameter in (layer.lora_A, layer.lora_B)
    ]


def set_lora_scale(model: nn.Module, scale: float) -> None:
    """Multiply every update by `scale`: 0 is the base model, 1 the adapter as trained."""
    for _, layer in lora_layers(model):
        layer.scale = scale


@contextmanager
def lora_disabled(model: nn.Module) -> Iterator[None]:
    """Within the block the model computes what its base computes."""
    layers = [layer for _, layer in lora_layers(model)]
    before = [layer.enabled for layer in layers]
    try:
        for layer in layers:
            layer.enabled = False
        yield
    finally:
        for layer, enabled in zip(layers, before, strict=True):
            layer.enabled = enabled


def merge_lora(model: Decoder) -> None:
    """Add every update to its weight, in float32, and put plain linears back."""
    for name, layer in list(lora_layers(model)):
        _replace(model, name, layer.merged())


def _matches(name: str, target: str) -> bool:
    return name == target or name.endswith("." + target)


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
