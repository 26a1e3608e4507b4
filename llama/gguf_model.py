"""Map a GGUF file's hyperparameters and tensors to `config.json` and Hugging Face's weights."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from llama.errors import UserError
from llama.gguf import GGUFFile, read_tensor

# The model_type of each architecture whose tensors and hyperparameters are those of our decoder.
ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "smollm3": "smollm3"}
# llama.cpp rotates neighbouring rows of q and k in these, and reorders them when converting.
REORDERED_ARCHITECTURES = ("llama", "smollm3")
TENSOR_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
ROPE_FREQS = "rope_freqs.weight"
SIZES = {  # config.json's name -> GGUF's, below the architecture's name
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
    "sliding_window": "attention.sliding_window",
    "num_local_experts": "expert_count",
}
# Hyperparameters that change the result unless they are absent or have this value.
NEUTRAL_VALUES = {
    "attention.causal": True,
    "attention.scale": 0.0,
    "embedding_scale": 0.0,
    "residual_scale": 0.0,
    "logit_scale": 0.0,
    "attn_logit_softcapping": 0.0,
    "final_logit_softcapping": 0.0,
    "rope.scale_linear": 1.0,
    "rope.scaling.type": "none",
}


def config_dict(file: GGUFFile) -> dict[str, Any]:
    """Return the `config.json` that the file's hyperparameters and tensors stand for.

    UserError names what is not supported or does not fit.
    """
    _refuse_unsupported(file)
    raw: dict[str, Any] = {
        "model_type": ARCHITECTURES[file.architecture],
        "vocab_size": _vocabulary_size(file),
        "hidden_act": "silu",
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": "blk.0.attn_output.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in file.tensors,
    }
    for name, key in SIZES.items():
        value = file.hyperparameter(key)
        if isinstance(value, float):
            value = _shortest(value)
        raw[name] = value
    if raw["head_dim"] is None:
        raw["head_dim"] = _even_share(raw["hidden_size"], raw["num_attention_heads"])
    if raw["sliding_window"] == 0:
        raw["sliding_window"] = None
    raw["use_sliding_window"] = raw["sliding_window"] is not None
    rotated = file.hyperparameter("rope.dimension_count", raw["head_dim"])
    if rotated != raw["head_dim"]:
        raise UserError(
            f"{file.architecture}.rope.dimension_count = {rotated!r} with heads of "
            f"{raw['head_dim']!r} is not supported"
        )
    if ROPE_FREQS in file.tensors:
        raw["rope_scaling"] = _rope_scaling(file, raw["head_dim"], raw["rope_theta"] or 10000.0)
    return raw


def _refuse_unsupported(file: GGUFFile) -> None:
    if file.architecture not in ARCHITECTURES:
        raise UserError(
            f"general.architecture = {file.architecture!r} is not supported, only "
            + ", ".join(ARCHITECTURES)
        )
    for name, neutral in NEUTRAL_VALUES.items():
        value = file.hyperparameter(name, neutral)
        if value != neutral:
            raise UserError(f"{file.architecture}.{name} = {value!r} is not supported")


def _vocabulary_size(file: GGUFFile) -> int:
    """Return the number of rows of the embedding. UserError if the vocabulary does not fit it."""
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise UserError("the file has no matrix token_embd.weight")
    num_rows = embedding.shape[0]
    stated = file.hyperparameter("vocab_size", num_rows)
    if stated != num_rows:
        raise UserError(
            f"{file.architecture}.vocab_size = {stated!r}, but token_embd.weight has "
            f"{num_rows} rows"
        )
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, list) and len(tokens) > num_rows:
        raise UserError(
            f"tokenizer.ggml.tokens has {len(tokens)} entries, but token_embd.weight has only "
            f"{num_rows} rows"
        )
    return num_rows


def _even_share(hidden_size: Any, heads: Any) -> int | None:
    if type(hidden_size) is not int or type(heads) is not int or heads <= 0:
        return None  # reported as the field that it is
    return hidden_size // heads


def _shortest(value: float) -> float:
    """Return the shortest decimal of a float32: GGUF stores 1e-05 as 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _rope_scaling(file: GGUFFile, head_dim: Any, theta: Any) -> dict[str, Any]:
    """Recover Llama 3's rotary scaling from `rope_freqs`, the divisors [head_dim / 2] of the
    frequencies.

    Llama 3 publishes low_freq_factor 1 and high_freq_factor 4. The last divisor is `factor`; one
    between 1 and `factor` gives the original context. UserError if that does not explain them all.
    """
    divisors = read_tensor(file, ROPE_FREQS).astype(np.float64)
    if type(head_dim) is not int or divisors.shape != (head_dim // 2,):
        raise UserError(f"{ROPE_FREQS} has shape {list(divisors.shape)} for heads of {head_dim!r}")
    unexplained = UserError(f"{ROPE_FREQS}: its values are not those of Llama 3's scaling")
    factor = divisors[-1]
    blended = np.flatnonzero((divisors > 1) & (divisors < factor))
    if not isinstance(theta, float) or not np.isfinite(divisors).all() or len(blended) == 0:
        raise unexplained
    low, high = 1.0, 4.0
    wavelengths = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    unscaled_share = (1 / divisors - 1 / factor) / (1 - 1 / factor)
    first = blended[0]
    original = round((low + unscaled_share[first] * (high - low)) * wavelengths[first])
    expected = np.clip((original / wavelengths - low) / (high - low), 0, 1)
    if not np.allclose(unscaled_share, expected, atol=1e-3):
        raise unexplained
    return {
        "rope_type": "llama3",
        "factor": round(float(factor), 4),
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }


def read_tensors(file: GGUFFile) -> Iterator[tuple[str, np.ndarray]]:
    """Yield every weight with its name in a Hugging Face checkpoint, dequantised to float32, one
    tensor at a time.
    """
    query_heads = file.hyperparameter("attention.head_count")
    key_heads = file.hyperparameter("attention.head_count_kv", query_heads)
    num_heads = {"attn_q": query_heads, "attn_k": key_heads}
    for name in file.tensors:
        if name == ROPE_FREQS:
            continue  # part of the configuration
        weight = read_tensor(file, name)
        kind = name.split(".")[-2] if "." in name else name
        reordered = kind in num_heads and file.architecture in REORDERED_ARCHITECTURES
        if reordered and len(weight) % (2 * num_heads[kind]) == 0:  # else the loader names it
            weight = split_halves(weight, num_heads[kind])
        yield tensor_name(name), weight


def tensor_name(name: str) -> str:
    """Return the Hugging Face name of a GGUF tensor ("blk.3.attn_q.weight"); unknown names stay."""
    *block, kind, suffix = name.split(".") if "." in name else (name, "")
    if kind not in TENSOR_NAMES:
        return name
    prefix = f"model.layers.{block[1]}." if len(block) == 2 else ""
    return f"{prefix}{TENSOR_NAMES[kind]}.{suffix}"


def split_halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """Undo llama.cpp's reordering of the rows of q and k, [heads * head_dim, ...] -> same shape.

    GGUF puts the two rows that rotary embedding turns together next to each other (2i, 2i + 1);
    Hugging Face keeps them half a head apart (i, i + head_dim / 2).
    """
    pairs = weight.reshape(heads, len(weight) // heads // 2, 2, *weight.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(weight.shape)
