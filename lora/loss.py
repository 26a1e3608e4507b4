"""Next-token cross-entropy of supervised positions, through a frozen output head, a chunk of positions at a time.

Logits are the largest tensor of a training step (tokens x vocabulary). Here each chunk's logits turn into their loss
and their gradient at once and are dropped, so peak memory grows with the chunk, not with the batch (the idea of
Liger-Kernel's fused linear cross-entropy, Hsu et al. 2024).
"""

import torch
from torch import Tensor

from llama.model import Decoder
from lora.packing import PackedBatch

CHUNK = 256  # positions whose logits exist at one time


class FrozenHeadCrossEntropy(torch.autograd.Function):
    """Weighted sum over S positions: hidden [S, E], head [V, E], targets [S], weights [S] -> float32 scalar."""

    @staticmethod
    def forward(ctx, hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        loss = torch.zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device)
        gradient = torch.empty_like(hidden)
        for rows in torch.arange(len(targets), device=hidden.device).split(CHUNK):
            logits = (hidden[rows].to(head.dtype) @ head.T).to(loss.dtype)
            log_total = logits.logsumexp(-1)
            loss += ((log_total - logits.gather(-1, targets[rows, None])[:, 0]) * weights[rows]).sum()
            if ctx.needs_input_grad[0]:
                probabilities = logits.sub_(log_total[:, None]).exp_()  # becomes d loss / d logits in place
                probabilities[torch.arange(len(rows), device=rows.device), targets[rows]] -= 1
                probabilities *= weights[rows, None]
                gradient[rows] = (probabilities.to(head.dtype) @ head).to(hidden.dtype)
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    def backward(ctx, grad_loss: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_loss.to(gradient.dtype), None, None, None


def summed_loss(model: Decoder, batch: PackedBatch) -> Tensor:
    """Cross-entropy summed over the batch's supervised tokens, a float32 scalar in nats."""
    hidden = model(batch.input_ids, batch.positions, batch.attend)[0]
    weights = batch.weights.to(torch.promote_types(hidden.dtype, torch.float32))
    return FrozenHeadCrossEntropy.apply(hidden[batch.sources], model.lm_head.weight, batch.targets, weights)
