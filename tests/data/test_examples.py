import pytest

from data.examples import (
    BATCHES_PER_CHUNK,
    build_example,
    describe_example,
    epoch_batches,
    split_validation,
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


@pytest.mark.parametrize("loss", ["answer", "all"])
def test_without_the_system_header_everything_to_its_end_token_is_cut(loss):
    tokenizer = HeaderTokenizer()
    whole = build_example(tokenizer, MESSAGES, loss)
    cut = build_example(tokenizer, MESSAGES, loss, system_header=False)
    assert tokenizer.decode(cut.input_ids, skip_special_tokens=False).startswith(
        "\n<start>user\nQ: one<end>"
    )
    assert whole.input_ids == [*HeaderTokenizer.HEADER, *cut.input_ids]
    assert whole.labels[len(HeaderTokenizer.HEADER) :] == cut.labels


def test_a_template_without_a_system_header_cannot_lose_it():
    with pytest.raises(ValueError, match="prints no system header"):
        build_example(CharacterTokenizer(), MESSAGES, system_header=False)


def test_the_last_end_token_ends_the_answer():
    class Eager(CharacterTokenizer):
        stop_ids = frozenset({END, ord("w")})  # a stop token that also occurs inside the answer

    assert supervised(build_example(Eager(), MESSAGES)) == [*map(ord, "A: answer"), END]


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


def test_validation_split():
    examples = [f"example {i}" for i in range(20)]
    training, validation = split_validation(examples, 5, seed=0)
    assert len(validation) == 5 and sorted(training + validation) == sorted(examples)
    assert training == [example for example in examples if example not in validation]
    assert split_validation(examples, 5, seed=0) == (training, validation)
    assert split_validation(examples, 5, seed=1)[1] != validation
    assert split_validation(examples, 0, seed=0) == (examples, [])
    with pytest.raises(ValueError, match=r"20 validation examples asked for, .* 20 examples"):
        split_validation(examples, 20, seed=0)


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
