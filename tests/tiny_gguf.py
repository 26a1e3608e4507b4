"""GGUF files of tiny models, written as llama.cpp's converter writes them."""

from pathlib import Path

import gguf
import numpy as np
import torch
from tokenizers import pre_tokenizers

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGED_TOKENS = ["12", "ab", "Ġab", "ĠĠ", "123"]
MERGES = ["1 2", "a b", "Ġ ab", "Ġ Ġ", "12 3"]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['content'] + '<|im_end|>' }}"
    "{% endfor %}"
)


def tiny_vocabulary(size: int | None = None) -> list[str]:
    """Special tokens, the 256 bytes and a few merged tokens; filled up to `size` as llama.cpp
    does.
    """
    tokens = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet()), *MERGED_TOKENS]
    size = size or len(tokens)
    return tokens + [f"[PAD{index}]" for index in range(len(tokens), size)]


def save_gguf(
    model: torch.nn.Module,
    path: Path,
    architecture: str = "llama",
    pre_tokenizer: str = "smollm",
    quantisation: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    metadata: dict | None = None,
    tensors: dict[str, np.ndarray] | None = None,
) -> Path:
    """Write a transformers model and the tiny vocabulary. `metadata` (None: left out) and `tensors`
    change what is written.
    """
    config = model.config
    fields = {f"{architecture}.{name}": value for name, value in _hyperparameters(config).items()}
    fields |= _tokenizer_fields(config, pre_tokenizer) | (metadata or {})
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in fields.items():
        if value is not None:
            kind = gguf.GGUFValueType.get_type(value)
            if kind == gguf.GGUFValueType.INT32:
                kind = gguf.GGUFValueType.UINT32
            writer.add_key_value(name, value, kind)
    for name, weight in (_weights(model, architecture) | (tensors or {})).items():
        if weight.ndim == 2 and quantisation != gguf.GGMLQuantizationType.F32:
            data = gguf.quantize(weight, quantisation)
            writer.add_tensor(name, data, raw_dtype=quantisation)
        else:
            writer.add_tensor(name, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _hyperparameters(config) -> dict:
    head_dim = getattr(config, "head_dim", None)
    head_dim = head_dim or config.hidden_size // config.num_attention_heads
    return {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.dimension_count": head_dim,
        "rope.freq_base": float(config.rope_parameters["rope_theta"]),
    }


def _tokenizer_fields(config, pre_tokenizer: str) -> dict:
    tokens = tiny_vocabulary(config.vocab_size)
    merged = len(tiny_vocabulary())
    types = [3] * 3 + [1] * (merged - 3) + [5] * (len(tokens) - merged)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre_tokenizer,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }


def _weights(model: torch.nn.Module, architecture: str) -> dict[str, np.ndarray]:
    config = model.config
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(kinds[architecture], config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    weights = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        layer = name.split(".")[-2]
        if layer in heads and architecture in ("llama", "smollm3"):
            # convert_hf_to_gguf.py makes the halves of a head neighbouring rows.
            halves = tensor.reshape(heads[layer], 2, -1, *tensor.shape[1:])
            tensor = halves.transpose(1, 2).reshape(tensor.shape)
        weights[names.get_name(name, (".weight", ".bias"))] = tensor.contiguous().numpy()
    rope = config.rope_parameters
    if rope["rope_type"] == "llama3":
        weights["rope_freqs.weight"] = _rope_divisors(config, rope)
    return weights


def _rope_divisors(config, rope: dict) -> np.ndarray:
    """The factor that each rotary frequency is divided by, from transformers' own frequencies."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    dimensions = torch.arange(0, 2 * len(scaled), 2).float() / (2 * len(scaled))
    return (rope["rope_theta"] ** -dimensions / scaled).numpy()
