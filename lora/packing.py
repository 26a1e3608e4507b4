"""Training examples without padding: laid end to end in one row, each seeing only itself and a prefix all share.

A prompt header or fixed shots that every example of the batch starts with are computed once; their keys and values
take part in each example's attention, so the gradients that flow back through them are those of the plain way.
Only dropout differs: one mask serves the prefix of all.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from data.examples import IGNORED, Example
from llama.engine import common_prefix_length


class PackedBatch:
    """Examples as one row of N tokens: the shared prefix (`prefix_length` tokens, may be 0), then each one's rest.

    `input_ids`, `positions`: [1, N] int64. `sources` [S], `targets` [S]: the hidden state at flat position
    `sources[i]` is to predict token `targets[i]`, `weights[i]` (float32) times: more than once in a shared prefix.
    """

    def __init__(self, examples: Sequence[Example], device: torch.device | str = "cpu") -> None:
        rows = [list(example.input_ids) for example in examples]
        prefix = self.prefix_length = common_prefix_length(rows)
        tokens, positions = rows[0][:prefix], list(range(prefix))
        sources, targets, weights = [], [], []
        self.spans: list[tuple[int, int]] = []  # where each example's own tokens lie
        counts: dict[int, int] = {}
        for example, row in zip(examples, rows, strict=True):
            begin = len(tokens)
            tokens += row[prefix:]
            positions += range(prefix, len(row))
            self.spans.append((begin, len(tokens)))
            for place, label in enumerate(example.labels):
                if label == IGNORED or place == 0:  # nothing stands before the first token to predict it from
                    continue
                if place < prefix:
                    counts[place] = counts.get(place, 0) + 1
                    continue
                sources.append(place - 1 if place == prefix else begin + place - prefix - 1)
                targets.append(label)
                weights.append(1.0)
        for place, count in counts.items():
            sources.append(place - 1)
            targets.append(rows[0][place])
            weights.append(float(count))
        self.examples = len(rows)
        self.tokens = sum(map(len, rows))
        self.supervised_tokens = round(sum(weights))
        self.input_ids = torch.tensor([tokens], device=device)
        self.positions = torch.tensor([positions], device=device)
        self.sources = torch.tensor(sources, device=device, dtype=torch.int64)
        self.targets = torch.tensor(targets, device=device, dtype=torch.int64)
        self.weights = torch.tensor(weights, device=device)
        # With a prefix, queries stand at the end of their keys: the mask is causal from the lower right corner.
        self.masks = [
            torch.ones(end - begin, prefix + end - begin, dtype=torch.bool, device=device).tril(prefix)
            if prefix
            else None
            for begin, end in self.spans
        ]

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Block-diagonal causal attention: [1, N, H, D], [1, N, K, D], [1, N, K, D] -> [1, N, H, D]."""
        queries, keys, values = queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2)
        prefix = self.prefix_length
        outs = []
        if prefix:
            shared_keys, shared_values = keys[:, :, :prefix], values[:, :, :prefix]
            outs.append(_attention(queries[:, :, :prefix], shared_keys, shared_values, None))
        for (begin, end), mask in zip(self.spans, self.masks, strict=True):
            own_keys, own_values = keys[:, :, begin:end], values[:, :, begin:end]
            if prefix:
                own_keys = torch.cat((shared_keys, own_keys), dim=2)
                own_values = torch.cat((shared_values, own_values), dim=2)
            outs.append(_attention(queries[:, :, begin:end], own_keys, own_values, mask))
        return torch.cat(outs, dim=2).transpose(1, 2)


def micro_batches(examples: Sequence[Example], max_tokens: int) -> list[list[Example]]:
    """Cut an optimizer step's examples, in order, into passes of at most `max_tokens` tokens (a longer one alone).

    What all of them begin with counts once a pass, since it is computed once.
    """
    prefix = common_prefix_length([example.input_ids for example in examples])
    batches, used = [], max_tokens + 1
    for example in examples:
        own = len(example.input_ids) - prefix
        if used + own > max_tokens:
            batches.append([])
            used = prefix
        batches[-1].append(example)
        used += own
    return batches


def _attention(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    return F.scaled_dot_product_attention(
        queries, keys, values, attn_mask=mask, is_causal=mask is None, enable_gqa=True
    )
