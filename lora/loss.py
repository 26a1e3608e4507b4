"""Next-token cross-entropy of supervised positions, through a frozen output head, a chunk of
positions at a time.

Logits are the largest tensor of a training step (tokens x vocabulary). Here each chunk's logits
turn into their loss and their gradient at once and are dropped, so peak memory grows with the
chunk, not with the batch (the idea of Liger-Kernel's fused linear cross-entropy, Hsu et al. 2024).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from common.ranks import rank, world_size
from data.examples import Example
from llama.engine import common_prefix_length
from llama.model import Decoder
from lora.packed_batch import PackedBatch, Row, SharedPrefix, micro_batches

CHUNK = 256  # positions whose logits exist at one time


class FrozenHeadCrossEntropy(torch.autograd.Function):
    """Weighted sum over S positions: hidden [S, E], head [V, E], targets [S], weights [S] ->
    float32 scalar.
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        loss = torch.zeros(
            (), dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device
        )
        gradient = torch.empty_like(hidden)
        buffer = torch.empty(
            min(CHUNK, len(targets)), len(head), dtype=head.dtype, device=head.device
        )
        for rows in torch.arange(len(targets), device=hidden.device).split(CHUNK):
            logits = torch.mm(hidden[rows].to(head.dtype), head.T, out=buffer[: len(rows)]).to(
                loss.dtype
            )
            expected = logits.gather(-1, targets[rows, None])
            top = logits.amax(-1, keepdim=True)
            total = logits.sub_(top).exp_().sum(-1, keepdim=True)
            loss += ((total.log() + top - expected)[:, 0] * weights[rows]).sum()
            if ctx.needs_input_grad[0]:
                probabilities = logits.div_(total)  # becomes d loss / d logits in place
                probabilities[torch.arange(len(rows), device=rows.device), targets[rows]] -= 1
                probabilities *= weights[rows, None]
                gradient[rows] = (probabilities.to(head.dtype) @ head).to(hidden.dtype)
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    def backward(ctx, grad_loss: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_loss.to(gradient.dtype), None, None, None


def summed_loss(model: Decoder, row: Row) -> Tensor:
    """Cross-entropy summed over the supervised tokens of one pass, a float32 scalar in nats."""
    hidden = model(row.input_ids, row.positions, row.attend)[0]
    if not len(row.targets):
        return hidden[:0].sum(
            dtype=torch.float32
        )  # zero, but of the graph: FSDP makes a block whole by its output's hook
    weights = row.weights.to(torch.promote_types(hidden.dtype, torch.float32))
    return FrozenHeadCrossEntropy.apply(
        hidden[row.sources], model.lm_head.weight, row.targets, weights
    )


def step_loss(
    model: Decoder,
    examples: Sequence[Example],
    max_tokens: int,
    backward: Callable[[Tensor], Tensor] | None = None,
) -> float:
    """Cross-entropy summed over the supervised tokens of `examples`, in nats, in passes of at most
    `max_tokens` tokens.

    With `backward`, gradients are added to the LoRA layers' as well: those of what it makes of the
    summed loss, which must be linear (a division, a loss scale). Of several processes, each takes
    every n-th example and returns its own part of the loss; all make equally many passes, since
    with FSDP they meet in each block of each.
    """
    own, processes = rank(), world_size()
    length = common_prefix_length([example.input_ids for example in examples])
    shares = [micro_batches(examples[i::processes], length, max_tokens) for i in range(processes)]
    prefix = SharedPrefix(examples[own::processes] or examples[:1], length, model.device)
    total = 0.0
    prefix_loss = summed_loss(model, prefix) * bool(shares[own]) if length else torch.zeros(())
    for index in range(max(map(len, shares))):
        busy = index < len(shares[own])
        loss = (
            summed_loss(model, PackedBatch(shares[own][index] if busy else examples[:1], prefix))
            * busy
        )
        if backward:
            backward(loss).backward()
        total += loss.item()
    if backward and length:
        prefix.backward(backward(prefix_loss))
    return total + prefix_loss.item()
