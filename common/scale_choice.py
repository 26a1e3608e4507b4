"""The scale of a trained adapter, chosen on training questions that were held back.

A smaller scale is nearer to the base model. The smallest counts whose loss on the held-back
questions cannot be told from that of the best scale: the one-standard-error rule (Breiman et al.
1984, Classification and Regression Trees, 3.4.3), by the paired differences of the questions. What
is tested on has no part in it.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import mean, stdev

from common.likelihood import mean_log_likelihoods
from data.examples import Example
from data.records import Record
from llama.model import Decoder
from lora.inject import lora_layers, set_lora_scale

MIN_EXAMPLES = 8  # held back: a standard error of fewer says nothing


def choose_scale(losses: Mapping[float, Sequence[float]]) -> float:
    """The smallest scale whose mean loss is within a standard error of the lowest.

    `losses` holds those of the same examples, at least two, at every scale.
    """
    best = min(losses, key=lambda scale: mean(losses[scale]))
    for scale in sorted(losses):
        pairs = zip(losses[scale], losses[best], strict=True)
        excess = [loss - lowest for loss, lowest in pairs]
        if mean(excess) <= stdev(excess) / math.sqrt(len(excess)):
            return scale
    raise AssertionError("the best scale is within its own standard error")


def losses_at_scales(
    model: Decoder, examples: Sequence[Example], scales: Sequence[float]
) -> dict[float, list[float]]:
    """The loss of each example at each scale of the adapter, in nats a token; the scale is 1 after.

    Computed without dropout. UserError if a loss is not finite.
    """
    was_training = model.training
    model.eval()
    losses = {}
    try:
        for scale in scales:
            set_lora_scale(model, scale)
            losses[scale] = [-value for value in mean_log_likelihoods(model, examples)]
    finally:
        set_lora_scale(model, 1.0)
        model.train(was_training)
    return losses


def scale_adapter(model: Decoder, examples: Sequence[Example], scales: Sequence[float]) -> Record:
    """Multiply the update by the scale chosen on `examples`, and return the summary's part."""
    losses = losses_at_scales(model, examples, scales)
    chosen = choose_scale(losses)
    for _, layer in lora_layers(model):
        layer.lora_B.data.mul_(chosen)
    means = {f"{scale:g}": mean(values) for scale, values in losses.items()}
    print(f"scale {chosen:g} of {', '.join(means)}, chosen on {len(examples)} held-back examples")
    return {"scale": {"chosen": chosen, "examples": len(examples), "losses": means}}
