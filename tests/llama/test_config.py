"""Both published spellings, the defaults of every family, and refusals by name."""

import json
import math

import pytest
import transformers

from llama import ModelConfig, UserError
from llama.config import FAMILIES, RopeConfig

LLAMA = {
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
}
SCALING = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def test_both_spellings_read_alike():
    old = ModelConfig.from_dict(LLAMA | {"rope_theta": 500000.0, "rope_scaling": SCALING})
    new = ModelConfig.from_dict(LLAMA | {"rope_parameters": SCALING | {"rope_theta": 500000.0}})
    assert old == new
    assert old.rope == RopeConfig(500000.0, "llama3", 32.0, 1.0, 4.0, 8192)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_defaults_are_those_of_transformers(model_type):
    """A field that config.json leaves out has the family's default."""
    written = {
        "model_type": model_type,
        "vocab_size": 100,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 8,
        "num_attention_heads": 32,
    }
    if model_type == "mistral":
        written["sliding_window"] = None  # the default, 4096, is refused below
    ours = ModelConfig.from_dict(written)
    theirs = transformers.AutoConfig.for_model(**written)
    heads = getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads
    assert ours.head_dim == heads
    assert ours.rope.theta == theirs.rope_parameters["rope_theta"]
    for name in (
        "num_key_value_heads",
        "max_position_embeddings",
        "rms_norm_eps",
        "tie_word_embeddings",
    ):
        assert getattr(ours, name) == getattr(theirs, name), name
    if model_type == "smollm3":
        assert list(ours.no_rope_layers) == theirs.no_rope_layers == [1, 1, 1, 0, 1, 1, 1, 0]


def test_heads_without_groups():
    without_groups = {name: value for name, value in LLAMA.items() if name != "num_key_value_heads"}
    assert ModelConfig.from_dict(without_groups).num_key_value_heads == 4
    assert ModelConfig.from_dict(LLAMA | {"num_key_value_heads": None}).num_key_value_heads == 4


@pytest.mark.parametrize("model_type", FAMILIES)
def test_to_dict_reads_back(model_type):
    written = LLAMA | {
        "model_type": model_type,
        "head_dim": 20,
        "rope_theta": 7.0,
        "rope_scaling": SCALING,
        "tie_word_embeddings": True,
        "sliding_window": None,
        "no_rope_layers": [0, 1],
    }
    written |= {name: True for name in FAMILIES[model_type].bias_fields}
    config = ModelConfig.from_dict(written)
    saved = json.loads(json.dumps(config.to_dict()))
    assert ModelConfig.from_dict(saved) == config
    theirs = transformers.AutoConfig.for_model(**saved)
    assert theirs.architectures == [f"{type(theirs).__name__.removesuffix('Config')}ForCausalLM"]
    assert theirs.head_dim == 20
    assert theirs.rope_parameters == SCALING | {"rope_theta": 7.0}
    for name in ("tie_word_embeddings", "num_key_value_heads", *FAMILIES[model_type].bias_fields):
        assert getattr(theirs, name) == getattr(config, name), name
    assert getattr(theirs, "sliding_window", None) is None
    if model_type == "smollm3":
        assert theirs.no_rope_layers == [0, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gemma2"}, "model_type = 'gemma2' is not supported, only llama, mistral"),
        ({"model_type": ["llama"]}, r"model_type = \['llama'\]"),
        (
            {"model_type": "mistral", "max_position_embeddings": 8192},
            "sliding_window = 4096 is not supported, only null",
        ),
        ({"model_type": "mistral", "sliding_window": 1023}, "sliding_window = 1023"),
        (
            {"model_type": "mistral", "sliding_window": None, "attention_bias": True},
            "attention_bias = true is not supported for mistral",
        ),
        ({"model_type": "qwen2", "mlp_bias": True}, "mlp_bias = true is not supported for qwen2"),
        ({"model_type": "qwen3", "mlp_bias": True}, "mlp_bias = true is not supported for qwen3"),
        ({"model_type": "smollm3", "no_rope_layers": [1]}, "no_rope_layers has 1 entries for"),
        ({"model_type": "smollm3", "no_rope_layers": "all"}, "no_rope_layers = 'all': expected"),
        ({"model_type": "smollm3", "no_rope_layers": [1, 2]}, "expected a list of 0 and 1"),
        ({"model_type": "smollm3", "no_rope_layer_interval": 0}, "no_rope_layer_interval = 0"),
        (
            {"rope_scaling": SCALING | {"high_freq_factor": 1.0}},
            "high_freq_factor = 1.0 must be greater than low_freq_factor = 1.0",
        ),
        ({"model_type": None}, "model_type = None"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"use_sliding_window": True, "sliding_window": 512}, "sliding_window = 512"),
        (
            {"layer_types": ["full_attention", "sliding_attention"]},
            "layer_types: 'sliding_attention'",
        ),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_type = 'yarn'"),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, "rope_type = 'linear'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 4.0}}, "low_freq_factor is missing"),
        ({"rope_parameters": [1]}, "rope parameters"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
        ({"num_experts": 8}, "num_experts = 8"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"attention_dropout": 0.1}, "attention_dropout = 0.1"),
        ({"hidden_size": "64"}, "hidden_size = '64'"),
        ({"vocab_size": -1}, "vocab_size = -1"),
        ({"num_hidden_layers": None}, "num_hidden_layers is missing"),
        ({"num_key_value_heads": 3}, "num_key_value_heads = 3"),
        ({"head_dim": 5}, "head_dim = 5"),
        ({"hidden_size": 2}, "head_dim = 0"),
        (
            {"vocab_size": 10**30},
            "vocab_size = 1000000000000000000000000000000: expected .* integer of at most 16777216",
        ),
        ({"vocab_size": math.inf}, "vocab_size = inf"),
        ({"hidden_size": math.nan}, "hidden_size = nan"),
        ({"num_hidden_layers": 2.5}, "num_hidden_layers = 2.5"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers = 1000000: .* of at most 1024"),
        ({"num_attention_heads": True}, "num_attention_heads = True"),
        ({"rms_norm_eps": math.inf}, "rms_norm_eps = inf"),
        ({"rope_theta": math.nan}, "rope_theta = nan"),
        ({"rope_theta": 10**400}, "rope_theta = 10000"),
        ({"rope_scaling": SCALING | {"factor": -math.inf}}, "factor = -inf"),
        ({"layer_types": 5}, "layer_types: 5 "),
        ({"layer_types": [{}]}, "layer_types: {} "),
    ],
)
def test_what_would_change_the_result_is_refused_by_name(change, message, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | change))
    with pytest.raises(UserError, match=message) as error:
        ModelConfig.load(tmp_path)
    assert str(tmp_path / "config.json") in str(error.value)


def test_a_window_that_is_switched_off_is_no_obstacle():
    config = LLAMA | {
        "model_type": "qwen3",
        "use_sliding_window": False,
        "sliding_window": 512,
        "max_window_layers": 2,
    }
    assert ModelConfig.from_dict(config).qk_norm


def test_a_window_as_long_as_the_context_is_no_obstacle():
    config = LLAMA | {"model_type": "mistral", "sliding_window": 1024}
    assert ModelConfig.from_dict(config).max_position_embeddings == 1024


def test_qwen2_has_biases_on_queries_keys_and_values_alone():
    """Its config.json has no switch for them; transformers ignores one that is there."""
    for written in ({}, {"attention_bias": False}, {"attention_bias": True}):
        config = ModelConfig.from_dict(LLAMA | {"model_type": "qwen2"} | written)
        assert config.qkv_bias and not config.attention_bias and not config.mlp_bias


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ('{"a":' * 10**5, "not valid JSON"),
        ("[]", "expected a JSON object"),
        (json.dumps(LLAMA).replace("1e-05", "1e999"), "rms_norm_eps = inf"),
    ],
)
def test_broken_files_are_named(text, message, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=rf"config\.json: .*{message}"):
        ModelConfig.load(tmp_path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"config\.json: no such file"):
        ModelConfig.load(tmp_path)
