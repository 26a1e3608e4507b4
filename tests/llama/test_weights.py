"""Loading is complete or fails with one error that lists everything; nothing is read outside the
folder.
"""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from llama import load_model, save_model
from tests.tiny import save_transformers_model, tiny_transformers_model


@pytest.fixture
def checkpoint(tmp_path):
    return save_transformers_model(tiny_transformers_model("llama"), tmp_path / "model")


def change_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_loaded_model_is_frozen_and_in_eval_mode(checkpoint):
    model = load_model(str(checkpoint))
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not any(parameter.is_meta for parameter in model.parameters())


def test_save_and_load_give_the_same_weights(checkpoint, tmp_path):
    model = load_model(checkpoint)
    save_model(model, tmp_path / "copy")
    copy = load_model(tmp_path / "copy")
    assert copy.config == model.config
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), copy.parameters(), strict=True)
    )


def test_tied_head_shares_one_matrix_even_if_stored_twice(tmp_path):
    folder = save_transformers_model(tiny_transformers_model("qwen3"), tmp_path)
    embedding = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    change_tensors(folder, lambda tensors: tensors.update({"lm_head.weight": embedding.clone()}))
    model = load_model(folder)
    assert model.lm_head.weight is model.model["embed_tokens"].weight


def test_every_misfit_is_in_one_error(checkpoint):
    def spoil(tensors):
        tensors["model.extra.weight"] = torch.zeros(2)
        del tensors["model.layers.1.mlp.up_proj.weight"]
        tensors["model.norm.weight"] = torch.ones(7)

    change_tensors(checkpoint, spoil)
    with pytest.raises(ValueError) as error:
        load_model(checkpoint)
    message = str(error.value)
    assert "unexpected model.extra.weight [2]" in message
    assert "missing model.layers.1.mlp.up_proj.weight" in message
    assert "model.norm.weight is [7], config.json asks for [48]" in message
    assert "missing model.norm.weight" not in message, "a misshapen tensor is reported once"


def test_untied_head_may_not_be_missing(checkpoint):
    change_tensors(checkpoint, lambda tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(ValueError, match=r"missing lm_head\.weight"):
        load_model(checkpoint)


def test_truncated_file_is_named(checkpoint):
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors: not a readable safetensors file"):
        load_model(checkpoint)


def test_absurd_sizes_are_named_before_anything_is_built(checkpoint):
    path = checkpoint / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vocab_size": 10**30}))
    with pytest.raises(ValueError, match=r"config\.json: vocab_size = 10{30}: expected"):
        load_model(checkpoint)


def test_folder_without_weights(checkpoint):
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="no weights this project reads"):
        load_model(checkpoint)


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "..", "weights.bin"]
)
def test_shard_names_stay_in_the_folder(name, checkpoint):
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"model.norm.weight": name}})
    )
    with pytest.raises(ValueError, match=r"is no \.safetensors file in this folder"):
        load_model(checkpoint)


def test_missing_shard_is_named(tmp_path):
    folder = save_transformers_model(tiny_transformers_model("llama"), tmp_path, shards=True)
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ValueError, match=f"{shard.name}: .* names this shard"):
        load_model(folder)


@pytest.mark.parametrize("index", [{}, {"weight_map": {}}, {"weight_map": []}])
def test_index_without_map(index, checkpoint):
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="no weight_map"):
        load_model(checkpoint)
