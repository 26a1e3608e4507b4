"""LoRA layers against PEFT: same adapter, same logits; files exchange both ways; misfits are
listed.
"""

import json
import math
import os

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from llama import load_model
from llama.config import ModelConfig
from llama.errors import UserError
from llama.model import Decoder
from lora import (
    LoRAConfig,
    LoRALinear,
    adapter_fingerprint,
    inject_lora,
    load_adapter,
    lora_disabled,
    lora_layers,
    lora_parameters,
    merge_lora,
    save_adapter,
    set_lora_scale,
)
from lora.adapter import _match_within_time
from tests.tiny import save_transformers_model, tiny_transformers_model

INPUT_IDS = torch.randint(0, 199, (2, 40), generator=torch.Generator().manual_seed(3))
FILES = ["adapter_config.json", "adapter_model.safetensors"]
TARGETS = ["q_proj", "v_proj", "down_proj"]


def randomise(model, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1, generator=generator)


def logits(model: Decoder) -> torch.Tensor:
    with torch.inference_mode():
        return model.logits(model(INPUT_IDS))


def peft_logits(model) -> torch.Tensor:
    with torch.inference_mode():
        return model(INPUT_IDS).logits


def assert_same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert (actual - expected).abs().max() <= 2e-5 * expected.abs().max()


@pytest.fixture(params=["llama3-scaled", "qwen3", "qwen2", "smollm3"])
def checkpoint(request, tmp_path):
    return save_transformers_model(
        tiny_transformers_model(request.param), tmp_path / "base"
    ), request.param


@pytest.fixture
def peft_folder(checkpoint, tmp_path):
    """An adapter PEFT made, and what PEFT computes with it."""
    config = peft.LoraConfig(r=4, lora_alpha=12, target_modules=TARGETS, task_type="CAUSAL_LM")
    model = peft.get_peft_model(tiny_transformers_model(checkpoint[1]), config)
    randomise(model)
    model.save_pretrained(tmp_path / "peft")
    return tmp_path / "peft", peft_logits(model.eval())


@pytest.fixture
def model(checkpoint):
    return load_model(checkpoint[0])


def test_peft_adapter_gives_the_same_logits(model, peft_folder):
    folder, expected = peft_folder
    base = logits(model)
    load_adapter(model, folder)
    assert_same(logits(model), expected)
    assert (base - expected).abs().max() > 0.01 * expected.abs().max(), (
        "the adapter must matter for this to mean much"
    )


def test_our_adapter_gives_peft_the_same_logits(model, checkpoint, tmp_path):
    inject_lora(
        model,
        LoRAConfig(rank=3, alpha=5.0, target_modules=("k_proj", "o_proj", "gate_proj", "up_proj")),
    )
    randomise(model)
    save_adapter(model, tmp_path / "ours", base_model="somewhere/base")
    theirs = peft.PeftModel.from_pretrained(
        tiny_transformers_model(checkpoint[1]), tmp_path / "ours"
    ).eval()
    assert_same(logits(model), peft_logits(theirs))
    assert theirs.peft_config["default"].base_model_name_or_path == "somewhere/base"


def test_save_and_load_are_inverse(model, checkpoint, tmp_path):
    inject_lora(model, LoRAConfig())
    randomise(model)
    save_adapter(model, tmp_path / "a")
    copy = load_model(checkpoint[0])
    load_adapter(copy, tmp_path / "a")
    assert torch.equal(logits(copy), logits(model))
    save_adapter(copy, tmp_path / "b")
    assert adapter_fingerprint(tmp_path / "a") == adapter_fingerprint(tmp_path / "b")
    load_adapter(copy, tmp_path / "b")  # into layers that are there
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == FILES


def test_fingerprint_covers_both_files(model, tmp_path):
    inject_lora(model, LoRAConfig())
    randomise(model)
    save_adapter(model, tmp_path)
    before = adapter_fingerprint(tmp_path)
    change_config(tmp_path, lora_alpha=17)
    edited = adapter_fingerprint(tmp_path)
    randomise(model, seed=1)
    save_adapter(model, tmp_path)
    assert len({before, edited, adapter_fingerprint(tmp_path)}) == 3


def test_files_are_on_disk_before_they_get_their_names(model, tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace

    def record_fsync(descriptor):
        events.append(("flush", os.fstat(descriptor).st_ino))
        fsync(descriptor)

    def record_replace(source, target):
        events.append(("rename", os.stat(source).st_ino))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_replace)
    inject_lora(model, LoRAConfig())
    save_adapter(model, tmp_path)
    for name in FILES:
        inode = (tmp_path / name).stat().st_ino
        assert events.index(("flush", inode)) < events.index(("rename", inode))
    assert events[-1] == ("flush", tmp_path.stat().st_ino)


def test_fresh_lora_changes_nothing_and_trains_only_itself(model):
    base = logits(model)
    names = inject_lora(
        model, LoRAConfig(rank=2, target_modules=("q_proj", "model.layers.1.mlp.up_proj"))
    )
    layers = model.config.num_hidden_layers
    assert len(names) == layers + 1
    assert torch.equal(logits(model), base)
    trainable = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    assert trainable == {id(parameter) for parameter in lora_parameters(model)}
    assert len(trainable) == 2 * len(names)
    assert {parameter.dtype for parameter in lora_parameters(model)} == {torch.float32}


def test_merge_scale_and_disable(model):
    base = logits(model)
    inject_lora(model, LoRAConfig(rank=4))
    randomise(model)
    tuned = logits(model)
    with lora_disabled(model):
        assert torch.equal(logits(model), base)
    assert torch.equal(logits(model), tuned)
    set_lora_scale(model, 0.0)
    assert torch.equal(logits(model), base)
    set_lora_scale(model, 0.5)
    half = logits(model)
    merge_lora(model)
    assert not list(lora_layers(model))
    assert_same(logits(model), half)
    assert (half - tuned).abs().max() > 0.01 * tuned.abs().max()


def test_disabled_is_restored_after_an_error(model):
    inject_lora(model, LoRAConfig())
    with pytest.raises(RuntimeError), lora_disabled(model):
        raise RuntimeError
    assert all(layer.enabled for _, layer in lora_layers(model))


def test_merging_into_bfloat16_rounds_once():
    linear = torch.nn.Linear(16, 16, bias=False, dtype=torch.bfloat16)
    layer = LoRALinear(linear, LoRAConfig(rank=2))
    torch.nn.init.normal_(layer.lora_B)
    exact = linear.weight.float() + layer.scaling * layer.lora_B @ layer.lora_A
    assert torch.equal(layer.merged().weight, exact.bfloat16())
    assert layer(torch.ones(3, 16, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    layer = LoRALinear(torch.nn.Linear(64, 8), LoRAConfig(dropout=0.5))
    torch.nn.init.normal_(layer.lora_B)
    x = torch.ones(1, 64)
    layer.eval()
    assert torch.equal(layer(x), layer(x))
    layer.train()
    assert not torch.equal(layer(x), layer(x))
    mean = torch.stack([layer(x) for _ in range(2000)]).mean(0)
    assert torch.allclose(mean, layer.eval()(x), atol=0.2)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_hand_written_gradients(dropout):
    """gradcheck in float64, with a bias and two leading dimensions; the same values are dropped
    every time.
    """
    torch.manual_seed(0)
    layer = LoRALinear(
        torch.nn.Linear(5, 4).double().requires_grad_(False), LoRAConfig(rank=3, dropout=dropout)
    )
    layer.double().train()
    torch.nn.init.normal_(layer.lora_B)
    x = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)

    def run(x, *_):
        torch.manual_seed(1)
        return layer(x)

    assert torch.autograd.gradcheck(run, (x, layer.lora_A, layer.lora_B))
    if dropout:
        assert not torch.equal(run(x), layer.eval()(x))


def test_a_layer_keeps_only_its_input_and_the_short_product():
    layer = LoRALinear(torch.nn.Linear(64, 32).requires_grad_(False), LoRAConfig(rank=2))
    x, kept = torch.randn(100, 64, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor) or tensor, lambda t: t
    ):
        layer(x)
    parameters = {tensor.data_ptr() for tensor in layer.parameters()}
    shapes = {
        tensor.data_ptr(): tensor.shape for tensor in kept if tensor.data_ptr() not in parameters
    }
    assert shapes.pop(x.data_ptr()) == x.shape and list(shapes.values()) == [(100, 2)]


def test_lora_in_float32_over_a_bfloat16_weight():
    """Under autocast or not: output in bfloat16, gradients in float32 and close to those of
    float32.
    """
    grads = []
    for dtype, autocast in (
        (torch.float32, False),
        (torch.bfloat16, False),
        (torch.bfloat16, True),
    ):
        torch.manual_seed(0)
        linear = torch.nn.Linear(64, 32).requires_grad_(False)
        layer = LoRALinear(linear.bfloat16().to(dtype), LoRAConfig(rank=4))
        torch.nn.init.normal_(layer.lora_B)
        x = torch.randn(100, 64).bfloat16().to(torch.float32 if autocast else dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = layer(x)
        assert out.dtype == dtype
        out.float().square().sum().backward()
        grads.append((layer.lora_A.grad, layer.lora_B.grad))
    for exact, *others in zip(*grads, strict=True):
        for grad in others:
            assert grad.dtype == torch.float32
            assert (grad - exact).norm() < 0.02 * exact.norm()


def test_zero_matches_are_one_error(model):
    with pytest.raises(
        ValueError, match=r"\['qkv', 'proj'\] match no linear of the decoder; it has \['down_proj'"
    ):
        inject_lora(model, LoRAConfig(target_modules=("q_proj", "qkv", "proj")))
    assert not list(lora_layers(model))


def test_double_injection_is_refused(model):
    inject_lora(model, LoRAConfig())
    with pytest.raises(ValueError, match="has LoRA layers already"):
        inject_lora(model, LoRAConfig())


@pytest.mark.parametrize(
    "wrong", [{"rank": 0}, {"alpha": 0}, {"dropout": 1.0}, {"target_modules": ()}]
)
def test_configuration_out_of_range(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        LoRAConfig(**wrong)


def test_every_misfit_is_in_one_error(model, peft_folder):
    folder, _ = peft_folder
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    key = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
    del tensors[key.format(0, "A")]
    tensors[key.format(1, "A")] = torch.zeros(5, 48)
    tensors[key.format(9, "B")] = torch.zeros(5, 4)
    save_file(tensors, path)
    with pytest.raises(ValueError) as error:
        load_adapter(model, folder)
    message = str(error.value)
    assert "missing model.layers.0.self_attn.q_proj.lora_A.weight" in message
    assert (
        "model.layers.1.self_attn.q_proj.lora_A.weight is [5, 48], model and rank 4 ask for [4, 48]"
        in message
    )
    assert "unexpected model.layers.9.self_attn.q_proj.lora_B.weight [5, 4]" in message
    assert not list(lora_layers(model)), "a refused adapter leaves the model as it was"


def change_config(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"r": 8}, r"is \[4, \d+\], model and rank 8 ask for \[8, "),
        ({"use_dora": True}, "not supported: use_dora = True"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"peft_type": "IA3"}, "peft_type = 'IA3'"),
        ({"r": None}, "lacks r"),
        ({"r": "many"}, "adapter_config.json: .*many"),
        ({"target_modules": ["attention"]}, r"\['attention'\] match no linear"),
        ({"target_modules": "nothing.*"}, "'nothing.*' matches no linear"),
        ({"target_modules": [1, 2]}, r"target_modules = \[1, 2\]: expected a list of names"),
        ({"target_modules": {"q_proj": 1}}, "target_modules = {'q_proj': 1}: expected"),
        ({"target_modules": "(("}, r"target_modules = '\(\(': broken regular expression"),
        (
            {"target_modules": "a{99999999999}"},
            r"target_modules = 'a\{99999999999\}': broken regular expression",
        ),
        (
            {"target_modules": "([a-z0-9_.]+)*!"},
            r"target_modules = '\(\[a-z.*more than 1 seconds to match",
        ),
        ({"r": math.inf}, "r = inf: expected a positive integer"),
        ({"r": 4.7}, "r = 4.7"),
        ({"r": True}, "r = True"),
        ({"r": 10**30}, "r = 1000000000000000000000000000000"),
        ({"lora_alpha": math.inf}, "lora_alpha = inf"),
        ({"lora_alpha": 10**400}, "lora_alpha = 10000"),
        ({"lora_dropout": "0.1"}, "lora_dropout = '0.1'"),
        ({"lora_dropout": []}, r"lora_dropout = \[\]"),
        ({"lora_dropout": math.nan}, "lora_dropout = nan"),
        ({"lora_dropout": 1}, "dropout = 1.0"),
        ({"bias": "all"}, "not supported: bias = 'all'"),
        ({"init_lora_weights": "pissa"}, "not supported: init_lora_weights = 'pissa'"),
        (
            {"init_lora_weights": "loftq", "loftq_config": {"bits": 4}},
            "not supported: init_lora_weights = 'loftq'$",
        ),
        ({"use_rslora": True}, "use_rslora = True"),
        ({"lora_bias": True}, "lora_bias = True"),
        ({"alora_invocation_tokens": [5]}, r"alora_invocation_tokens = \[5\]"),
        ({"layers_to_transform": 0}, "layers_to_transform = 0"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"target_parameters": ["w"]}, "target_parameters"),
        (
            {"of_a_later_release": 1, "use_dora": True},
            "not supported: use_dora = True, of_a_later_release = 1",
        ),
    ],
)
def test_adapter_settings_that_do_not_fit(changes, message, model, peft_folder, monkeypatch):
    monkeypatch.setattr("lora.adapter.MATCHING_SECONDS", 1)
    change_config(peft_folder[0], **changes)
    with pytest.raises(ValueError, match=message) as error:
        load_adapter(model, peft_folder[0])
    if changes != {"r": 8}:  # which the tensors do not fit
        assert str(error.value).startswith(f"{peft_folder[0] / 'adapter_config.json'}: ")
    assert not list(lora_layers(model))


@pytest.mark.skipif(os.name == "nt", reason="there all seconds count")
def test_waiting_for_the_processor_counts_for_no_regular_expression(monkeypatch):
    """The bound is shorter than any process takes to begin, as it may be on a busy machine."""
    monkeypatch.setattr("lora.adapter.MATCHING_SECONDS", 0.01)
    assert _match_within_time(".*q_proj", ["a.q_proj", "a.k_proj"]) == ["a.q_proj"]


def test_only_settings_without_effect_may_differ_from_what_peft_writes(model, peft_folder):
    """Every field of the installed PEFT's LoraConfig, set to something: refused unless known to be
    harmless.
    """
    path = peft_folder[0] / "adapter_config.json"
    original = path.read_text()
    accepted = set()
    for name in json.loads(original).keys() - {"r", "target_modules", "lora_alpha", "lora_dropout"}:
        path.write_text(json.dumps(json.loads(original) | {name: "something"}))
        try:
            load_adapter(model, peft_folder[0])
        except ValueError as error:
            assert f"not supported: {name} = 'something'" in str(error)
        else:
            accepted.add(name)
    origin = {
        "auto_mapping",
        "base_model_name_or_path",
        "inference_mode",
        "peft_version",
        "revision",
        "task_type",
    }
    dependent = {"layers_pattern", "megatron_core", "qalora_group_size"}
    dependent |= {"loftq_config", "eva_config", "corda_config", "lora_ga_config"}
    assert {"base_model_name_or_path", "megatron_core"} <= accepted <= origin | dependent


@pytest.mark.parametrize("init", [True, False, None, "gaussian", "orthogonal"])
def test_plain_initialisations_are_no_obstacle(init, model, peft_folder):
    change_config(peft_folder[0], init_lora_weights=init)
    load_adapter(model, peft_folder[0])
    assert_same(logits(model), peft_folder[1])


def test_a_target_that_only_other_families_have_counts_for_nothing(model, checkpoint, tmp_path):
    """One list of names serves several families; PEFT adapts the linears there are."""
    targets = [*TARGETS, "query_key_value"]
    config = peft.LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM")
    theirs = peft.get_peft_model(tiny_transformers_model(checkpoint[1]), config)
    randomise(theirs)
    theirs.save_pretrained(tmp_path / "several")
    load_adapter(model, tmp_path / "several")
    assert_same(logits(model), peft_logits(theirs.eval()))
    save_adapter(model, tmp_path / "ours")
    saved = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    assert saved["target_modules"] == sorted(TARGETS)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.full((4, 48), math.nan), "lora_A.weight holds values that are not finite"),
        (torch.ones(4, 48, dtype=torch.int8), "lora_A.weight holds int8"),
    ],
)
def test_tensors_that_hold_no_weights_are_refused(value, message, model, peft_folder):
    path = peft_folder[0] / "adapter_model.safetensors"
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    save_file(load_file(path) | {key: value}, path)
    with pytest.raises(UserError, match=message):
        load_adapter(model, peft_folder[0])
    assert not list(lora_layers(model))


def test_peft_spellings_of_targets(model, peft_folder):
    folder, expected = peft_folder
    change_config(folder, target_modules=r".*\.(q_proj|v_proj|down_proj)")
    load_adapter(model, folder)
    assert_same(logits(model), expected)


def test_adapter_of_another_model(peft_folder, tmp_path):
    other = Decoder(
        ModelConfig.from_dict(
            tiny_transformers_model("llama", num_hidden_layers=4).config.to_dict()
        )
    )
    with pytest.raises(ValueError, match=r"missing model\.layers\.3"):
        load_adapter(other, peft_folder[0])


@pytest.mark.parametrize("name", FILES)
def test_missing_and_broken_files_are_named(name, model, peft_folder):
    path = peft_folder[0] / name
    content = path.read_bytes()
    path.write_bytes(content[:20])
    with pytest.raises(ValueError, match=name):
        load_adapter(model, peft_folder[0])
    path.unlink()
    for read in (lambda folder: load_adapter(model, folder), adapter_fingerprint):
        with pytest.raises(
            ValueError, match=f"no {name}: is {peft_folder[0]} an adapter folder"
        ) as error:
            read(peft_folder[0])
        assert str(error.value).startswith(f"{peft_folder[0]}: ")


def test_empty_folder_is_no_adapter(model, tmp_path):
    with pytest.raises(
        ValueError,
        match=r"no adapter_config\.json / adapter_model\.safetensors: is .* an adapter folder",
    ):
        load_adapter(model, tmp_path)


def test_saving_without_layers_is_refused(model, tmp_path):
    with pytest.raises(ValueError, match="no LoRA layers to save"):
        save_adapter(model, tmp_path)
