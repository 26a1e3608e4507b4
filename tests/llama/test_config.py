"""Both published spellings read alike; what is not implemented is refused by name."""

import json
import math

import pytest

from llama import ModelConfig
from llama.config import RopeConfig

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


def test_defaults_follow_the_family():
    assert ModelConfig.from_dict(LLAMA).head_dim == 16
    assert ModelConfig.from_dict(LLAMA | {"model_type": "qwen3"}).head_dim == 128
    without_groups = {name: value for name, value in LLAMA.items() if name != "num_key_value_heads"}
    assert ModelConfig.from_dict(without_groups).num_key_value_heads == 4


def test_to_dict_reads_back():
    config = ModelConfig.from_dict(
        LLAMA | {"rope_theta": 7.0, "rope_scaling": SCALING, "tie_word_embeddings": True}
    )
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mistral"}, "model_type = 'mistral'"),
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
    with pytest.raises(ValueError, match=message) as error:
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
    with pytest.raises(ValueError, match=rf"config\.json: .*{message}"):
        ModelConfig.load(tmp_path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"config\.json: no such file"):
        ModelConfig.load(tmp_path)
