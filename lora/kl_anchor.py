"""Prompts on which training stays near the base model, with what the base itself answers to them.

They need no labels: what the base would say is what is not to be forgotten.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from common.ranks import rank, world_size
from data.ailuminate import ailuminate_messages, load_ailuminate
from data.examples import IGNORE_INDEX, Example, epoch_batches
from data.gsm8k import gsm8k_messages, load_gsm8k
from data.task import stratified_sample
from llama.decoding import check_prompts, generate
from llama.model import Decoder
from llama.tokenizer import Tokenizer
from lora.inject import lora_disabled
from lora.kl import PASS_TOKENS, mean_divergences, position_divergences
from lora.packed_batch import micro_batches

ANCHOR_TOKENS = 48  # how far the base continues an anchor's prompt
# of more prompts, so many are taken: answering and measuring them all would rival the training
MAX_ANCHORS = 128


class Anchor:
    """Holds the tuned model near its base on `examples`: `weight` times their mean KL(base ||
    tuned) joins the loss.

    A step takes `batch_size` of them, in an order that depends on the seed and the step alone.
    """

    def __init__(
        self, model: Decoder, examples: Sequence[Example], weight: float, batch_size: int, seed: int
    ) -> None:
        self.model, self.examples, self.weight, self.seed = model, examples, weight, seed
        self.batch_size = min(batch_size, len(examples))
        self.lengths = [len(example.input_ids) for example in examples]

    def batch(self, step: int) -> list[Example]:
        epoch, place = divmod(step, math.ceil(len(self.examples) / self.batch_size))
        return [
            self.examples[i]
            for i in epoch_batches(self.lengths, self.batch_size, self.seed, epoch)[place]
        ]

    def add_gradients(self, step: int, scale: Callable[[Tensor], Tensor]) -> float:
        """Add the gradients of what `scale` makes of the weighted divergence to the LoRA layers';
        return the mean KL.

        Of several processes, each takes its share of the examples, and the sum of their gradients
        is the whole. All make equally many passes, since with FSDP they meet in each.
        """
        batch, own, processes = self.batch(step), rank(), world_size()
        total = sum(label != IGNORE_INDEX for example in batch for label in example.labels[1:])
        passes = [micro_batches(batch[i::processes], 0, PASS_TOKENS) for i in range(processes)]
        value = torch.zeros((), device=self.model.device)
        for index in range(max(map(len, passes))):
            busy = index < len(passes[own])
            divergences, _ = position_divergences(
                self.model, passes[own][index] if busy else batch[:1]
            )
            mean = divergences.sum() * busy / total
            scale(self.weight * mean).backward()
            value += mean.detach()
        if processes > 1:
            torch.distributed.all_reduce(value)
        return value.item()


def build_anchors(model: Decoder, tokenizer: Tokenizer, source: str) -> list[Example]:
    """The prompts of `source`, at most MAX_ANCHORS, each with the first tokens of the base model's
    own greedy answer.

    `source`: "demo" (the embedded hazard prompts), "ailuminate" (the official ones), a CSV file in
    their format, or a .jsonl in GSM8K's.
    """
    if source.endswith(".jsonl"):
        chats = [
            gsm8k_messages(record["question"])
            for record in load_gsm8k(source, "train")[:MAX_ANCHORS]
        ]
    else:
        chats = [
            ailuminate_messages(record["prompt"])
            for record in stratified_sample(
                load_ailuminate(source), ("hazard", "persona"), MAX_ANCHORS
            )
        ]
    prompts = [tokenizer.encode_chat(chat) for chat in chats]
    check_prompts(
        model.config, prompts, [f"prompt {i + 1} of {source}" for i in range(len(prompts))]
    )
    print(
        f"{len(prompts)} prompts of {source} to measure the divergence from the base on", flush=True
    )
    return continue_prompts(model, tokenizer, prompts)


def continue_prompts(
    model: Decoder, tokenizer: Tokenizer, prompts: Sequence[list[int]]
) -> list[Example]:
    """Each prompt as an example whose supervised tokens are the base's, up to ANCHOR_TOKENS of
    them.
    """
    with lora_disabled(model):
        outputs = generate(model, prompts, ANCHOR_TOKENS, tokenizer.stop_ids)
    pairs = zip(prompts, (output.token_ids for output in outputs), strict=True)
    return [
        Example([*prompt, *answer], [IGNORE_INDEX] * len(prompt) + answer)
        for prompt, answer in pairs
    ]


def measure_divergence(
    model: Decoder, validation: list[Example], anchors: list[Example]
) -> dict[str, float]:
    """KL from the base, in nats a token, on held-out examples and on the anchors; nothing without
    anchors.
    """
    if not anchors:
        return {}
    found = {"kl_validation": validation, "kl_prompts": anchors}
    means = {name: mean_divergences(model, examples) for name, examples in found.items()}
    return {name: sum(values) / len(values) for name, values in means.items()}
