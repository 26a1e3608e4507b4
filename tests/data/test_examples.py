import pytest

from common.errors import UserError
from data.examples import (
    BATCHES_PER_CHUNK,
    FIRST_HELD_OUT,
    build_example,
    choose_held_out,
    describe_example,
    epoch_batches,
    question_key,
)

START, END, TEXT_END = 1, 2, 3
MESSAGES = [
    {"role": "user", "content": "Q: one"},
    {"role": "assistant", "content": "A: shot"},
    {"role": "user", "content": "Q: two"},
    {"role": "assistant", "content": "A: answer"},
]


class CharacterTokenizer:
    """ChatML with one token per character and, as in SmolLM2's and Qwen's templates, a newline
    after each turn.
    """

    stop_ids = frozenset({END, TEXT_END})

    def encode(self, text):
        return list(map(ord, text))

    def encode_framed(self, text):
        return self.encode(text)

    def encode_chat(self, messages, add_generation_prompt=True):
        ids = []
        for message in messages:
            ids += [START, *map(ord, f"{message['role']}\n{message['content']}"), END, ord("\n")]
        return [*ids, START, *map(ord, "assistant\n")] if add_generation_prompt else ids

    def decode(self, ids, skip_special_tokens=True):
        special = {START: "<start>", END: "<end>", TEXT_END: "<text-end>"}
        return "".join(
            ("" if skip_special_tokens else special[i]) if i in special else chr(i) for i in ids
        )


class HeaderTokenizer(CharacterTokenizer):
    """The same with a system turn of its own, as SmolLM2's template has it."""

    HEADER = (START, *map(ord, "system\nYou help."), END)

    def encode_chat(self, messages, add_generation_prompt=True):
        return [*self.HEADER, ord("\n"), *super().encode_chat(messages, add_generation_prompt)]


def supervised(example):
    return [label for label in example.labels if label != -100]


def test_answer_loss_covers_the_answer_and_its_end_token_alone():
    tokenizer = CharacterTokenizer()
    example = build_example(tokenizer, MESSAGES)
    prompt = tokenizer.encode_chat(MESSAGES[:-1])
    assert example.input_ids == [
        *prompt,
        *map(ord, "A: answer"),
        END,
    ]  # the template's newline is dropped
    assert example.labels == [-100] * len(prompt) + [*map(ord, "A: answer"), END]


class LlamaTokenizer(HeaderTokenizer):
    """A template like Llama 3's: a beginning token, the header, and no newlines between turns."""

    BEGIN = 4

    def encode_framed(self, text):
        return [self.BEGIN, *self.encode(text)]

    def encode_chat(self, messages, add_generation_prompt=True):
        ids = super().encode_chat(messages, add_generation_prompt)
        after_end = [place for place in range(1, len(ids)) if ids[place - 1] == END]
        return [self.BEGIN, *(token for place, token in enumerate(ids) if place not in after_end)]


@pytest.mark.parametrize("loss", ["answer", "all"])
def test_without_the_system_header_no_newline_is_left_in_front(loss):
    tokenizer = HeaderTokenizer()
    whole = build_example(tokenizer, MESSAGES, loss)
    cut = build_example(tokenizer, MESSAGES, loss, system_header=False)
    text = tokenizer.decode(cut.input_ids, skip_special_tokens=False)
    assert text.startswith("<start>user\nQ: one<end>")
    header = len(HeaderTokenizer.HEADER) + 1
    assert whole.input_ids == [*HeaderTokenizer.HEADER, ord("\n"), *cut.input_ids]
    assert whole.labels[header:] == cut.labels


@pytest.mark.parametrize("loss", ["answer", "all"])
def test_without_the_system_header_the_beginning_token_stays(loss):
    """The original cut the header out of the text; tokenising the rest begins it anew."""
    tokenizer = LlamaTokenizer()
    whole = build_example(tokenizer, MESSAGES, loss)
    cut = build_example(tokenizer, MESSAGES, loss, system_header=False)
    assert whole.input_ids[: 1 + len(HeaderTokenizer.HEADER)] == [4, *HeaderTokenizer.HEADER]
    assert cut.input_ids == [4, *whole.input_ids[1 + len(HeaderTokenizer.HEADER) :]]
    assert cut.labels == [whole.labels[0], *whole.labels[1 + len(HeaderTokenizer.HEADER) :]]
    assert len(cut.labels) == len(cut.input_ids)


def test_a_template_without_a_system_header_cannot_lose_it():
    with pytest.raises(ValueError, match="prints no system header"):
        build_example(CharacterTokenizer(), MESSAGES, system_header=False)


def test_the_last_end_token_ends_the_answer():
    class Eager(CharacterTokenizer):
        stop_ids = frozenset({END, ord("w")})  # a stop token that also occurs inside the answer

    assert supervised(build_example(Eager(), MESSAGES)) == [*map(ord, "A: answer"), END]


def test_of_two_end_tokens_the_first_is_trained_on():
    """The model stops at the first; a second one would teach it to speak after its end."""

    class Twice(CharacterTokenizer):
        def encode_chat(self, messages, add_generation_prompt=True):
            ids = super().encode_chat(messages, add_generation_prompt)
            return ids if add_generation_prompt else [*ids, TEXT_END]

    example = build_example(Twice(), MESSAGES)
    assert supervised(example) == [*map(ord, "A: answer"), END]
    assert example.input_ids[-1] == END


def test_all_loss_covers_every_token():
    tokenizer = CharacterTokenizer()
    example = build_example(tokenizer, MESSAGES, loss="all")
    assert (
        example.input_ids
        == example.labels
        == tokenizer.encode_chat(MESSAGES, add_generation_prompt=False)
    )


def test_a_template_that_rewrites_the_prompt_is_refused():
    class Rewriting(CharacterTokenizer):
        def encode_chat(self, messages, add_generation_prompt=True):
            ids = super().encode_chat(messages, add_generation_prompt)
            return [*ids, *map(ord, "<think>")] if add_generation_prompt else ids

    with pytest.raises(ValueError, match=r"they share 59 of 66 tokens\).*'all'"):
        build_example(Rewriting(), MESSAGES)
    build_example(Rewriting(), MESSAGES, loss="all")


def test_a_template_that_does_not_end_the_answer_is_refused():
    class Endless(CharacterTokenizer):
        stop_ids = frozenset({TEXT_END})

    with pytest.raises(
        ValueError, match=r"none of the checkpoint's end tokens \[3\].*last token is 10"
    ):
        build_example(Endless(), MESSAGES)


def test_an_unknown_loss_is_refused():
    with pytest.raises(ValueError, match="unknown loss 'some': expected one of answer, all"):
        build_example(CharacterTokenizer(), MESSAGES, loss="some")


def test_the_description_shows_what_is_trained():
    tokenizer = CharacterTokenizer()
    text = describe_example(tokenizer, build_example(tokenizer, MESSAGES[2:]))
    assert text == (
        "35 tokens, 10 of them trained on\n"
        "----- context only (25 tokens) -----\n"
        "<start>user\nQ: two<end>\n<start>assistant\n\n"
        "----- trained on (10 tokens) -----\n"
        "A: answer<end>\n"
        "----- end -----"
    )


QUESTIONS = [f"question {i}?" for i in range(60)]


def test_held_out_questions_depend_on_the_data_alone():
    held_out = choose_held_out(QUESTIONS, 5)
    assert len(held_out) == 5 and held_out < set(map(question_key, QUESTIONS))
    other_order = [*QUESTIONS[:FIRST_HELD_OUT], *reversed(QUESTIONS[FIRST_HELD_OUT:])]
    assert choose_held_out(other_order, 5) == held_out
    assert choose_held_out(QUESTIONS, 6) > held_out
    assert choose_held_out(QUESTIONS, 0) == set()
    with pytest.raises(UserError, match=r"60 validation examples asked for, .* only 60 different"):
        choose_held_out(QUESTIONS, 60)


def test_the_first_questions_are_left_to_fixed_shots():
    first = set(map(question_key, QUESTIONS[:FIRST_HELD_OUT]))
    assert not choose_held_out(QUESTIONS, 52) & first
    assert choose_held_out(QUESTIONS, 53) & first, "unless nothing else is left"


def test_copies_of_a_question_are_held_out_together():
    copies = [f"  question   {i}?" for i in range(60)]
    assert choose_held_out([*QUESTIONS, *copies], 5) == choose_held_out(QUESTIONS, 5)


def test_what_an_earlier_training_held_out_is_held_out_again_and_nothing_else():
    earlier = choose_held_out(QUESTIONS, 20)
    assert choose_held_out(QUESTIONS[:40], 3, earlier) == (
        earlier & set(map(question_key, QUESTIONS[:40]))
    )
    others = [f"other {i}?" for i in range(20)]
    assert len(choose_held_out(others, 3, earlier)) == 3, "other data: nothing to take over"
    assert choose_held_out(QUESTIONS, 0, earlier) == set(), "asked for"


LENGTHS = [(37 * i) % 101 + 1 for i in range(1000)]


@pytest.mark.parametrize(("size", "batch_size"), [(1000, 7), (1000, 8), (5, 8), (1, 1), (0, 4)])
def test_an_epoch_holds_every_example_once(size, batch_size):
    batches = epoch_batches(LENGTHS[:size], batch_size, seed=0, epoch=0)
    assert sorted(i for batch in batches for i in batch) == list(range(size))
    sizes = sorted(map(len, batches), reverse=True)
    assert all(length == batch_size for length in sizes[:-1])
    assert len(batches) == -(-size // batch_size)


def test_the_order_depends_on_seed_and_epoch():
    first = epoch_batches(LENGTHS, 8, seed=0, epoch=0)
    assert first == epoch_batches(LENGTHS, 8, seed=0, epoch=0)
    assert first != epoch_batches(LENGTHS, 8, seed=0, epoch=1)
    assert first != epoch_batches(LENGTHS, 8, seed=1, epoch=0)
    members = {frozenset(batch) for batch in first}
    assert members.isdisjoint(
        frozenset(batch) for batch in epoch_batches(LENGTHS, 8, seed=0, epoch=1)
    )


def test_batches_are_of_like_length_and_not_in_its_order():
    batches = epoch_batches(LENGTHS, 8, seed=0, epoch=0)
    longest = [max(LENGTHS[i] for i in batch) for batch in batches]
    assert sum(longest) * 8 < 1.15 * sum(
        LENGTHS
    )  # tokens computed with padding; in random batches about 1.8
    chunk = longest[:BATCHES_PER_CHUNK]
    assert chunk != sorted(chunk)


def test_a_batch_size_of_zero_is_refused():
    with pytest.raises(ValueError, match="batch_size is 0"):
        epoch_batches(LENGTHS, 0, seed=0, epoch=0)
