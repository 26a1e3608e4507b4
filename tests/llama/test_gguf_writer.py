"""GGUF files that are written here hold what llama.cpp's converter would write."""

import json

import numpy as np
import pytest
import torch

from llama import UserError, load_model, load_tokenizer
from llama.config import ModelConfig
from llama.gguf import read_header, read_tensor
from tests.tiny import VARIANTS, save_chat_checkpoint, tiny_transformers_model

gguf = pytest.importorskip("gguf", reason="the extra `gguf` is not installed")
from llama.gguf_writer import check_writable, write_gguf  # noqa: E402 - needs gguf
from tests.tiny_gguf import save_gguf  # noqa: E402

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
ARCHITECTURES |= {"smollm3": "smollm3"}


def rewritten(source, folder, kind="F32"):
    """The model of `source` written by our code."""
    path = folder / "ours.gguf"
    write_gguf(load_model(source), source, path, kind, name="tiny")
    return path


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_every_tensor_and_field_is_the_converters(variant, tmp_path):
    """Guards names, shapes, the order of q and k, rotary divisors and hyperparameters."""
    changes = {"vocab_size": 300}
    if variant == "llama3-scaled":
        changes["head_dim"] = 16
    if variant == "smollm3":
        changes |= {"no_rope_layer_interval": 4, "num_hidden_layers": 5}
    theirs = tiny_transformers_model(variant, **changes)
    architecture = ARCHITECTURES[theirs.config.model_type]
    source = save_gguf(theirs, tmp_path / "theirs.gguf", architecture)
    expected, found = read_header(source), read_header(rewritten(source, tmp_path))
    assert set(found.tensors) == set(expected.tensors)
    for name in expected.tensors:
        before, after = read_tensor(expected, name), read_tensor(found, name)
        assert np.allclose(before, after, rtol=2e-7, atol=0), name
    # Read as a checkpoint, the rows that fill up the embedding are ordinary tokens.
    types = expected.metadata.pop("tokenizer.ggml.token_type")
    assert found.metadata["tokenizer.ggml.token_type"] == [1 if t == 5 else t for t in types]
    for name, value in expected.metadata.items():
        assert found.metadata[name] == value, name
    added = set(found.metadata) - set(expected.metadata)
    assert added <= {
        "tokenizer.ggml.token_type",
        "general.name",
        "general.file_type",
        f"{architecture}.vocab_size",
        "tokenizer.ggml.add_bos_token",
        "tokenizer.ggml.add_eos_token",
    }


@pytest.mark.parametrize(("kind", "tolerance"), [("F16", 1e-3), ("BF16", 8e-3), ("Q8_0", 1e-2)])
def test_matrices_are_rounded_and_vectors_stay(tmp_path, kind, tolerance):
    theirs = tiny_transformers_model("qwen2", vocab_size=300, hidden_size=64, intermediate_size=72)
    source = save_gguf(theirs, tmp_path / "theirs.gguf", "qwen2")
    path = rewritten(source, tmp_path, kind)
    before, after = read_header(source), read_header(path)
    for name in before.tensors:
        expected, found = read_tensor(before, name), read_tensor(after, name)
        error = np.abs(found - expected).max() / np.abs(expected).max()
        assert error < tolerance and (error > 0) == (expected.ndim == 2), name
    types = gguf.GGMLQuantizationType
    assert after.tensors["blk.0.attn_q.weight"].ggml_type == types[kind]
    assert after.tensors["blk.0.attn_q.bias"].ggml_type == types.F32
    # Rows of 72 are no whole blocks of 32.
    expected_type = types.F16 if kind == "Q8_0" else types[kind]
    assert after.tensors["blk.0.ffn_down.weight"].ggml_type == expected_type
    assert path.stat().st_size < 0.7 * source.stat().st_size


@pytest.mark.parametrize("pre_tokenizer", ["smollm", "qwen2", "llama-bpe"])
def test_tokenizers_keep_their_tokens(tmp_path, pre_tokenizer):
    theirs = tiny_transformers_model("llama", vocab_size=300)
    source = save_gguf(theirs, tmp_path / "theirs.gguf", pre_tokenizer=pre_tokenizer)
    before, after = load_tokenizer(source), load_tokenizer(rewritten(source, tmp_path))
    chat = [{"role": "user", "content": "ab 1234 abab\n\n Zoë <|im_end|>"}]
    assert after.encode_chat(chat) == before.encode_chat(chat)
    assert after.stop_ids == before.stop_ids and after.end_id == before.end_id


def test_several_end_tokens_keep_their_names(tmp_path):
    ends = {"tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.eot_token_id": 0}
    theirs = tiny_transformers_model("llama", vocab_size=300)
    source = save_gguf(theirs, tmp_path / "theirs.gguf", metadata=ends)
    found = read_header(rewritten(source, tmp_path)).metadata
    assert {name: found[name] for name in ends} == ends
    assert load_tokenizer(tmp_path / "ours.gguf").stop_ids == {0, 2}


def test_a_tokenizer_without_a_name_in_gguf_is_refused(tmp_path):
    folder = save_chat_checkpoint(tmp_path / "tiny")
    with pytest.raises(UserError, match="splits text in a way that no GGUF name known here"):
        check_writable(ModelConfig.load(folder), folder)


def test_unrotated_layers_of_another_pattern_are_refused(tmp_path):
    theirs = tiny_transformers_model("smollm3", vocab_size=300, no_rope_layers=[1, 0, 1])
    folder = save_chat_checkpoint(tmp_path / "tiny")
    config = ModelConfig.from_dict(json.loads(theirs.config.to_json_string()))
    with pytest.raises(UserError, match="leaves out every fourth layer and no others"):
        check_writable(config, folder)


def test_logits_are_the_same(tmp_path):
    theirs = tiny_transformers_model("llama3-scaled", vocab_size=300, head_dim=16)
    source = save_gguf(theirs, tmp_path / "theirs.gguf")
    ours = load_model(rewritten(source, tmp_path))
    input_ids = torch.arange(3, 150)[None]
    with torch.inference_mode():
        difference = (ours.logits(ours(input_ids)) - theirs(input_ids).logits).abs().max()
    assert difference < 1e-4
