"""Checkpoints and adapters from strangers: an answer or a refusal in one line, within bounds."""

import json
import shutil
from pathlib import Path

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from llama import chat_template, generate, load_model, load_tokenizer
from lora import LoRAConfig, load_adapter, save_adapter
from lora import adapter as adapter_module
from tests.fuzz.bounds import cases, replaced, within_bounds
from tests.fuzz.edits import as_text, edit_bytes, edit_json, edit_text
from tests.tiny import save_transformers_model, tiny_transformers_model, with_random_lora

pytestmark = pytest.mark.slow
DATA = st.data()
CONFIG = "adapter_config.json"
CHAT = [{"role": "user", "content": "Is 2 < 3? <|im_end|>"}, {"role": "assistant", "content": "É"}]
FAMILIES = ("llama3-scaled", "qwen2", "qwen3", "mistral", "smollm3")
TEMPLATE_PIECES = (
    "{% for x in range(10**9) %}a{% endfor %}",
    "{{ 9**99999999 }}",
    "{{ 'a' * 10**10 }}",
    "{% set x = messages %}",
    "{{ messages.__class__.__mro__ }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% include 'x' %}",
    "{{ raise_exception('no\x1b[31m\n') }}",
    "{% if",
    "%}",
    "{{",
    "}}",
    "{% endfor %}",
    "{{ messages[9].content }}",
    "{{ 1 / 0 }}",
    "\x00\x1b]0;title\x07",
    "{{ strftime_now('%d' * 99) }}",
    "{{ messages | tojson }}",
    "<|im_end|>",
    "{{ undefined_name.x }}",
    "{{ (1,) * 10**9 }}",
    *(
        "{{ messages[0].role }}",
        "{# a remark #}",
        "Hello",
        "\n",
        "{{- bos_token }}",
        "{%- set y = 1 %}",
    ),
)


@pytest.fixture
def folder(chat_checkpoint, tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(chat_template, "MAX_SECONDS", 1.0)
    return shutil.copytree(chat_checkpoint, tmp_path / "model")


def load_and_answer(folder: Path) -> None:
    model = load_model(folder)
    generate(model, [[1, 2, 3], [4]], max_new_tokens=2)


def read_and_write_chat(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    ids = tokenizer.encode_chat(CHAT)
    tokenizer.decode(ids)
    tokenizer.decode(tokenizer.encode("plain <|im_end|> text"), skip_special_tokens=False)
    assert all(type(i) is int for i in [*ids, *tokenizer.stop_ids])


@pytest.fixture(scope="module")
def families(tmp_path_factory) -> dict[str, Path]:
    made = {}
    for variant in FAMILIES:
        model = tiny_transformers_model(variant)
        made[variant] = save_transformers_model(model, tmp_path_factory.mktemp(variant))
    return made


@cases(40)
@hypothesis.given(DATA, st.sampled_from(FAMILIES))
def test_configurations(families, data, variant):
    path = families[variant] / "config.json"
    document = json.loads(path.read_text())
    text = as_text(data.draw, edit_json(data.draw, document))
    with replaced(path, text), within_bounds("configuration"):
        load_and_answer(families[variant])


@cases(50)
@hypothesis.given(DATA, st.sampled_from(["tokenizer.json", "tokenizer_config.json"]))
def test_tokenizers(folder, data, name):
    document = json.loads((folder / name).read_text())
    text = as_text(data.draw, edit_json(data.draw, document))
    with replaced(folder / name, text), within_bounds("tokenizer"):
        read_and_write_chat(folder)


SIDE_FILES = {
    "special_tokens_map.json": {"eos_token": "<|im_end|>", "bos_token": {"content": "<|x|>"}},
    "generation_config.json": {"eos_token_id": [1, 2], "bos_token_id": 0, "temperature": 0.6},
    "tokenizer_config.json": {
        "eos_token": {"content": "<|im_end|>", "lstrip": False},
        "added_tokens_decoder": {"2": {"content": "<|im_end|>", "special": True}},
        "chat_template": [{"name": "default", "template": "{{ messages[0].content }}"}],
        "tokenizer_class": "PreTrainedTokenizerFast",
    },
}


@cases(30)
@hypothesis.given(DATA, st.sampled_from(sorted(SIDE_FILES)))
def test_files_beside_the_tokenizer(folder, data, name):
    path = folder / name
    if not path.exists():
        path.write_text("{}")
    text = as_text(data.draw, edit_json(data.draw, SIDE_FILES[name]))
    with replaced(path, text), within_bounds("files beside the tokenizer"):
        read_and_write_chat(folder)


@cases(30)
@hypothesis.given(DATA)
def test_chat_templates(folder, data):
    path = folder / "chat_template.jinja"
    text = edit_text(data.draw, path.read_text(), TEMPLATE_PIECES)
    with replaced(path, text), within_bounds("chat template"):
        read_and_write_chat(folder)


@cases(35)
@hypothesis.given(DATA, st.booleans())
def test_safetensors(folder, data, knows_json):
    path = folder / "model.safetensors"
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    if knows_json:
        header = as_text(data.draw, edit_json(data.draw, json.loads(content[8 : 8 + length])))
        raw = header.encode("utf-8", "surrogatepass")
        edited = len(raw).to_bytes(8, "little") + raw + content[8 + length :]
    else:
        edited = edit_bytes(
            data.draw, content, until=data.draw(st.sampled_from([8 + length, None]))
        )
    with replaced(path, edited), within_bounds("safetensors"):
        load_and_answer(folder)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory) -> Path:
    model = tiny_transformers_model("qwen3")
    return save_transformers_model(model, tmp_path_factory.mktemp("sharded"), shards=True)


@cases(15)
@hypothesis.given(DATA)
def test_indices_of_shards(sharded, data):
    path = sharded / "model.safetensors.index.json"
    text = as_text(data.draw, edit_json(data.draw, json.loads(path.read_text())))
    with replaced(path, text), within_bounds("index of shards"):
        load_and_answer(sharded)


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory) -> Path:
    pytest.importorskip("gguf", reason="the extra `gguf` is not installed")
    from tests.tiny_gguf import save_gguf

    model = tiny_transformers_model("llama3-scaled", vocab_size=300)
    return save_gguf(model, tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@cases(30)
@hypothesis.given(DATA)
def test_gguf_files(gguf_file, data):
    content = gguf_file.read_bytes()
    edited = edit_bytes(data.draw, content, until=data.draw(st.sampled_from([9000, None])))
    with replaced(gguf_file, edited), within_bounds("GGUF"):
        load_and_answer(gguf_file)
        read_and_write_chat(gguf_file)


@pytest.fixture(scope="module")
def adapter(chat_checkpoint, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    model = with_random_lora(load_model(chat_checkpoint), LoRAConfig(rank=2))
    save_adapter(model, folder)
    return folder


PATTERNS = ["(a+)+$", ".*(q|v)_proj", "[", "(?P<x>", ".*" * 400 + "x", "all-linear", "(.*)*(.*)*Z"]


@cases(40)
@hypothesis.given(DATA, st.sampled_from(["config", "pattern", "header", "bytes"]))
def test_adapters(adapter, chat_checkpoint, monkeypatch, data, kind):
    monkeypatch.setattr(adapter_module, "MATCHING_SECONDS", 1)
    path = adapter / ("adapter_model.safetensors" if kind in ("header", "bytes") else CONFIG)
    content = path.read_bytes()
    if kind == "config":
        edited = as_text(data.draw, edit_json(data.draw, json.loads(content))).encode(
            "utf-8", "surrogatepass"
        )
    elif kind == "pattern":
        raw = json.loads(content) | {"target_modules": data.draw(st.sampled_from(PATTERNS))}
        edited = json.dumps(raw).encode()
    else:
        length = int.from_bytes(content[:8], "little")
        edited = edit_bytes(data.draw, content, until=8 + length if kind == "header" else None)
    with replaced(path, edited), within_bounds("adapter"):
        model = load_model(chat_checkpoint)
        load_adapter(model, adapter)
        with torch.inference_mode():
            generate(model, [[1, 2, 3]], max_new_tokens=1)
