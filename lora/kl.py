"""Kullback-Leibler divergence from the base model to the tuned one.

Base and tuned are the same weights with the adapter off and on. Forward KL at one position:
E_{x~base}[log p_base(x) - log p_tuned(x)], in nats. On the new task it goes along with what is
forgotten elsewhere (Shenfeld et al. 2025, https://arxiv.org/abs/2509.04259); as a loss it keeps the
model near its base. Both share the frozen output head, so logits exist for a chunk of positions at
a time, as in lora/loss.py.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from data.examples import IGNORE_INDEX, Example
from llama.engine import common_prefix_length
from llama.model import Decoder
from lora.inject import lora_disabled
from lora.loss import count_supervised
from lora.non_finite import require_finite
from lora.packed_batch import PackedBatch, SharedPrefix, micro_batches

CHUNK = 128  # positions whose logits, of both models, exist at one time
PASS_TOKENS = 2048  # of the examples in one forward pass


class FrozenHeadKL(torch.autograd.Function):
    """KL(base || tuned) of S positions, in nats.

    Hidden states tuned [S, E] and base [S, E], head [V, E] -> [S] float32. The gradient reaches
    `tuned` alone.
    """

    @staticmethod
    def forward(ctx: Any, tuned: Tensor, base: Tensor, head: Tensor) -> Tensor:
        dtype = torch.promote_types(tuned.dtype, torch.float32)
        divergences = torch.empty(len(tuned), dtype=dtype, device=tuned.device)
        gradient = torch.empty_like(tuned)
        for rows in torch.arange(len(tuned), device=tuned.device).split(CHUNK):
            tuned_log = (tuned[rows].to(head.dtype) @ head.T).to(dtype).log_softmax(-1)
            base_log = (base[rows].to(head.dtype) @ head.T).to(dtype).log_softmax(-1)
            base_probabilities = base_log.exp()
            divergences[rows] = (base_probabilities * (base_log - tuned_log)).sum(-1)
            if ctx.needs_input_grad[0]:  # d KL / d logits = p_tuned - p_base
                excess = tuned_log.exp_().sub_(base_probabilities)
                gradient[rows] = (excess.to(head.dtype) @ head).to(tuned.dtype)
        ctx.save_for_backward(gradient)
        return divergences

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad[:, None].to(gradient.dtype), None, None


def position_divergences(
    model: Decoder, examples: Sequence[Example], prefix_length: int = 0
) -> tuple[Tensor, list[int]]:
    """KL(base || tuned) where a supervised token is predicted, [S] float32, and S of each example.

    Gradients flow to the LoRA layers, never through the base. The first `prefix_length` tokens,
    which all examples begin with and none supervises, are computed once; no gradients flow then.
    """
    with torch.no_grad(), lora_disabled(model):
        base = _supervised_states(model, examples, prefix_length)
    tuned = _supervised_states(model, examples, prefix_length)
    counts = [count_supervised([example]) for example in examples]
    return FrozenHeadKL.apply(tuned, base, model.lm_head.weight), counts


def _supervised_states(model: Decoder, examples: Sequence[Example], prefix_length: int) -> Tensor:
    """The hidden states [S, E] that are to predict supervised tokens, example after example."""
    prefix = SharedPrefix(examples, prefix_length, model.device)
    if prefix_length:
        model(prefix.input_ids, prefix.positions, prefix.attend)
    batch = PackedBatch(examples, prefix)
    return model(batch.input_ids, batch.positions, batch.attend)[0, batch.sources]


def unsupervised_prefix_length(examples: Sequence[Example]) -> int:
    """The number of tokens that all examples begin with, before any supervised position."""
    starts = []
    for example in examples:
        supervised = (i for i, label in enumerate(example.labels) if i and label != IGNORE_INDEX)
        starts.append(next(supervised, 1))
    common = common_prefix_length([example.input_ids for example in examples])
    return min(common, min(starts) - 1)


@torch.no_grad()
def mean_divergences(
    model: Decoder, examples: Sequence[Example], names: Sequence[str] | None = None
) -> list[float]:
    """The mean KL(base || tuned) over the supervised tokens of each example, in nats a token.

    Computed without dropout. UserError, with the example's name, if one is not finite.
    """
    was_training = model.training
    model.eval()
    means: list[float] = []
    prefix_length = unsupervised_prefix_length(examples)
    for batch in micro_batches(examples, prefix_length, PASS_TOKENS):
        divergences, counts = position_divergences(model, batch, prefix_length)
        for example, own in zip(batch, divergences.split(counts), strict=True):
            name = names[len(means)] if names else f"example {len(means) + 1}"
            mean = own.mean().item()
            require_finite(f"{name}: the divergence from the base", mean, model, [example])
            means.append(mean)
    model.train(was_training)
    return means
