"""Training examples without padding: laid end to end, each seeing only itself and a shared prefix.

What every example of a step begins with (a prompt header, fixed shots) is computed once a step,
however many passes the step is cut into. Its keys and values take part in each example's attention,
their gradients are summed over the passes and flow back through the prefix at the end, so the
gradients are those of the plain way. Only dropout differs: one mask serves the prefix of all.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from data.examples import IGNORE_INDEX, Example
from llama.attention import PackedSequences
from llama.model import causal_attention
from llama.packed_attention import merge, packed_attention, packed_attention_gradients


class ForwardInputs:
    """N tokens that go through the decoder in one pass, and the tokens they are to predict.

    `input_ids`, `positions`: [1, N] int64. The hidden state at position `sources[i]` is to predict
    token `targets[i]`, and counts `weights[i]` times: [S] int64, int64, float32.
    """

    def __init__(
        self,
        tokens: list[int],
        positions: Sequence[int],
        targets: Counter[tuple[int, int]],
        device: torch.device | str,
    ) -> None:
        self.input_ids = torch.tensor([tokens], device=device, dtype=torch.int64)
        self.positions = torch.tensor([list(positions)], device=device, dtype=torch.int64)
        pairs = torch.tensor(list(targets), device=device, dtype=torch.int64).view(-1, 2)
        self.sources, self.targets = pairs[:, 0], pairs[:, 1]
        self.weights = torch.tensor(list(targets.values()), device=device, dtype=torch.float32)

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attention that takes the place of plain causal attention in this pass; see
        `llama.model.Attend`.
        """
        raise NotImplementedError


class SharedPrefix(ForwardInputs):
    """The first `length` tokens (may be 0) of `examples`, which all of them begin with.

    `weights` exceed 1 where several examples are to predict the same token. The forward pass stores
    each layer's keys and values. PackedBatch attends to detached copies (`leaves`), whose gradients
    accumulate over micro-batches and are backpropagated once, in `backward`.
    """

    def __init__(
        self, examples: Sequence[Example], length: int, device: torch.device | str = "cpu"
    ) -> None:
        self.length = length
        targets: Counter[tuple[int, int]] = Counter()
        for example in examples:
            for place, label in enumerate(example.labels[: length + 1]):
                if label != IGNORE_INDEX and 0 < place <= length:
                    targets[place - 1, label] += 1
        super().__init__(examples[0].input_ids[:length], range(length), targets, device)
        self.sequences = PackedSequences([length], device)
        self.computed: list[Tensor] = []  # keys and values of layer after layer, [1, P, K, D] each
        self.leaves: list[Tensor] = []

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Causal attention that stores its keys and values.

        [1, P, H, D], [1, P, K, D], [1, P, K, D] -> [1, P, H, D].
        """
        if len(self.computed) == 2 * layer:  # not when activation checkpointing comes by again
            self.computed += [keys, values]
            self.leaves += [
                tensor.detach().requires_grad_(tensor.requires_grad) for tensor in (keys, values)
            ]
        if queries.is_cpu:
            return causal_attention(layer, queries, keys, values)
        # With fewer key/value heads than query heads, CUDA's kernels for float32 are not to be had
        # in public: that would store all scores.
        tensors = [tensor.transpose(1, 2) for tensor in (queries, keys, values)]
        tensors = [tensor.to(values.dtype) for tensor in tensors]
        return PackedAttention.apply(*[self.sequences] * 3, *tensors).transpose(1, 2)

    def backward(self, loss: Tensor) -> None:
        """Backpropagate the prefix's own `loss` and the gradients of its keys and values."""
        tensors, gradients = [], []
        for tensor, leaf in zip(self.computed, self.leaves, strict=True):
            if leaf.grad is not None:
                tensors.append(tensor)
                gradients.append(leaf.grad)
        if loss.requires_grad:
            tensors.append(loss)
            gradients.append(torch.ones_like(loss))
        torch.autograd.backward(tensors, gradients)


class PackedBatch(ForwardInputs):
    """The examples of one pass, end to end, without the `prefix` that all of them begin with."""

    def __init__(self, examples: Sequence[Example], prefix: SharedPrefix) -> None:
        self.prefix, device = prefix, prefix.input_ids.device
        tokens: list[int] = []
        positions: list[int] = []
        targets: Counter[tuple[int, int]] = Counter()
        self.spans: list[tuple[int, int]] = []  # where each example's own tokens lie
        for example in examples:
            begin, own = len(tokens), example.input_ids[prefix.length :]
            tokens += own
            positions += range(prefix.length, len(example.input_ids))
            self.spans.append((begin, len(tokens)))
            for source, label in enumerate(example.labels[prefix.length + 1 :], start=begin):
                if label != IGNORE_INDEX:
                    targets[source, label] += 1
        super().__init__(tokens, positions, targets, device)
        self.sequences = PackedSequences([end - begin for begin, end in self.spans], device)
        self.whole = PackedSequences([len(tokens)], device)

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Block-diagonal causal attention, to the prefix as well.

        [1, N, H, D], [1, N, K, D], [1, N, K, D] -> [1, N, H, D].
        """
        shared = self.prefix.leaves[2 * layer : 2 * layer + 2]
        tensors = [tensor.transpose(1, 2) for tensor in (queries, keys, values, *shared)]
        tensors = [tensor.to(values.dtype) for tensor in tensors]
        sequences = self.sequences, self.whole, self.prefix.sequences
        return PackedAttention.apply(*sequences, *tensors).transpose(1, 2)


def micro_batches(examples: Sequence[Example], prefix: int, max_tokens: int) -> list[list[Example]]:
    """Cut an optimizer step's examples, in order, into passes of at most `max_tokens` tokens.

    The first `prefix` tokens of each do not count: they are computed apart. A longer example makes
    a pass of its own.
    """
    batches: list[list[Example]] = []
    used = max_tokens + 1
    for example in examples:
        own = len(example.input_ids) - prefix
        if used + own > max_tokens:
            batches.append([])
            used = 0
        batches[-1].append(example)
        used += own
    return batches


class PackedAttention(torch.autograd.Function):
    """Packed attention that keeps no copies and no scores.

    queries [1, H, N, D], keys and values [1, K, N, D] and, if there is a prefix, its keys and
    values [1, K, P, D] -> [1, H, N, D].

    Each example's own keys and the prefix's are attended to apart, and the two are merged by the
    logarithms of their softmax sums. Given the merged ones, the backward kernel yields each part's
    gradients (as in ring attention, Liu et al. 2023).
    """

    @staticmethod
    def forward(
        ctx: Any,
        sequences: PackedSequences,
        whole: PackedSequences,
        prefix: PackedSequences,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        *shared: Tensor,
    ) -> Tensor:
        out, log_sum = packed_attention(queries, keys, values, sequences, sequences, causal=True)
        if shared:
            prefix_keys, prefix_values = shared
            over_prefix = packed_attention(
                queries, prefix_keys, prefix_values, whole, prefix, causal=False
            )
            out, log_sum = merge(out, log_sum, *over_prefix)
        ctx.sequences = sequences, whole, prefix
        ctx.save_for_backward(out, log_sum, queries, keys, values, *shared)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        sequences, whole, prefix = ctx.sequences
        out, log_sum, queries, keys, values, *shared = ctx.saved_tensors
        grads = packed_attention_gradients(
            grad, queries, keys, values, out, log_sum, sequences, sequences, causal=True
        )
        if not shared:
            return None, None, None, *grads
        prefix_keys, prefix_values = shared
        grad_queries, *grad_shared = packed_attention_gradients(
            grad, queries, prefix_keys, prefix_values, out, log_sum, whole, prefix, causal=False
        )
        return None, None, None, grads[0] + grad_queries, *grads[1:], *grad_shared
