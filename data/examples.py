"""Training examples: a conversation as token ids and labels, what is held out, and the batches."""

import hashlib
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

from common.errors import UserError
from data.few_shot import normalise_question
from data.prompts import Message

IGNORE_INDEX = -100  # the label of a token that is not trained on, as torch's cross-entropy has it
LOSSES = ("answer", "all")
# Examples are sorted by length within chunks: long enough to pack well, short enough to mix.
BATCHES_PER_CHUNK = 50
# The first questions of a file are what fixed shots are taken from, also at test time. They are
# not held out, so that the shots of training stay those of testing.
FIRST_HELD_OUT = 8


@dataclass(frozen=True)
class Example:
    """A sequence of token ids with as many labels.

    `labels[i]` belongs to `input_ids[i]` (not shifted): the same id where it is supervised,
    IGNORE_INDEX elsewhere.
    """

    input_ids: list[int]
    labels: list[int]


class ChatTokenizer(Protocol):
    """The part of a tokenizer that examples need; see `llama.tokenizer.Tokenizer`."""

    stop_ids: frozenset[int]

    def encode(self, text: str) -> list[int]: ...

    def encode_framed(self, text: str) -> list[int]: ...

    def encode_chat(
        self, messages: Sequence[Message], add_generation_prompt: bool = True
    ) -> list[int]: ...

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str: ...


def build_example(
    tokenizer: ChatTokenizer,
    messages: Sequence[Message],
    loss: str = "answer",
    system_header: bool = True,
) -> Example:
    """Encode a conversation that ends in the assistant's answer.

    `loss="answer"` supervises the answer and one end token and drops what the template prints
    after them; `loss="all"` supervises every token. Without `system_header`, the system turn that
    the template prints on its own is cut out of the text; what the tokenizer begins every text with
    stays. UserError if prompt and answer cannot be told apart, or there is no such system turn.
    """
    if loss not in LOSSES:
        raise ValueError(f"unknown loss {loss!r}: expected one of {', '.join(LOSSES)}")
    example = _supervise(tokenizer, messages, loss)
    if system_header:
        return example
    beginning, header_end = locate_system_header(tokenizer)
    return Example(
        example.input_ids[:beginning] + example.input_ids[header_end:],
        example.labels[:beginning] + example.labels[header_end:],
    )


def build_chat_examples(tokenizer: ChatTokenizer, messages: Sequence[Message]) -> list[Example]:
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


def _supervise(tokenizer: ChatTokenizer, messages: Sequence[Message], loss: str) -> Example:
    """The whole conversation with its labels."""
    full = tokenizer.encode_chat(messages, add_generation_prompt=False)
    if loss == "all":
        return Example(full, list(full))
    prompt = tokenizer.encode_chat(messages[:-1], add_generation_prompt=True)
    start = len(prompt)
    if full[:start] != prompt:
        raise UserError(
            "the chat template writes an answered prompt otherwise than the prompt alone (they "
            f"share {_common_prefix(full, prompt)} of {start} tokens), so the answer cannot be "
            "told apart; use the loss 'all'"
        )
    end = _answer_end(tokenizer, full, start)
    return Example(full[:end], [IGNORE_INDEX] * start + full[start:end])


def _answer_end(tokenizer: ChatTokenizer, ids: Sequence[int], start: int) -> int:
    """The place behind the end token of the answer that begins at `start`.

    After the answer a template may print several end tokens and blanks between them: the first one
    is what the model has to stop with. UserError if there is none.
    """
    tail = len(ids)
    while tail > start and (
        ids[tail - 1] in tokenizer.stop_ids or _is_blank(tokenizer, ids[tail - 1])
    ):
        tail -= 1
    for place in range(tail, len(ids)):
        if ids[place] in tokenizer.stop_ids:
            return place + 1
    ends = [place for place in range(start, len(ids)) if ids[place] in tokenizer.stop_ids]
    if not ends:
        raise UserError(
            "the chat template ends an answer with none of the checkpoint's end tokens "
            f"{sorted(tokenizer.stop_ids)}: the model would never learn to stop; its last token is "
            f"{ids[-1]}"
        )
    return ends[-1] + 1  # the template prints text after it


def locate_system_header(tokenizer: ChatTokenizer) -> tuple[int, int]:
    """The first and last token of the system turn that the chat template prints unasked.

    It begins behind what the tokenizer puts before every text (<|begin_of_text|>) and ends with its
    end token and the blanks behind it. UserError if the template prints none: the first end token
    is the user's then, and the question would be lost.
    """
    chats = []
    for content in ("a", "b"):
        chats.append(tokenizer.encode_chat([{"role": "user", "content": content}]))
    shared = chats[0][: _common_prefix(*chats)]
    ends = [place for place, token in enumerate(shared) if token in tokenizer.stop_ids]
    if not ends:
        raise UserError(
            "the chat template prints no system header, so there is none to train without"
        )
    end = ends[0] + 1
    while end < len(shared) and _is_blank(tokenizer, shared[end]):
        end += 1
    beginning = _beginning_tokens(tokenizer)
    begins_so = shared[: len(beginning)] == beginning
    return (len(beginning) if begins_so else 0), end


def _beginning_tokens(tokenizer: ChatTokenizer) -> list[int]:
    """The special tokens that the tokenizer puts before a text."""
    bare, framed = tokenizer.encode("a"), tokenizer.encode_framed("a")
    for start in range(len(framed)):
        if framed[start : start + len(bare)] == bare:
            return framed[:start]
    return []


def _is_blank(tokenizer: ChatTokenizer, token: int) -> bool:
    text = tokenizer.decode([token], skip_special_tokens=False)
    return text.isspace()


def _common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    shorter = min(len(left), len(right))
    return next((i for i in range(shorter) if left[i] != right[i]), shorter)


def describe_example(tokenizer: ChatTokenizer, example: Example) -> str:
    """The decoded example with each stretch under a line that says whether it is trained on."""
    supervised = sum(label != IGNORE_INDEX for label in example.labels)
    lines = [f"{len(example.input_ids)} tokens, {supervised} of them trained on"]
    pairs = zip(example.input_ids, example.labels, strict=True)
    for trained, stretch in groupby(pairs, key=lambda pair: pair[1] != IGNORE_INDEX):
        ids = [token for token, _ in stretch]
        title = "trained on" if trained else "context only"
        lines.append(f"----- {title} ({len(ids)} tokens) -----")
        lines.append(tokenizer.decode(ids, skip_special_tokens=False))
    return "\n".join([*lines, "----- end -----"])


def question_key(question: str) -> str:
    """12 hexadecimal digits that stand for a question, whatever file and place it has."""
    return hashlib.sha256(normalise_question(question).encode()).hexdigest()[:12]


def choose_held_out(
    questions: Sequence[str], count: int, earlier: Collection[str] = ()
) -> set[str]:
    """The keys of the questions that are validated on and never trained on or shown as a shot.

    The choice depends on the questions alone: `count` different ones, in the order of their hashes.
    `earlier` are the keys that an earlier training held out whose adapter is trained on: of those
    that occur here all are held out and no others, since those may have been trained on. UserError
    if `count` leaves nothing to train on.
    """
    keys = [question_key(question) for question in questions]
    distinct = list(dict.fromkeys(keys))
    if not 0 <= count < len(distinct):
        raise UserError(
            f"{count} validation examples asked for, but there are only {len(distinct)} different "
            "questions in all"
        )
    again = set(distinct) & set(earlier)
    if again and count:
        return again
    candidates = distinct[FIRST_HELD_OUT:]
    if len(candidates) < count:
        candidates = distinct[-count:]
    return set(sorted(candidates)[:count])


def epoch_batches(
    lengths: Sequence[int], batch_size: int, seed: int, epoch: int
) -> list[list[int]]:
    """Batches of example indices for one epoch, in an order that depends on (seed, epoch) alone.

    Each index occurs once. A batch holds examples of like length, so that steps cost alike: the
    shuffled examples are sorted within large chunks, cut into batches, and the batches are
    shuffled. One batch is short if the division leaves a rest.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}: expected at least 1")
    generator = random.Random(f"{seed} {epoch}")
    order = list(range(len(lengths)))
    generator.shuffle(order)
    batches = []
    chunk_size = batch_size * BATCHES_PER_CHUNK
    for start in range(0, len(order), chunk_size):
        chunk = sorted(order[start : start + chunk_size], key=lengths.__getitem__)
        for first in range(0, len(chunk), batch_size):
            batches.append(chunk[first : first + batch_size])
    generator.shuffle(batches)
    return batches
