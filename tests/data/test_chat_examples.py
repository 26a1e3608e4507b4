"""Chats of several turns: loss on every assistant turn and its end token, nowhere else."""

from data.examples import build_chat_examples, build_example
from tests.data.test_examples import END, MESSAGES, CharacterTokenizer, supervised


class ForgetfulTokenizer(CharacterTokenizer):
    """Drops all but the last word of earlier assistant turns, as templates drop reasoning."""

    def encode_chat(self, messages, add_generation_prompt=True):
        shortened = []
        for index, message in enumerate(messages):
            earlier = index + 1 < len(messages) or add_generation_prompt
            if earlier and message["role"] == "assistant":
                message = {**message, "content": message["content"].split()[-1]}
            shortened.append(message)
        return super().encode_chat(shortened, add_generation_prompt)


def test_every_assistant_turn_is_trained_on_in_one_example():
    tokenizer = CharacterTokenizer()
    [example] = build_chat_examples(tokenizer, MESSAGES)
    assert example.input_ids == build_example(tokenizer, MESSAGES).input_ids
    assert supervised(example) == [*map(ord, "A: shot"), END, *map(ord, "A: answer"), END]
    for token, label in zip(example.input_ids, example.labels, strict=True):
        assert label in (-100, token)


def test_a_template_that_changes_earlier_turns_gives_an_example_a_turn():
    tokenizer = ForgetfulTokenizer()
    first, second = build_chat_examples(tokenizer, MESSAGES)
    assert supervised(first) == [*map(ord, "A: shot"), END]
    assert supervised(second) == [*map(ord, "A: answer"), END]
    assert second.input_ids == build_example(tokenizer, MESSAGES).input_ids
