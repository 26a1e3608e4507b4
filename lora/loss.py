"""Next-token cross-entropy through a frozen output head, a chunk of positions at a time.

Logits are the largest tensor of a training step (tokens x vocabulary). Here each chunk's logits
turn into their loss and their gradient at once and are dropped, so peak memory grows with the
chunk, not with the batch (the idea of Liger-Kernel's fused linear cross-entropy, Hsu et al. 2024).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from common.ranks import rank, world_size
from data.examples import IGNORE_INDEX, Example
from llama.engine import common_prefix_length
from llama.model import Decoder
from lora.packed_batch import ForwardInputs, PackedBatch, SharedPrefix, micro_batches

CHUNK = 256  # positions whose logits exist at one time
# Tokens that a shared prefix must save a step on CUDA: a pass of its own launches thousands of
# kernels, in the time of which a GPU computes about so many tokens of a 1B model (an estimate).
WORTH_SHARING = 1024


class FrozenHeadCrossEntropy(torch.autograd.Function):
    """Weighted sum of the cross-entropies of S positions, in nats.

    hidden [S, E], head [V, E], targets [S] int64, weights [S] -> float32 scalar. The gradient
    reaches `hidden` alone.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        device, dtype = hidden.device, torch.promote_types(hidden.dtype, torch.float32)
        loss = torch.zeros((), dtype=dtype, device=device)
        gradient = torch.empty_like(hidden)
        buffer_shape = min(CHUNK, len(targets)), len(head)
        buffer = torch.empty(buffer_shape, dtype=head.dtype, device=head.device)
        for rows in torch.arange(len(targets), device=device).split(CHUNK):
            logits = torch.mm(hidden[rows].to(head.dtype), head.T, out=buffer[: len(rows)])
            logits = logits.to(dtype)
            expected = logits.gather(-1, targets[rows, None])
            top = logits.amax(-1, keepdim=True)
            total = logits.sub_(top).exp_().sum(-1, keepdim=True)
            loss += ((total.log() + top - expected)[:, 0] * weights[rows]).sum()
            if ctx.needs_input_grad[0]:
                probabilities = logits.div_(total)  # becomes d loss / d logits in place
                probabilities[torch.arange(len(rows), device=device), targets[rows]] -= 1
                probabilities *= weights[rows, None]
                gradient[rows] = (probabilities.to(head.dtype) @ head).to(hidden.dtype)
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_loss.to(gradient.dtype), None, None, None


def count_supervised(examples: Sequence[Example]) -> int:
    """Tokens to be predicted; nothing stands before a first token to predict it from."""
    return sum(label != IGNORE_INDEX for example in examples for label in example.labels[1:])


def summed_loss(model: Decoder, inputs: ForwardInputs) -> Tensor:
    """Cross-entropy summed over the supervised tokens of one pass, a float32 scalar in nats."""
    hidden = model(inputs.input_ids, inputs.positions, inputs.attend)[0]
    if not len(inputs.targets):
        # A zero that stays connected to the graph, so that FSDP's backward hooks fire on every
        # rank.
        return hidden[:0].sum(dtype=torch.float32)
    weights = inputs.weights.to(torch.promote_types(hidden.dtype, torch.float32))
    return FrozenHeadCrossEntropy.apply(
        hidden[inputs.sources], model.lm_head.weight, inputs.targets, weights
    )


def shared_prefix_length(examples: Sequence[Example], device: torch.device) -> int:
    """The number of tokens, common to all of a step's examples, that a pass of their own computes.

    0 where that would save too few tokens. On a CPU it always pays.
    """
    length = common_prefix_length([example.input_ids for example in examples])
    saved = length * (len(examples) - 1)
    return 0 if device.type == "cuda" and saved < WORTH_SHARING else length


def step_loss(
    model: Decoder,
    examples: Sequence[Example],
    max_tokens: int,
    backward: Callable[[Tensor], Tensor] | None = None,
) -> float:
    """Cross-entropy in nats summed over the supervised tokens, in passes of `max_tokens` tokens.

    If given, `backward(summed_loss)` is backpropagated into the LoRA layers; it must be linear,
    e.g. division by the token count or loss scaling. Each of several processes takes every n-th
    example and returns its own part of the loss. All make equally many passes, since FSDP
    synchronises them in each block of each pass.
    """
    own, processes = rank(), world_size()
    length = shared_prefix_length(examples, model.device)
    shares = [micro_batches(examples[i::processes], length, max_tokens) for i in range(processes)]
    prefix = SharedPrefix(examples[own::processes] or examples[:1], length, model.device)
    losses: list[Tensor] = []
    prefix_loss = torch.zeros(())
    if length:
        prefix_loss = summed_loss(model, prefix) * bool(shares[own])
    for index in range(max(map(len, shares))):
        has_examples = index < len(shares[own])
        batch = shares[own][index] if has_examples else examples[:1]
        loss = summed_loss(model, PackedBatch(batch, prefix)) * has_examples
        if backward:
            backward(loss).backward()
        losses.append(loss.detach())
    if backward and length:
        prefix.backward(backward(prefix_loss))
    # Read at the end: until then a GPU runs behind, with the next pass already queued.
    return sum(loss.item() for loss in [*losses, prefix_loss])
