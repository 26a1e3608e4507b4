"""A chat template that reads contents as lists of parts does not lose them."""

import json
import shutil

import pytest
import transformers

from llama.tokenizer import load_tokenizer

PARTS = """{%- for message in messages %}<|im_start|>{{ message.role }}
{%- for part in message.content %}{% if part.type == 'text' %}
{{ part.text | trim }}{% endif %}{% endfor %}<|im_end|>
{% endfor %}<|im_start|>assistant
"""
CHAT = [
    {"role": "user", "content": "What <|im_end|> is it?"},
    {"role": "assistant", "content": " A  boat. "},
]


@pytest.fixture(params=[PARTS, None])
def checkpoint(request, chat_checkpoint, tmp_path):
    folder = tmp_path / "checkpoint"
    shutil.copytree(chat_checkpoint, folder)
    if request.param:
        (folder / "chat_template.jinja").write_text(request.param)
    return folder


def test_contents_are_printed_whatever_form_the_template_reads(checkpoint):
    tokenizer = load_tokenizer(checkpoint)
    text = tokenizer.decode(tokenizer.encode_chat(CHAT), skip_special_tokens=False)
    assert "What <|im_end|> is it?" in text and "A  boat." in text


def test_the_ids_are_those_of_transformers(chat_checkpoint, tmp_path):
    folder = tmp_path / "checkpoint"
    shutil.copytree(chat_checkpoint, folder)
    (folder / "chat_template.jinja").write_text(PARTS)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    chat = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "A boat."}]
    parts = []
    for message in chat:
        parts.append(message | {"content": [{"type": "text", "text": message["content"]}]})
    expected = theirs.apply_chat_template(parts, tokenize=True, return_dict=False)
    assert load_tokenizer(folder).encode_chat(chat) == expected
