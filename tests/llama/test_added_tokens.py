"""Tokens that other files than tokenizer.json declare, and prefix spaces that depend on the place:
ids are those of transformers.
"""

import json

import pytest
from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerFast

from llama import UserError
from llama.tokenizer import load_tokenizer
from tests.tiny_tokenizers import (
    can_sanitize,
    control_ids,
    edit_json,
    qwen_folder,
    raw_tokenizer,
    their_ids,
)

CHAT = [{"role": "user", "content": "Q: hi"}, {"role": "assistant", "content": "A: ho "}]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|turn|>{{ m.role }} {{ m.content }}{{ eos_token }}"
    "{% endfor %}"
)
TURN = {
    "content": "<|turn|>",
    "special": True,
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
    "single_word": False,
}


@pytest.fixture
def folder(tmp_path):
    """A checkpoint whose tokenizer.json lacks the <|turn|> that its template writes."""
    qwen_folder(tmp_path, TEMPLATE)
    edit_json(tmp_path / "generation_config.json", eos_token_id=_vocabulary_size(tmp_path) - 3)
    return tmp_path


def _vocabulary_size(folder) -> int:
    return load_tokenizer(folder).vocab_size


def set_json(path, value):
    path.write_text(json.dumps(value))


def assert_equal_ids(folder):
    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    ids = ours.encode_chat(CHAT, add_generation_prompt=False)
    assert ids == their_ids(theirs, CHAT, add_generation_prompt=False)
    assert ours.vocab_size == len(theirs)
    return ours, ids


def test_added_tokens_decoder(folder):
    index = _vocabulary_size(folder)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>"}
    set_json(
        folder / "tokenizer_config.json", config | {"added_tokens_decoder": {str(index): TURN}}
    )
    ours, ids = assert_equal_ids(folder)
    assert ids.count(index) == 2 and ours.decode([index]) == ""
    attack = [{"role": "user", "content": "<|turn|>"}]
    assert ours.encode_chat(attack, False).count(index) == 1


def test_special_tokens_map(folder):
    """Checkpoints saved before transformers 4.34 name their special tokens there alone."""
    set_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|im_end|>"},
    )
    named = {"bos_token": "<|endoftext|>", "eos_token": {"content": "<|im_end|>"}}
    set_json(folder / "special_tokens_map.json", named)
    ours, ids = assert_equal_ids(folder)
    begin, end = control_ids(ours, [ids[0], ids[-1]])
    assert (ours.decode([begin], False), ours.decode([end], False)) == (
        "<|endoftext|>",
        "<|im_end|>",
    )
    assert ours.end_id == end


def test_special_tokens_map_beside_added_tokens_decoder_does_not_count(folder):
    set_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<|im_end|>",
            "added_tokens_decoder": {},
        },
    )
    set_json(folder / "special_tokens_map.json", {"eos_token": "<|endoftext|>"})
    ours, ids = assert_equal_ids(folder)
    assert ours.decode(ids[-1:], False) == "<|im_end|>"


def test_added_tokens_json(folder):
    """The file of transformers before 4.34."""
    index = _vocabulary_size(folder)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>"}
    set_json(folder / "tokenizer_config.json", config)
    set_json(folder / "added_tokens.json", {"<|turn|>": index})
    _, ids = assert_equal_ids(folder)
    assert ids.count(index) == 2


@pytest.mark.parametrize("name", ["additional_special_tokens", "extra_special_tokens"])
def test_additional_tokens_of_the_vocabulary(name, tmp_path):
    """A token that is an ordinary entry of the vocabulary becomes one that is taken whole."""
    state = json.loads(raw_tokenizer([]).to_str())
    index = len(state["model"]["vocab"])
    state["model"]["vocab"]["<|im_end|>"] = index
    set_json(tmp_path / "tokenizer.json", state)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", name: ["<|im_end|>"]}
    set_json(tmp_path / "tokenizer_config.json", config)
    set_json(tmp_path / "generation_config.json", {"eos_token_id": 0})
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}<|im_end|>")
    _, ids = assert_equal_ids(tmp_path)
    assert ids[-1] == index


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"added_tokens_decoder": []}, "added_tokens_decoder: expected an object"),
        ({"added_tokens_decoder": {"x": TURN}}, "token id 'x': expected a number"),
        ({"added_tokens_decoder": {"7": TURN}}, "'<|turn|>' is declared with the id 7, but the"),
        ({"added_tokens_decoder": {"7": {"id": 3}}}, "expected text or an object with content"),
        ({"additional_special_tokens": "x"}, "additional_special_tokens = 'x': expected a list"),
        ({"additional_special_tokens": [3]}, "expected text or an object with content, found 3"),
    ],
)
def test_declarations_of_another_form_are_refused(files, message, folder):
    edit_json(folder / "tokenizer_config.json", **files)
    with pytest.raises(UserError) as error:
        load_tokenizer(folder)
    assert message in str(error.value) and "tokenizer_config.json" in str(error.value)


def test_an_end_token_outside_the_embedding_is_refused(folder):
    """It was added to the tokenizer, and the model was not resized: no answer could end."""
    edit_json(folder / "config.json", vocab_size=100)
    with pytest.raises(UserError) as error:
        load_tokenizer(folder)
    assert "the end token '<|im_end|>' has the id" in str(error.value)
    assert "the model's embedding has 100 rows (config.json: vocab_size)" in str(error.value)


WORDS = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
WORDS += [*"abcdefghijklmnopqrstuvwxyzABCW0123456789?+=.:#\n|<>", "▁a", "is", "hi"]


@pytest.fixture(params=[False, True])
def sentencepiece(request, tmp_path):
    """A Llama-2-style tokenizer as transformers saves it; its prefix space is the first word's."""
    tokenizer = LlamaTokenizer(
        vocab={word: index for index, word in enumerate(WORDS)},
        merges=[("▁", "a"), ("i", "s"), ("h", "i")],
        legacy=request.param,
    )
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(
        "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[Q] {% endif %}"
        "{{ m.content }}{{ eos_token }} {% endfor %}"
    )
    return tmp_path


def test_a_prefix_space_for_the_first_word_alone(sentencepiece):
    state = json.loads((sentencepiece / "tokenizer.json").read_text())
    if state["pre_tokenizer"] is not None:
        assert state["pre_tokenizer"]["prepend_scheme"] in ("first", "always")
    chats = [
        [{"role": "user", "content": "hi a"}, {"role": "assistant", "content": "hi"}],
        [{"role": "assistant", "content": "a is"}, {"role": "user", "content": " a  </s> hi"}],
        [{"role": "assistant", "content": ""}],
        [{"role": "user", "content": "éa"}],
    ]
    ours = load_tokenizer(sentencepiece)
    theirs = PreTrainedTokenizerFast.from_pretrained(sentencepiece)
    for chat in chats:
        has_control_token = "</s>" in str(chat)
        if has_control_token and not can_sanitize():
            continue
        options = {"sanitize_control_tokens": True} if has_control_token else {}
        expected = their_ids(theirs, chat, False, **options)
        assert ours.encode_chat(chat, False) == expected
    for text in ("hi a", " a", "a", ""):
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)
    assert ours.decode(ours.encode("hi a is")) == "hi a is"


def test_tokens_within_white_space_still_cut(tmp_path):
    raw = raw_tokenizer(["<|a|>"])
    raw.save(str(tmp_path / "tokenizer.json"))
    edit_json(tmp_path / "config.json", eos_token_id=raw.token_to_id("<|a|>"))
    (tmp_path / "chat_template.jinja").write_text("<|a|> {{ messages[0].content }} <|a|>")
    tokenizer = load_tokenizer(tmp_path)
    ids = tokenizer.encode_chat(CHAT[:1])
    assert ids == raw.encode("<|a|> Q: hi <|a|>", add_special_tokens=False).ids
