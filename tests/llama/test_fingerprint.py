"""A fingerprint follows the content of a checkpoint, not its path, and costs a few reads."""

import json
import shutil
import struct

import pytest
from safetensors.torch import load_file, save_file

from llama import UserError, fingerprint
from llama.fingerprint import model_fingerprint
from tests.tiny import save_chat_checkpoint, save_transformers_model, tiny_transformers_model


@pytest.fixture
def checkpoint(tmp_path):
    folder = save_chat_checkpoint(tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 2}))
    return folder


def test_content_counts_and_path_does_not(checkpoint, tmp_path):
    before = model_fingerprint(checkpoint)
    assert len(before) == 12 and int(before, 16) >= 0
    assert model_fingerprint(shutil.copytree(checkpoint, tmp_path / "copy")) == before


def test_sharding_does_not_count(tmp_path):
    model = tiny_transformers_model("qwen2")
    whole = save_transformers_model(model, tmp_path / "whole")
    sharded = save_transformers_model(model, tmp_path / "sharded", shards=True)
    assert len(list(sharded.glob("*.safetensors"))) > 1
    assert model_fingerprint(whole) == model_fingerprint(sharded)


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    ],
)
def test_every_small_file_counts(name, checkpoint):
    before = model_fingerprint(checkpoint)
    with open(checkpoint / name, "a") as file:
        file.write(" ")
    edited = model_fingerprint(checkpoint)
    (checkpoint / name).unlink()
    assert len({before, edited, model_fingerprint(checkpoint)}) == 3


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.mlp.up_proj.weight"])
def test_every_tensor_counts(name, checkpoint):
    before = model_fingerprint(checkpoint)
    tensors = load_file(checkpoint / "model.safetensors")
    tensors[name] *= 1.01
    save_file(tensors, checkpoint / "model.safetensors")
    assert model_fingerprint(checkpoint) != before


def test_dtype_counts(checkpoint):
    before = model_fingerprint(checkpoint)
    tensors = load_file(checkpoint / "model.safetensors")
    halves = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    save_file(halves, checkpoint / "model.safetensors")
    assert model_fingerprint(checkpoint) != before


def save_sparse(folder, nbytes):
    """A weights file of one tensor that takes no space on disk; returns the tensor's offset."""
    header = {"w": {"dtype": "U8", "shape": [nbytes], "data_offsets": [0, nbytes]}}
    text = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + nbytes)
    return 8 + len(text)


def test_a_large_tensor_is_sampled(tmp_path, monkeypatch):
    """Its beginning, middle and end count, and no more than these is read."""
    read = []

    class CountingFile:
        def __init__(self, path, mode):
            self.file = open(path, mode)  # noqa: SIM115 - closed below
            self.seek = self.file.seek

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def read(self, size):
            read.append(size)
            return self.file.read(size)

    monkeypatch.setattr(fingerprint, "open", CountingFile, raising=False)
    nbytes = 1 << 24
    offset = save_sparse(tmp_path, nbytes)
    seen = {model_fingerprint(tmp_path)}
    assert sum(read) == 3 * 4096
    for place in (0, nbytes // 2, nbytes - 1):
        with open(tmp_path / "model.safetensors", "r+b") as file:
            file.seek(offset + place)
            file.write(b"\1")
        seen.add(model_fingerprint(tmp_path))
    assert len(seen) == 4


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: content[:-1],
        lambda content: content[:20],
        lambda content: b"",
        lambda content: b"\xff" * 8 + content[8:],
        lambda content: content[:8] + b"[" * len(content[8:]),
        lambda content: struct.pack("<Q", 2) + b"[]",
        lambda content: struct.pack("<Q", 8) + b'{"a": 1}',
        lambda content: struct.pack("<Q", 26) + b'{"a": {"data_offsets": 1}}',
    ],
)
def test_a_damaged_file_is_named(spoil, checkpoint):
    path = checkpoint / "model.safetensors"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(UserError, match=r"model\.safetensors: not a readable safetensors file"):
        model_fingerprint(checkpoint)


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(UserError, match="no weights this project reads"):
        model_fingerprint(tmp_path)
