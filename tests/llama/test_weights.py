"""Loading is complete or fails with one error that lists everything; nothing is read outside the
folder.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from llama import Decoder, ModelConfig, UserError, load_model, save_model
from tests.tiny import save_transformers_model, tiny_transformers_model

INPUT_IDS = torch.arange(40)[None]


@pytest.fixture
def checkpoint(tmp_path):
    return save_transformers_model(tiny_transformers_model("llama"), tmp_path / "model")


def change_tensors(folder, change):
    path, changed = folder / "model.safetensors", folder / "changed.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, changed, metadata={"format": "pt"})
    changed.replace(path)  # older safetensors map the file: what they have loaded is in it


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


def test_a_tied_head_that_differs_is_used_and_said(tmp_path, capsys):
    """transformers 5 unties such a head as well."""
    theirs = tiny_transformers_model("qwen3")
    folder = save_transformers_model(theirs, tmp_path / "model")
    other = torch.randn(199, 48)
    change_tensors(folder, lambda tensors: tensors.update({"lm_head.weight": other}))
    model = load_model(folder)
    assert torch.equal(model.lm_head.weight, other)
    assert not model.config.tie_word_embeddings
    message = capsys.readouterr().err
    assert f"{folder}: lm_head.weight differs from the embedding" in message
    assert "the stored head is used" in message
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    expected, actual = theirs(INPUT_IDS).logits, model.logits(model(INPUT_IDS))
    assert (actual - expected).abs().max() <= 2e-5 * expected.abs().max()
    save_model(model, tmp_path / "copy")
    assert torch.equal(load_model(tmp_path / "copy").lm_head.weight, other)
    hidden_states_only = load_model(folder, head=False)
    assert hidden_states_only.lm_head.weight is hidden_states_only.model["embed_tokens"].weight


def test_a_tied_checkpoint_may_store_the_head_alone(tmp_path, capsys):
    folder = save_transformers_model(tiny_transformers_model("qwen3"), tmp_path)
    embedding = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]

    def rename(tensors):
        tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")

    change_tensors(folder, rename)
    capsys.readouterr()
    for head in (True, False):
        model = load_model(folder, head=head)
        assert torch.equal(model.model["embed_tokens"].weight, embedding)
        assert model.lm_head.weight is model.model["embed_tokens"].weight
    assert capsys.readouterr().err == ""


def test_a_tied_head_must_fit(tmp_path):
    folder = save_transformers_model(tiny_transformers_model("qwen3"), tmp_path)
    change_tensors(folder, lambda tensors: tensors.update({"lm_head.weight": torch.zeros(3, 48)}))
    with pytest.raises(UserError, match=r"lm_head\.weight is \[3, 48\], config\.json asks for"):
        load_model(folder)


@pytest.mark.parametrize(
    ("dtype", "spelled"),
    [
        (torch.float8_e4m3fn, "F8_E4M3"),
        (torch.int8, "I8"),
        (torch.bool, "BOOL"),
        (torch.int64, "I64"),
    ],
)
def test_what_is_no_floating_point_is_refused_by_name(dtype, spelled, checkpoint):
    name = "model.layers.1.mlp.up_proj.weight"
    change_tensors(checkpoint, lambda tensors: tensors.update({name: tensors[name].to(dtype)}))
    with pytest.raises(UserError, match=rf"{name} is stored as {spelled}, only F64, F32, F16, BF"):
        load_model(checkpoint)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_floating_point_is_read(dtype, checkpoint):
    exact = load_model(checkpoint)

    def cast(tensors):
        tensors.update({name: tensor.to(dtype) for name, tensor in tensors.items()})

    change_tensors(checkpoint, cast)
    for ours, expected in zip(load_model(checkpoint).parameters(), exact.parameters(), strict=True):
        assert torch.equal(ours, expected.to(dtype).float())


@pytest.mark.parametrize("prefix", ["model.layers.0.self_attn.", "model.", ""])
def test_stored_rotary_frequencies_are_harmless(prefix, checkpoint):
    frequencies = {f"{prefix}rotary_emb.inv_freq": torch.rand(6)}
    change_tensors(checkpoint, lambda tensors: tensors.update(frequencies))
    load_model(checkpoint)


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    folder = save_transformers_model(tiny_transformers_model("llama"), tmp_path, shards=True)
    first, second = sorted(folder.glob("model-*.safetensors"))[:2]
    tensors = load_file(second)
    name = next(iter(load_file(first)))
    save_file(tensors | {name: torch.zeros(1)}, second)
    with pytest.raises(UserError) as error:
        load_model(folder)
    assert f"{name} is stored in {first.name} and again in {second.name}" in str(error.value)


def test_a_tensor_under_both_spellings_is_refused(checkpoint):
    change_tensors(checkpoint, lambda tensors: tensors.update({"norm.weight": torch.ones(48)}))
    with pytest.raises(UserError, match=r"model\.norm\.weight is stored with and without"):
        load_model(checkpoint)


def test_every_misfit_is_in_one_error(checkpoint):
    def spoil(tensors):
        tensors["model.extra.weight"] = torch.zeros(2)
        del tensors["model.layers.1.mlp.up_proj.weight"]
        tensors["model.norm.weight"] = torch.ones(7)

    change_tensors(checkpoint, spoil)
    with pytest.raises(UserError) as error:
        load_model(checkpoint)
    message = str(error.value)
    assert "unexpected model.extra.weight [2]" in message
    assert "missing model.layers.1.mlp.up_proj.weight" in message
    assert "model.norm.weight is [7], config.json asks for [48]" in message
    assert "missing model.norm.weight" not in message, "a misshapen tensor is reported once"


def test_untied_head_may_not_be_missing(checkpoint):
    change_tensors(checkpoint, lambda tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(UserError, match=r"missing lm_head\.weight"):
        load_model(checkpoint)


def test_truncated_file_is_named(checkpoint):
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model\.safetensors: not a readable safetensors file"):
        load_model(checkpoint)


def test_absurd_sizes_are_named_before_anything_is_built(checkpoint):
    path = checkpoint / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vocab_size": 10**30}))
    with pytest.raises(UserError, match=r"config\.json: vocab_size = 10{30}: expected"):
        load_model(checkpoint)


def test_folder_without_weights(checkpoint):
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no weights this project reads"):
        load_model(checkpoint)


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "..", "weights.bin"]
)
def test_shard_names_stay_in_the_folder(name, checkpoint):
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"model.norm.weight": name}})
    )
    with pytest.raises(UserError, match=r"is no \.safetensors file in this folder"):
        load_model(checkpoint)


def test_missing_shard_is_named(tmp_path):
    folder = save_transformers_model(tiny_transformers_model("llama"), tmp_path, shards=True)
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(UserError, match=f"{shard.name}: .* names this shard"):
        load_model(folder)


@pytest.mark.parametrize("index", [{}, {"weight_map": {}}, {"weight_map": []}])
def test_index_without_map(index, checkpoint):
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="no weight_map"):
        load_model(checkpoint)


@pytest.mark.slow
def test_loading_does_not_load_the_compiler(checkpoint):
    """Drawing random numbers on the meta device does: three seconds of every script's start."""
    lines = f"import sys; from llama import load_model; load_model({str(checkpoint)!r})"
    command = [sys.executable, "-c", f"{lines}; print('torch._dynamo' in sys.modules)"]
    root = Path(__file__).parents[2]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert result.stdout == "False\n", result.stderr


def test_a_new_model_has_random_weights(checkpoint):
    config = ModelConfig.load(checkpoint)
    torch.manual_seed(0)
    embedding = Decoder(config).embedding
    assert embedding.requires_grad and 0.9 < embedding.std() < 1.1
