"""Put LoRA into a decoder, scale it, switch it off, merge it away."""

from collections.abc import Iterable, Iterator
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
    if next(lora_layers(model), None) is not None:
        raise UserError(
            "the model has LoRA layers already; merge_lora them before injecting others"
        )
    linears = block_linears(model)
    unmatched = [target for target in config.target_modules if not matching(linears, [target])]
    if unmatched:
        known = sorted({name.rsplit(".", 1)[-1] for name in linears})
        raise UserError(
            f"target_modules {unmatched} match no linear of the decoder; it has {known}"
        )
    model.requires_grad_(False)
    names = matching(linears, config.target_modules)
    for name in names:
        _replace(model, name, LoRALinear(linears[name], config))
    return names


def block_linears(model: Decoder) -> dict[str, nn.Linear]:
    """The linears of the decoder's blocks, which can be adapted, by module name."""
    linears = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name.startswith("model.layers."):
            linears[name] = module
    return linears


def matching(names: Iterable[str], targets: Iterable[str]) -> list[str]:
    """Those of `names` that are a target, or end in a dot and a target."""
    wanted = list(targets)
    return [
        name
        for name in names
        if any(name == target or name.endswith(f".{target}") for target in wanted)
    ]


def lora_layers(model: nn.Module) -> Iterator[tuple[str, LoRALinear]]:
    """Every LoRA layer with its module name, in the order of the decoder."""
    for name, module in model.named_modules():
        if isinstance(module, LoRALinear):
            yield name, module


def lora_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The trained parameters: A and B of every layer."""
    parameters = []
    for _, layer in lora_layers(model):
        parameters += [layer.lora_A, layer.lora_B]
    return parameters


def set_lora_scale(model: nn.Module, scale: float) -> None:
    """Multiply every update by `scale`: 0 is the base model, 1 the adapter as trained."""
    for _, layer in lora_layers(model):
        layer.scale = scale


@contextmanager
def lora_disabled(model: nn.Module) -> Iterator[None]:
    """Let the model compute what its base computes within the block."""
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


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
