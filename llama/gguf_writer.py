"""Write a model as a GGUF file, which llama.cpp runs: the counterpart of `llama.gguf_model`.

Matrices are stored in the type that is asked for, vectors in float32, as llama.cpp's converter
does. The package `gguf` writes the format and quantises.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llama.checkpoint_files import read_chat_template, read_json
from llama.config import ModelConfig
from llama.errors import UserError
from llama.gguf import gguf_package
from llama.gguf_model import ARCHITECTURES, REORDERED_ARCHITECTURES, ROPE_FREQS, SIZES, TENSOR_NAMES
from llama.gguf_tokenizer import CONTROL, END_TOKENS, PRE_TOKENIZERS, SPECIAL_TOKENS, USER_DEFINED
from llama.model import Decoder
from llama.rope import inverse_frequencies
from llama.tokenizer import load_tokenizer

TYPES = ("F32", "F16", "BF16", "Q8_0")
Q8_BLOCK = 32  # numbers that share a scale; a matrix with other rows is stored as F16
NORMAL, UNUSED = 1, 5  # GGUF's token types, beside CONTROL and USER_DEFINED
GGUF_NAMES = {name: kind for kind, name in TENSOR_NAMES.items()}


def write_gguf(model: Decoder, source: Path, path: Path, kind: str, name: str) -> None:
    """Write `model` (float32, on the CPU) to `path` with the tokenizer files of `source`.

    `kind` is one of TYPES, `name` the model's title. UserError for a family or a tokenizer that
    llama.cpp has no name for, and without the package gguf.
    """
    package = gguf_package()
    config = model.config
    writer = package.GGUFWriter(path, _architecture(config), use_temp_file=False)
    writer.add_name(name)
    writer.add_file_type(_file_type(package, kind))
    _add_hyperparameters(writer, config)
    _add_tokenizer(writer, source, config.vocab_size)
    tensors = dict(_named_tensors(model))
    types = {name: _stored_type(package, tensor, kind) for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        nbytes = _stored_size(package, tensor, types[name])
        shape = tuple(tensor.shape)
        writer.add_tensor_info(name, shape, np.dtype(np.float32), nbytes, types[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, tensor in tensors.items():
        writer.write_tensor_data(_stored(package, tensor, types[name]))
    writer.close()


def check_writable(config: ModelConfig, source: Path) -> None:
    """UserError for what `write_gguf` would refuse, before any work is done."""
    gguf_package()
    _architecture(config)
    layers = config.no_rope_layers or ()
    if layers != tuple(int((layer + 1) % 4 != 0) for layer in range(len(layers))):
        raise UserError("no_rope_layers: llama.cpp leaves out every fourth layer and no others")
    _pre_tokenizer_name(read_json(source, "tokenizer.json", required=True) or {}, source)


def _architecture(config: ModelConfig) -> str:
    """llama.cpp's name of the family; Mistral without a window is a Llama there too."""
    model_type = "llama" if config.model_type == "mistral" else config.model_type
    for architecture, reads_as in ARCHITECTURES.items():
        if reads_as == model_type:
            return architecture
    raise UserError(f"model_type = {config.model_type!r}: no GGUF is written for this family")


def _file_type(package: Any, kind: str) -> int:
    """The number that the metadata names the quantisation of most tensors by."""
    names = {"F32": "ALL_F32", "F16": "MOSTLY_F16", "BF16": "MOSTLY_BF16", "Q8_0": "MOSTLY_Q8_0"}
    return int(package.LlamaFileType[names[kind]])


def _add_hyperparameters(writer: Any, config: ModelConfig) -> None:
    values = {
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": float(config.rms_norm_eps),
        "rope_theta": float(config.rope.theta),
    }
    for field, value in values.items():
        key = f"{writer.arch}.{SIZES[field]}"
        if isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_uint32(key, value)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)


def _add_tokenizer(writer: Any, source: Path, vocab_size: int) -> None:
    raw = read_json(source, "tokenizer.json", required=True) or {}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_pre_tokenizer_name(raw, source))
    tokens, types = _vocabulary(raw, vocab_size)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    merges = raw["model"]["merges"]
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in merges])
    for key, index in _special_ids(source, tokens).items():
        writer.add_uint32(f"tokenizer.ggml.{key}", index)
    before, behind = _frame(raw.get("post_processor"))
    writer.add_add_bos_token(before)
    writer.add_add_eos_token(behind)
    template = read_chat_template(source)
    if template is None:
        template = (read_json(source, "tokenizer_config.json") or {}).get("chat_template")
    if isinstance(template, str):
        writer.add_chat_template(template)


def _vocabulary(raw: dict[str, Any], size: int) -> tuple[list[str], list[int]]:
    """Tokens and their types by id; rows of the embedding without a token are filled up."""
    tokens = [f"[PAD{index}]" for index in range(size)]
    types = [UNUSED] * size
    for token, index in raw["model"]["vocab"].items():
        tokens[index], types[index] = token, NORMAL
    for added in raw.get("added_tokens") or []:
        index = added["id"]
        tokens[index] = added["content"]
        types[index] = CONTROL if added["special"] else USER_DEFINED
    return tokens, types


def _special_ids(source: Path, tokens: list[str]) -> dict[str, int]:
    """Ids by GGUF's names: of what begins, ends and pads a text.

    UserError for more end tokens than the format has names for.
    """
    config = read_json(source, "tokenizer_config.json") or {}
    ids = {}
    for name, key in SPECIAL_TOKENS.items():
        token = config.get(name)
        text = token.get("content") if isinstance(token, dict) else token
        if text in tokens:
            ids[key] = tokens.index(text)
    tokenizer = load_tokenizer(source)
    ids["eos_token_id"] = tokenizer.end_id
    others = sorted(tokenizer.stop_ids - {tokenizer.end_id})
    keys = [key for key in END_TOKENS if key != "eos_token_id"]
    if len(others) > len(keys):
        raise UserError(
            f"{source}: {len(tokenizer.stop_ids)} end tokens, but a GGUF file names at most "
            f"{len(END_TOKENS)}"
        )
    # Llama 3's end of a message to a tool goes under its own name, whatever the order of the ids.
    others.sort(key=lambda index: "eom" in tokens[index])
    return ids | dict(zip(keys, others, strict=False))


def _frame(processor: dict[str, Any] | None) -> tuple[bool, bool]:
    """True for a token put before, and for one put behind, a text that is no chat."""
    if not processor:
        return False, False
    if processor.get("type") == "Sequence":
        frames = [_frame(part) for part in processor["processors"]]
        return any(before for before, _ in frames), any(behind for _, behind in frames)
    if processor.get("type") != "TemplateProcessing":
        return False, False
    kinds = [next(iter(piece)) for piece in processor["single"]]
    return kinds[0] == "SpecialToken", kinds[-1] == "SpecialToken"


def _pre_tokenizer_name(raw: dict[str, Any], source: Path) -> str:
    """llama.cpp's name for how this tokenizer splits text. UserError if it has none."""
    model = raw.get("model")
    kind = model.get("type") if isinstance(model, dict) else None
    found = _splitting(raw.get("pre_tokenizer"))
    for name, known in PRE_TOKENIZERS.items():
        if kind == "BPE" and found == _splitting(known):
            return name
    raise UserError(
        f"{source}: its tokenizer splits text in a way that no GGUF name known here stands for "
        f"({', '.join(PRE_TOKENIZERS)})"
    )


def _splitting(pre_tokenizer: Any) -> Any:
    """A pre-tokenizer without the fields that change no tokens."""
    if isinstance(pre_tokenizer, dict):
        fields = sorted(pre_tokenizer.items())
        return {key: _splitting(value) for key, value in fields if key != "trim_offsets"}
    if isinstance(pre_tokenizer, list):
        return [_splitting(part) for part in pre_tokenizer]
    return pre_tokenizer


def _named_tensors(model: Decoder) -> Iterator[tuple[str, Tensor]]:
    """Every tensor under its name in GGUF, with q and k in the order that llama.cpp rotates."""
    config = model.config
    reordered = _architecture(config) in REORDERED_ARCHITECTURES
    num_heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    if config.rope.rope_type != "default":
        yield ROPE_FREQS, _frequency_divisors(config)
    for name, parameter in model.named_parameters():  # tied weights once
        tensor = parameter.detach()
        module, suffix = name.rpartition(".")[::2]
        last = module.rpartition(".")[2]
        if reordered and last in num_heads:
            tensor = _neighbouring_halves(tensor, num_heads[last])
        if module.startswith("model.layers."):
            layer, part = module.removeprefix("model.layers.").split(".", 1)
            yield f"blk.{layer}.{GGUF_NAMES[part]}.{suffix}", tensor
        else:
            yield f"{GGUF_NAMES[module]}.{suffix}", tensor


def _neighbouring_halves(tensor: Tensor, heads: int) -> Tensor:
    """Put the rows i and i + head_dim / 2 of every head next to each other; see `split_halves`."""
    halves = tensor.view(heads, 2, -1, *tensor.shape[1:])
    return halves.transpose(1, 2).reshape(tensor.shape)


def _frequency_divisors(config: ModelConfig) -> Tensor:
    """The divisors [head_dim / 2] that Llama 3's scaling applies to the rotary frequencies."""
    dimensions = torch.arange(0, config.head_dim, 2).float() / config.head_dim
    unscaled = 1.0 / config.rope.theta**dimensions
    return unscaled / inverse_frequencies(config)


def _stored_type(package: Any, tensor: Tensor, kind: str) -> Any:
    types = package.GGMLQuantizationType
    if tensor.dim() == 1:
        return types.F32
    if kind == "Q8_0" and tensor.shape[-1] % Q8_BLOCK:
        return types.F16
    return types[kind]


def _stored_size(package: Any, tensor: Tensor, stored_type: Any) -> int:
    block_size, block_nbytes = package.GGML_QUANT_SIZES[stored_type]
    return tensor.numel() // block_size * block_nbytes


def _stored(package: Any, tensor: Tensor, stored_type: Any) -> np.ndarray:
    return package.quantize(tensor.float().contiguous().numpy(), stored_type)
