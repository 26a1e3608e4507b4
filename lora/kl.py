"""Kullback-Leibler divergence from the base model to the tuned one: how much has been unlearned,
seen from the base.

Base and tuned are the same weights with the adapter off and on. KL(base || tuned) at a position is
the mean, over what the base would say there, of how much less the tuned model expects it, in nats;
on the new task it goes along with what is forgotten elsewhere (Shenfeld et al. 2025,
https://arxiv.org/abs/2509.04259), and as a loss it holds the model near. Both models share the
frozen output head, so logits exist for a chunk of positions at a time, as in lora/loss.py.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from data.examples import IGNORE_INDEX, Example
from llama.engine import common_prefix_length
from llama.model import Decoder
from lora.inject import lora_disabled
from lora.packed_batch import PackedBatch, SharedPrefix, micro_batches

CHUNK = 128  # positions whose logits, of both models, exist at one time
PASS_TOKENS = 2048  # of the examples in one forward pass


class FrozenHeadKL(torch.autograd.Function):
    """KL(base || tuned) of S positions: tuned [S, E], base [S, E], head [V, E] -> [S] float32, in
    nats.
    """

    @staticmethod
    def forward(ctx, tuned: Tensor, base: Tensor, head: Tensor) -> Tensor:
        dtype = torch.promote_types(tuned.dtype, torch.float32)
        divergences = torch.empty(len(tuned), dtype=dtype, device=tuned.device)
        gradient = torch.empty_like(tuned)
        for rows in torch.arange(len(tuned), device=tuned.device).split(CHUNK):
            tuned_log = (tuned[rows].to(head.dtype) @ head.T).to(dtype).log_softmax(-1)
            base_log = (base[rows].to(head.dtype) @ head.T).to(dtype).log_softmax(-1)
            base_probabilities = base_log.exp()
            divergences[rows] = (base_probabilities * (base_log - tuned_log)).sum(-1)
            if ctx.needs_input_grad[0]:  # d KL / d logits is what the tuned model expects too much
                excess = tuned_log.exp_().sub_(base_probabilities)
                gradient[rows] = (excess.to(head.dtype) @ head).to(tuned.dtype)
        ctx.save_for_backward(gradient)
        return divergences

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad[:, None].to(gradient.dtype), None, None


def position_divergences(
    model: Decoder, examples: Sequence[Example], prefix_length: int = 0
) -> tuple[Tensor, list[int]]:
    """KL(base || tuned) at each position that predicts a supervised token, [S] float32, and each
    example's number.

    Without a `prefix_length`, gradients flow to the LoRA layers, never through the base. With one,
    the first tokens, which all examples begin with and none supervises, are computed once; that is
    for measuring alone.
    """
    with torch.no_grad(), lora_disabled(model):
        base = _supervised_states(model, examples, prefix_length)
    tuned = _supervised_states(model, examples, prefix_length)
    counts = [sum(label != IGNORE_INDEX for label in example.labels[1:]) for example in examples]
    return FrozenHeadKL.apply(tuned, base, model.lm_head.weight), counts


def _supervised_states(model: Decoder, examples: Sequence[Example], prefix_length: int) -> Tensor:
    """The hidden states [S, E] that are to predict supervised tokens, example after example."""
    prefix = SharedPrefix(examples, prefix_length, model.device)
    if prefix_length:
        model(prefix.input_ids, prefix.positions, prefix.attend)
    row = PackedBatch(examples, prefix)
    return model(row.input_ids, row.positions, row.attend)[0, row.sources]


def shared_context(examples: Sequence[Example]) -> int:
    """How many tokens all examples begin with, short of the position before any supervised one."""
    starts = (
        next((i for i, label in enumerate(e.labels) if i and label != IGNORE_INDEX), 1)
        for e in examples
    )
    return min(common_prefix_length([example.input_ids for example in examples]), min(starts) - 1)


@torch.no_grad()
def mean_divergences(model: Decoder, examples: Sequence[Example]) -> list[float]:
    """Of each example, the mean KL(base || tuned) over its supervised tokens, in nats a token,
    without dropout.
    """
    was_training = model.training
    model.eval()
    means = []
    prefix_length = shared_context(examples)
    for batch in micro_batches(examples, prefix_length, PASS_TOKENS):
        divergences, counts = position_divergences(model, batch, prefix_length)
        means += [own.mean().item() for own in divergences.split(counts)]
    model.train(was_training)
    return means
