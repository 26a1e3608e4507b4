"""Non-finite values: an error that names where they begin, in place of a meaningless result."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from llama.errors import UserError
from llama.model import Decoder


class NonFiniteError(UserError):
    """Values that are not finite, with the record and the layer where they begin."""


class NonFiniteLogits(ArithmeticError):
    """NaN or infinity among the logits from which prompt `index` was to get a new token."""

    def __init__(self, index: int, token_ids: list[int], step: int) -> None:
        super().__init__(f"prompt {index}: the logits of new token {step} are not finite")
        self.index, self.token_ids, self.step = index, token_ids, step


def non_finite_error(
    model: Decoder, token_ids: Sequence[int], name: str, what: str, are: str = "are"
) -> NonFiniteError:
    """The error for `what` (values computed from `token_ids`) of the record `name`.

    One more pass over `token_ids` finds the first layer with a non-finite output.
    """
    reason = explain_non_finite(model, token_ids)
    return NonFiniteError(f"{name}: {what} {are} not finite: {reason}")


def explain_non_finite(model: Decoder, token_ids: Sequence[int]) -> str:
    """Name the first layer with a non-finite output for `token_ids`, and what to do about it."""
    try:
        layer = first_non_finite_module(model, token_ids)
    except torch.OutOfMemoryError:
        return "no memory is left to find the layer where this begins"
    dtype = str(model.dtype).removeprefix("torch.")
    wider = " (try --dtype float32)" if model.dtype != torch.float32 else ""
    if layer is None:
        return (
            f"a pass without a cache is finite: the cache in another dtype (--cache-dtype) or a "
            f"kernel of this device overflows {dtype}{wider}"
        )
    parameters = model.get_submodule(layer).parameters(recurse=False)
    if not all(parameter.isfinite().all() for parameter in parameters):
        return (
            f"the weights of {layer} hold NaN or infinity: they are too large for {dtype}{wider}, "
            "or the files of the model or of the adapter are damaged"
        )
    return (
        f"{layer} is the first layer whose output is not finite: its activations overflow {dtype}"
        f"{wider}, or the files of the model or of the adapter are damaged"
    )


@torch.no_grad()
def first_non_finite_module(model: Decoder, token_ids: Sequence[int]) -> str | None:
    """The name of the first module whose output holds NaN or infinity; None if all are finite.

    Found by one forward pass over `token_ids`, without a cache, with the logits of the last one.
    """
    names: list[str] = []

    def watch(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            if not names and not output.isfinite().all():
                names.append(name)

        return hook

    handles = []
    for name, module in model.named_modules():
        if not any(module.children()):
            handles.append(module.register_forward_hook(watch(name)))
    try:
        hidden = model(torch.tensor([list(token_ids)], device=model.device))
        model.logits(hidden[:, -1:])
    finally:
        for handle in handles:
            handle.remove()
    return names[0] if names else None
