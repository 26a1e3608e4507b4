"""Prompts on which training stays near the base model, with the base's own answers to them.

They need no labels: what the base would say is what is not to be forgotten.
"""

import math
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass

import torch
from torch import Tensor

from common.ranks import rank, world_size
from data.examples import IGNORE_INDEX, Example, epoch_batches
from llama.decoding import generate
from llama.finite import non_finite_error
from llama.model import Decoder
from lora.inject import lora_disabled
from lora.kl import PASS_TOKENS, mean_divergences, position_divergences
from lora.loss import count_supervised
from lora.packed_batch import PackedBatch, SharedPrefix, micro_batches

NOT_FINITE = -1  # in place of a token; rank 0 says it to all as it does a token
ANCHOR_TOKENS = 48  # of the base's answer to an anchor's prompt


@dataclass(frozen=True)
class FirstTokens:
    """The first `count` tokens of an answer weigh `weight` times as much as the later ones.

    Whether a model refuses is decided in its first few tokens, and fine-tuning moves those most (Qi
    et al. 2024, https://arxiv.org/abs/2406.05946).
    """

    count: int
    weight: float

    def weights(self, counts: Sequence[int]) -> list[float]:
        """The weights of the supervised tokens, given how many each example has."""
        weights: list[float] = []
        for length in counts:
            first = min(self.count, length)
            weights += [self.weight] * first + [1.0] * (length - first)
        return weights


class Anchor:
    """Adds `weight` times the mean KL(base || tuned) on `examples` to the loss.

    A step takes `batch_size` of them, in an order that depends on the seed and the step alone. With
    `first` the mean is weighted.
    """

    def __init__(
        self,
        model: Decoder,
        examples: Sequence[Example],
        weight: float,
        batch_size: int,
        seed: int,
        first: FirstTokens | None = None,
    ) -> None:
        self.model, self.examples, self.weight, self.seed = model, examples, weight, seed
        self.first = first
        self.batch_size = min(batch_size, len(examples))
        self.lengths = [len(example.input_ids) for example in examples]

    def batch(self, step: int) -> list[Example]:
        """The examples of one step."""
        epoch, place = divmod(step, math.ceil(len(self.examples) / self.batch_size))
        batches = epoch_batches(self.lengths, self.batch_size, self.seed, epoch)
        return [self.examples[i] for i in batches[place]]

    def add_gradients(self, step: int, scale: Callable[[Tensor], Tensor]) -> float:
        """Backpropagate `scale(weight * mean KL)` into the LoRA layers.

        Returns the mean KL in nats, in which all tokens weigh the same.

        Each of several processes takes its share of the examples, and the sum of their gradients is
        the whole. All make equally many passes, since FSDP synchronises them in each.
        """
        batch, processes = self.batch(step), world_size()
        total = count_supervised(batch)
        weight_sum = self._weight_sum(batch)
        shares = [micro_batches(batch[i::processes], 0, PASS_TOKENS) for i in range(processes)]
        own = shares[rank()]
        value = torch.zeros((), device=self.model.device)
        for index in range(max(map(len, shares))):
            has_examples = index < len(own)
            examples = own[index] if has_examples else batch[:1]
            divergences, counts = position_divergences(self.model, examples)
            mean = divergences.sum() * has_examples / total
            value += mean.detach()
            if self.first:
                weights = divergences.new_tensor(self.first.weights(counts))
                mean = (divergences * weights).sum() * has_examples / weight_sum
            scale(self.weight * mean).backward()
        if processes > 1:
            torch.distributed.all_reduce(value)
        return value.item()

    def _weight_sum(self, batch: Sequence[Example]) -> float:
        counts = [count_supervised([example]) for example in batch]
        return sum(self.first.weights(counts)) if self.first else float(sum(counts))


def continue_prompts(
    model: Decoder, prompts: Sequence[list[int]], stop_ids: Set[int]
) -> list[Example]:
    """Each prompt as an example that supervises the base's greedy answer, up to ANCHOR_TOKENS."""
    with lora_disabled(model):
        outputs = generate(model, prompts, ANCHOR_TOKENS, stop_ids)
    answers = [output.token_ids for output in outputs]
    return [_supervise_answer(*pair) for pair in zip(prompts, answers, strict=True)]


@torch.no_grad()
def continue_sharded(
    model: Decoder, prompts: Sequence[list[int]], stop_ids: Set[int]
) -> list[Example]:
    """As `continue_prompts`, for weights that FSDP shards: each is gathered in every pass.

    The ranks make the same passes, without a cache, and follow the tokens that rank 0 chooses.
    UserError, with the prompt's number and the layer, for logits that are not finite.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    growing = list(range(len(prompts)))
    while growing:
        texts = [[*prompts[i], *answers[i]] for i in growing]
        tokens = _next_tokens(model, texts)
        still_growing = []
        for i, text, token in zip(growing, texts, tokens, strict=True):
            if token == NOT_FINITE:
                what = f"the logits of new token {len(answers[i]) + 1}"
                with lora_disabled(model):
                    raise non_finite_error(model, text, f"prompt {i}", what)
            answers[i].append(token)
            has_room = len(text) + 1 < model.config.max_position_embeddings
            if has_room and token not in stop_ids and len(answers[i]) < ANCHOR_TOKENS:
                still_growing.append(i)
        growing = still_growing
    return [_supervise_answer(*pair) for pair in zip(prompts, answers, strict=True)]


def _next_tokens(model: Decoder, texts: Sequence[list[int]]) -> list[int]:
    """The base's likeliest token after each text, NOT_FINITE where its logits are not finite."""
    chosen = []
    examples = [Example(text, []) for text in texts]
    with lora_disabled(model):
        for batch in micro_batches(examples, 0, PASS_TOKENS):
            packed = PackedBatch(batch, SharedPrefix(batch, 0, model.device))
            hidden = model(packed.input_ids, packed.positions, packed.attend)[0]
            last = [end - 1 for _, end in packed.spans]
            highest, tokens = model.logits(hidden[last]).max(-1)  # NaN is the highest of all
            chosen.append(tokens.where(highest.isfinite(), NOT_FINITE))
    tokens = torch.cat(chosen)
    if world_size() > 1:
        torch.distributed.broadcast(tokens, src=0)
    return tokens.tolist()


def _supervise_answer(prompt: list[int], answer: list[int]) -> Example:
    return Example([*prompt, *answer], [IGNORE_INDEX] * len(prompt) + answer)


def measure_divergence(
    model: Decoder, validation: list[Example], anchors: list[Example]
) -> dict[str, float]:
    """The mean KL from the base, in nats a token, on held-out examples and on the anchors.

    Empty without anchors.
    """
    if not anchors:
        return {}
    means = {}
    for name, examples in (("kl_validation", validation), ("kl_prompts", anchors)):
        divergences = mean_divergences(model, examples)
        means[name] = sum(divergences) / len(divergences)
    return means
