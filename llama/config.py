"""Read a checkpoint's `config.json` into a `ModelConfig` and refuse what the decoder lacks.

A model family is one entry of `FAMILIES` and one variant in `tests/tiny.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llama.checkpoint_files import locate, read_json
from llama.errors import UserError
from llama.json_files import read_number


@dataclass(frozen=True)
class Family:
    """The features of one `model_type`. `defaults` are transformers' values for fields that
    `config.json` leaves out.
    """

    architecture: str
    bias_fields: tuple[str, ...] = ()  # the fields of config.json that switch biases on
    qkv_bias: bool = False  # biases on q, k and v whatever config.json says
    qk_norm: bool = False  # every query and key head is normalised before its rotation
    unrotated_layers: bool = False  # layers without rotary embedding, listed in no_rope_layers
    always_windowed: bool = False  # sliding_window counts without use_sliding_window
    defaults: Mapping[str, Any] = field(default_factory=dict)


FAMILIES = {
    "llama": Family(
        "LlamaForCausalLM",
        bias_fields=("attention_bias", "mlp_bias"),
        defaults={"max_position_embeddings": 2048},
    ),
    "mistral": Family(
        "MistralForCausalLM",
        always_windowed=True,
        defaults={
            "max_position_embeddings": 131072,
            "num_key_value_heads": 8,
            "sliding_window": 4096,
        },
    ),
    "qwen2": Family(
        "Qwen2ForCausalLM",
        qkv_bias=True,
        defaults={"max_position_embeddings": 32768, "num_key_value_heads": 32},
    ),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        bias_fields=("attention_bias",),
        qk_norm=True,
        defaults={"head_dim": 128, "max_position_embeddings": 32768, "num_key_value_heads": 32},
    ),
    "smollm3": Family(
        "SmolLM3ForCausalLM",
        bias_fields=("attention_bias", "mlp_bias"),
        unrotated_layers=True,
        defaults={
            "max_position_embeddings": 32768,
            "num_key_value_heads": 4,
            "rope_theta": 2e6,
            "tie_word_embeddings": True,
        },
    ),
}

MAX_LAYERS = 1024  # several times the deepest model's; each is a module, built before weights load

# Fields that change the result unless they have this value.
NEUTRAL_VALUES: dict[str, Any] = {
    "partial_rotary_factor": 1.0,
    "pretraining_tp": 1,
    "attention_dropout": 0.0,
    "num_experts": 0,
    "num_local_experts": 0,
    "quantization_config": None,
}


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding. The fields from `factor` on count for `rope_type` "llama3"
    only.
    """

    theta: float = 10000.0
    rope_type: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192

    def __post_init__(self) -> None:
        if self.high_freq_factor <= self.low_freq_factor:
            raise UserError(
                f"high_freq_factor = {self.high_freq_factor} must be greater than "
                f"low_freq_factor = {self.low_freq_factor}"
            )


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
    no_rope_layers: tuple[int, ...] | None = None  # one a layer, 1: rotated, 0: not; None: all are

    @property
    def family(self) -> Family:
        return FAMILIES[self.model_type]

    @property
    def qk_norm(self) -> bool:
        """True if every query and key head is normalised before its rotation."""
        return self.family.qk_norm

    @property
    def qkv_bias(self) -> bool:
        """True if the query, key and value projections have biases; o_proj has `attention_bias`."""
        return self.attention_bias or self.family.qkv_bias

    def uses_rope(self, layer: int) -> bool:
        """Return True if `layer` (from 0) rotates its queries and keys."""
        return self.no_rope_layers is None or bool(self.no_rope_layers[layer])

    def __post_init__(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise UserError(
                f"num_attention_heads = {self.num_attention_heads} is no multiple of "
                f"num_key_value_heads = {self.num_key_value_heads}"
            )
        if self.head_dim < 2 or self.head_dim % 2:
            raise UserError(
                f"head_dim = {self.head_dim}: rotary embedding turns pairs, so it must be "
                "positive and even"
            )

    @classmethod
    def load(cls, source: str | Path) -> "ModelConfig":
        """Read the configuration of a checkpoint folder or GGUF file. UserError names the file and
        the field.
        """
        source = Path(source)
        raw = read_json(source, "config.json", required=True)
        try:
            return cls.from_dict(raw or {})
        except UserError as error:
            raise UserError(f"{locate(source, 'config.json')}: {error}") from None

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "ModelConfig":
        """Read either published spelling: `rope_theta` + `rope_scaling`, or `rope_parameters`."""
        family = _find_family(raw.get("model_type"))
        raw = {**family.defaults, **raw}
        _refuse_unsupported(raw, family)
        heads = read_number(raw, "num_attention_heads", int)
        hidden_size = read_number(raw, "hidden_size", int)
        num_hidden_layers = read_number(raw, "num_hidden_layers", int, largest=MAX_LAYERS)
        no_rope_layers = None
        if family.unrotated_layers:
            no_rope_layers = _read_no_rope_layers(raw, num_hidden_layers)
        return cls(
            model_type=raw["model_type"],
            vocab_size=read_number(raw, "vocab_size", int),
            hidden_size=hidden_size,
            intermediate_size=read_number(raw, "intermediate_size", int),
            num_hidden_layers=num_hidden_layers,
            num_attention_heads=heads,
            num_key_value_heads=read_number(raw, "num_key_value_heads", int, default=heads),
            head_dim=read_number(raw, "head_dim", int, default=hidden_size // heads),
            max_position_embeddings=read_number(raw, "max_position_embeddings", int),
            rms_norm_eps=read_number(raw, "rms_norm_eps", float, default=1e-6),
            rope=_read_rope(raw),
            attention_bias=_read_bias(raw, family, "attention_bias"),
            mlp_bias=_read_bias(raw, family, "mlp_bias"),
            tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
            no_rope_layers=no_rope_layers,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return a `config.json` in the spelling that every transformers release reads."""
        raw: dict[str, Any] = {"architectures": [self.family.architecture], **vars(self)}
        for name in ("rope", "attention_bias", "mlp_bias", "no_rope_layers"):
            del raw[name]
        for name in self.family.bias_fields:
            raw[name] = getattr(self, name)
        if self.no_rope_layers is not None:
            raw["no_rope_layers"] = list(self.no_rope_layers)
        if self.family.always_windowed:
            raw["sliding_window"] = None
        scaling = {name: value for name, value in vars(self.rope).items() if name != "theta"}
        raw["hidden_act"] = "silu"
        raw["rope_theta"] = self.rope.theta
        raw["rope_scaling"] = None if self.rope.rope_type == "default" else scaling
        return raw


def check_model_type(source: Path) -> None:
    """Refuse a checkpoint of another family by its `model_type`. One without config.json, a
    tokenizer alone, passes.
    """
    raw = read_json(source, "config.json") or {}
    if "model_type" in raw:
        try:
            _find_family(raw["model_type"])
        except UserError as error:
            raise UserError(f"{locate(source, 'config.json')}: {error}") from None


def _find_family(model_type: Any) -> Family:
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise UserError(
            f"model_type = {model_type!r} is not supported, only {', '.join(sorted(FAMILIES))}"
        )
    return FAMILIES[model_type]


def _refuse_unsupported(raw: dict[str, Any], family: Family) -> None:
    """Refuse by name every setting that would change the result and is not implemented here."""
    if raw.get("hidden_act", "silu") != "silu":
        raise UserError(f"hidden_act = {raw['hidden_act']!r} is not supported, only 'silu'")
    _refuse_windows(raw, family)
    for name, value in NEUTRAL_VALUES.items():
        if raw.get(name) is not None and raw[name] != value:
            raise UserError(f"{name} = {raw[name]!r} is not supported")


def _refuse_windows(raw: dict[str, Any], family: Family) -> None:
    """Refuse attention that does not reach the first position; a window as long as the context
    does.
    """
    window = raw.get("sliding_window")
    if window and raw.get("use_sliding_window"):
        raise UserError(f"use_sliding_window with sliding_window = {window} is not supported")
    if window and family.always_windowed:
        context = read_number(raw, "max_position_embeddings", int)
        if read_number(raw, "sliding_window", int) < context:
            raise UserError(
                f"sliding_window = {window} is not supported, only null or at least "
                f"max_position_embeddings = {context}"
            )
    layer_types = raw.get("layer_types") or []
    if not isinstance(layer_types, list):
        layer_types = [layer_types]
    for layer_type in layer_types:
        if layer_type != "full_attention":
            raise UserError(
                f"layer_types: {layer_type!r} is not supported, only a list of 'full_attention'"
            )


def _read_bias(raw: dict[str, Any], family: Family, name: str) -> bool:
    bias = bool(raw.get(name, False))
    if name in family.bias_fields:
        return bias
    if bias and not (family.qkv_bias and name == "attention_bias"):
        raise UserError(f"{name} = true is not supported for {raw['model_type']}")
    return False


def _read_no_rope_layers(raw: dict[str, Any], num_hidden_layers: int) -> tuple[int, ...]:
    """Return 1 for every layer with rotary embedding, 0 for one without: listed, or by interval."""
    listed = raw.get("no_rope_layers")
    if listed is None:
        interval = read_number(raw, "no_rope_layer_interval", int, default=4)
        return tuple(int((layer + 1) % interval != 0) for layer in range(num_hidden_layers))
    if not isinstance(listed, list) or any(entry not in (0, 1) for entry in listed):
        raise UserError(f"no_rope_layers = {listed!r}: expected a list of 0 and 1")
    if len(listed) < num_hidden_layers:
        raise UserError(
            f"no_rope_layers has {len(listed)} entries for num_hidden_layers = {num_hidden_layers}"
        )
    return tuple(map(int, listed[:num_hidden_layers]))


def _read_rope(raw: dict[str, Any]) -> RopeConfig:
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise UserError(f"rope parameters must be an object, found {rope!r}")
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    theta = read_number({**raw, **rope}, "rope_theta", float, default=10000.0)
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
