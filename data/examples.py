"""Training examples: a conversation as token ids and labels, how they are split and batched."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from common.errors import UserError

IGNORE_INDEX = -100  # the label of a token that is not trained on, as torch's cross-entropy has it
LOSSES = ("answer", "all")
BATCHES_PER_CHUNK = (
    50  # within which examples are sorted by length: long enough to pack well, short enough to mix
)


@dataclass(frozen=True)
class Example:
    """`labels[i]` belongs to `input_ids[i]` (not shifted): the same id where it is supervised, -100
    elsewhere.
    """

    input_ids: list[int]
    labels: list[int]


def build_example(
    tokenizer: Any, messages: list[dict[str, str]], loss: str = "answer", system_header: bool = True
) -> Example:
    """Encode a conversation that ends in the assistant's answer.

    `loss="answer"` supervises exactly the answer and its end token and drops what the template
    prints after it; `loss="all"` supervises every token. Without `system_header`, what the template
    prints on its own before the first turn is cut off, up to and with its end token. UserError if
    the template does not let the two be told apart, or prints no such header.
    """
    cut = 0 if system_header else system_header_length(tokenizer)
    example = _build_whole(tokenizer, messages, loss)
    return Example(example.input_ids[cut:], example.labels[cut:])


def system_header_length(tokenizer: Any) -> int:
    """Tokens of the system turn that the chat template prints unasked, its beginning and its end
    token included.

    UserError if it prints none: the first end token is the user's then, and the question would be
    lost.
    """
    chats = [
        tokenizer.encode_chat([{"role": "user", "content": content}]) for content in ("a", "b")
    ]
    shared = chats[0][: _common_prefix(*chats)]
    end = next((place for place, token in enumerate(shared) if token in tokenizer.stop_ids), None)
    if end is None:
        raise UserError(
            "the chat template prints no system header, so there is none to train without"
        )
    return end + 1


def _build_whole(tokenizer: Any, messages: list[dict[str, str]], loss: str) -> Example:
    if loss not in LOSSES:
        raise UserError(f"unknown loss {loss!r}: expected one of {', '.join(LOSSES)}")
    full = tokenizer.encode_chat(messages, add_generation_prompt=False)
    if loss == "all":
        return Example(full, list(full))
    prompt = tokenizer.encode_chat(messages[:-1], add_generation_prompt=True)
    start = len(prompt)
    if full[:start] != prompt:
        raise UserError(
            f"the chat template writes an answered prompt otherwise than the prompt alone (they share "
            f"{_common_prefix(full, prompt)} of {start} tokens), so the answer cannot be told apart; use the loss 'all'"
        )
    ends = [i for i in range(start, len(full)) if full[i] in tokenizer.stop_ids]
    if not ends:
        raise UserError(
            f"the chat template ends an answer with none of the checkpoint's end tokens {sorted(tokenizer.stop_ids)}: "
            f"the model would never learn to stop; its last token is {full[-1]}"
        )
    stop = ends[-1] + 1
    return Example(full[:stop], [IGNORE_INDEX] * start + full[start:stop])


def _common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    shorter = min(len(left), len(right))
    return next((i for i in range(shorter) if left[i] != right[i]), shorter)


def describe_example(tokenizer: Any, example: Example) -> str:
    """The decoded example with each stretch under a line that says whether it is trained on."""
    supervised = sum(label != IGNORE_INDEX for label in example.labels)
    lines = [f"{len(example.input_ids)} tokens, {supervised} of them trained on"]
    pairs = zip(example.input_ids, example.labels, strict=True)
    for trained, stretch in groupby(pairs, key=lambda pair: pair[1] != IGNORE_INDEX):
        ids = [token for token, _ in stretch]
        lines.append(
            f"----- {'trained on' if trained else 'context only'} ({len(ids)} tokens) -----"
        )
        lines.append(tokenizer.decode(ids, skip_special_tokens=False))
    return "\n".join([*lines, "----- end -----"])


def split_validation(examples: Sequence[Any], count: int, seed: int) -> tuple[list[Any], list[Any]]:
    """Hold out `count` examples drawn by `seed`; return (training, validation), both in their old
    order.
    """
    if not 0 <= count < len(examples):
        raise UserError(
            f"{count} validation examples asked for, but there are only {len(examples)} examples in all"
        )
    held_out = set(random.Random(seed).sample(range(len(examples)), count))
    training = [example for i, example in enumerate(examples) if i not in held_out]
    return training, [examples[i] for i in sorted(held_out)]


def epoch_batches(
    lengths: Sequence[int], batch_size: int, seed: int, epoch: int
) -> list[list[int]]:
    """One epoch as batches of example indices: each index once, in an order that depends on (seed,
    epoch) alone.

    A batch holds examples of like length, so that steps cost alike: the shuffled examples are
    sorted within large chunks, cut into batches, and the batches are shuffled. One batch is short
    if the division leaves a rest.
    """
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}: expected at least 1")
    generator = random.Random(f"{seed} {epoch}")
    order = list(range(len(lengths)))
    generator.shuffle(order)
    batches = []
    chunk_size = batch_size * BATCHES_PER_CHUNK
    for start in range(0, len(order), chunk_size):
        chunk = sorted(order[start : start + chunk_size], key=lengths.__getitem__)
        batches += [chunk[i : i + batch_size] for i in range(0, len(chunk), batch_size)]
    generator.shuffle(batches)
    return batches


def build_chat_examples(tokenizer: Any, messages: list[dict[str, str]]) -> list[Example]:
    """Encode a conversation of several turns in which every assistant turn is trained on.

    One example, unless the template writes a turn otherwise once another follows it, as those do
    that drop earlier reasoning. Then each assistant turn is an example of its own, behind what the
    model would see when it is generated. UserError as `build_example` raises it.
    """
    examples = []
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            examples.append(build_example(tokenizer, messages[: index + 1]))
    whole = examples[-1]
    labels = list(whole.labels)
    for example in examples[:-1]:
        length = len(example.input_ids)
        if whole.input_ids[:length] != example.input_ids:
            return examples
        for place, label in enumerate(example.labels):
            if label != IGNORE_INDEX:
                labels[place] = label
    return [Example(whole.input_ids, labels)]
