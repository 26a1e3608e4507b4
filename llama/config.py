"""Read a checkpoint's `config.json` into a `ModelConfig`, refusing what the decoder does not
implement.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama.errors import UserError
from llama.json_files import read_json_object, read_number

FAMILIES = ("llama", "qwen3")


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding; `factor` and what follows it count only for `rope_type`
    "llama3".
    """

    theta: float = 10000.0
    rope_type: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


@dataclass(frozen=True)
class ModelConfig:
    """The architecture of one decoder. Names are those of `config.json`."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-6
    rope: RopeConfig = RopeConfig()
    attention_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False

    @property
    def qk_norm(self) -> bool:
        """Qwen3 normalises every query and key head before rotating it."""
        return self.model_type == "qwen3"

    def __post_init__(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise UserError(
                f"num_attention_heads = {self.num_attention_heads} is no multiple of "
                f"num_key_value_heads = {self.num_key_value_heads}"
            )
        if self.head_dim < 2 or self.head_dim % 2:
            raise UserError(
                f"head_dim = {self.head_dim}: rotary embedding turns pairs, so it must be positive and even"
            )

    @classmethod
    def load(cls, folder: str | Path) -> "ModelConfig":
        """Read `folder/config.json`. UserError names the file and the field."""
        path = Path(folder) / "config.json"
        raw = read_json_object(path)
        try:
            return cls.from_dict(raw)
        except ValueError as error:
            raise UserError(f"{path}: {error}") from None

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> "ModelConfig":
        """Read either published spelling: `rope_theta` + `rope_scaling`, or `rope_parameters`."""
        _refuse_unsupported(raw)
        heads = read_number(raw, "num_attention_heads", int)
        hidden_size = read_number(raw, "hidden_size", int)
        return cls(
            model_type=raw["model_type"],
            vocab_size=read_number(raw, "vocab_size", int),
            hidden_size=hidden_size,
            intermediate_size=read_number(raw, "intermediate_size", int),
            num_hidden_layers=read_number(raw, "num_hidden_layers", int),
            num_attention_heads=heads,
            num_key_value_heads=read_number(raw, "num_key_value_heads", int, default=heads),
            # Qwen3's default is 128 whatever the hidden size; Llama's follows from it.
            head_dim=read_number(
                raw, "head_dim", int, 128 if raw["model_type"] == "qwen3" else hidden_size // heads
            ),
            max_position_embeddings=read_number(raw, "max_position_embeddings", int, 2048),
            rms_norm_eps=read_number(raw, "rms_norm_eps", float, 1e-6),
            rope=_read_rope(raw),
            attention_bias=bool(raw.get("attention_bias", False)),
            mlp_bias=bool(raw.get("mlp_bias", False)),
            tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
        )

    def to_dict(self) -> dict[str, Any]:
        """The `config.json` of this architecture, in the spelling every transformers release
        reads.
        """
        rope = self.rope
        scaling = None
        if rope.rope_type != "default":
            scaling = {name: value for name, value in vars(rope).items() if name != "theta"}
        raw = {name: value for name, value in vars(self).items() if name != "rope"}
        architecture = {"llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM"}[self.model_type]
        return {
            "architectures": [architecture],
            **raw,
            "hidden_act": "silu",
            "rope_theta": rope.theta,
            "rope_scaling": scaling,
        }


def _refuse_unsupported(raw: dict[str, Any]) -> None:
    """Every setting that would change the result and is not implemented here is refused by name."""
    if raw.get("model_type") not in FAMILIES:
        raise UserError(
            f"model_type = {raw.get('model_type')!r} is not supported, only {' and '.join(FAMILIES)}"
        )
    if raw.get("hidden_act", "silu") != "silu":
        raise UserError(f"hidden_act = {raw['hidden_act']!r} is not supported, only 'silu'")
    # Older configs name a window without using it; what counts is the switch, or a layer that is
    # not full attention.
    if raw.get("use_sliding_window") and raw.get("sliding_window"):
        raise UserError(
            f"use_sliding_window with sliding_window = {raw['sliding_window']} is not supported"
        )
    layer_types = raw.get("layer_types") or []
    for layer_type in layer_types if isinstance(layer_types, list) else [layer_types]:
        if layer_type != "full_attention":
            raise UserError(
                f"layer_types: {layer_type!r} is not supported, only a list of 'full_attention'"
            )
    if raw["model_type"] == "qwen3" and raw.get("mlp_bias"):
        raise UserError("mlp_bias = true is not supported for qwen3")
    neutral = {
        "partial_rotary_factor": 1.0,
        "pretraining_tp": 1,
        "attention_dropout": 0.0,
        "num_experts": 0,
    }
    neutral |= {"quantization_config": None, "num_local_experts": 0}
    for field, value in neutral.items():
        if raw.get(field) is not None and raw[field] != value:
            raise UserError(f"{field} = {raw[field]!r} is not supported")


def _read_rope(raw: dict[str, Any]) -> RopeConfig:
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise UserError(f"rope parameters must be an object, found {rope!r}")
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    theta = read_number({**raw, **rope}, "rope_theta", float, 10000.0)
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise UserError(
            f"partial_rotary_factor = {rope['partial_rotary_factor']!r} is not supported"
        )
    if rope_type == "default":
        return RopeConfig(theta)
    if rope_type != "llama3":
        raise UserError(f"rope_type = {rope_type!r} is not supported, only 'default' and 'llama3'")
    return RopeConfig(
        theta,
        rope_type,
        read_number(rope, "factor", float),
        read_number(rope, "low_freq_factor", float),
        read_number(rope, "high_freq_factor", float),
        read_number(rope, "original_max_position_embeddings", int),
    )
