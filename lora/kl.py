"""Kullback-Leibler divergence from the base model to the tuned one: how much has been unlearned, seen from the base.

Base and tuned are the same weights with the adapter off and on. KL(base || tuned) at a position is the mean, over what
the base would say there, of how much less the tuned model expects it, in nats; on the new task it goes along with what
is forgotten elsewhere (Shenfeld et al. 2025, https://arxiv.org/abs/2509.04259), and as a loss it holds the model near.
Both models share the frozen output head, so logits exist for a chunk of positions at a time, as in lora/loss.py.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from data.examples import IGNORED, Example
from llama.batching import batches_by_length, pad
from llama.model import Decoder
from lora.inject import lora_disabled

CHUNK = 128  # positions whose logits, of both models, exist at one time
PASS_TOKENS = 2048  # in one forward pass, padding included


class FrozenHeadKL(torch.autograd.Function):
    """KL(base || tuned) of S positions: tuned [S, E], base [S, E], head [V, E] -> [S] float32, in nats."""

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


def position_divergences(model: Decoder, examples: Sequence[Example]) -> tuple[Tensor, list[int]]:
    """KL(base || tuned) at each position that predicts a supervised token, [S] float32 in one forward pass of each.

    Also how many of them each example has. Gradients flow to the LoRA layers, never through the base.
    """
    input_ids = pad([example.input_ids for example in examples], model.device)
    rows, places, counts = [], [], []
    for row, example in enumerate(examples):
        own = [place - 1 for place, label in enumerate(example.labels) if label != IGNORED and place > 0]
        rows += [row] * len(own)
        places += own
        counts.append(len(own))
    with torch.no_grad(), lora_disabled(model):
        base = model(input_ids)[rows, places]
    tuned = model(input_ids)[rows, places]
    return FrozenHeadKL.apply(tuned, base, model.lm_head.weight), counts


@torch.no_grad()
def mean_divergences(model: Decoder, examples: Sequence[Example]) -> list[float]:
    """Of each example, the mean KL(base || tuned) over its supervised tokens, in nats a token, without dropout."""
    was_training = model.training
    model.eval()
    means = [0.0] * len(examples)
    for batch in batches_by_length([len(example.input_ids) for example in examples], PASS_TOKENS):
        divergences, counts = position_divergences(model, [examples[i] for i in batch])
        for index, own in zip(batch, divergences.split(counts), strict=True):
            means[index] = own.mean().item()
    model.train(was_training)
    return means
