"""Write a tuned model as a checkpoint of its own: the adapter merged into the weights.

Everything is computed in float32 and rounded once, to the dtype of the file. Rounding can cost more
than it seems: an update smaller than a step of bfloat16 at its weight disappears, and a scaled-down
adapter is small everywhere. `update_lost` says how much.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from llama.atomic_files import flush_to_disk, usual_permissions
from llama.checkpoint_files import CHAT_TEMPLATE, read_chat_template, read_json
from llama.finite import non_finite_error
from llama.hub import TOKENIZER_FILES
from llama.model import Decoder
from llama.weights import WEIGHTS_FILE, load_model, stored_tensors
from lora.adapter import load_adapter
from lora.inject import lora_layers, merge_lora, set_lora_scale

CONFIG_FILE = "config.json"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
STORED_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}  # safetensors' names
# The largest logit difference that rounding to a dtype, or to a type of GGUF, explains, as a share
# of the largest logit.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1, "float16": 0.02}
TOLERANCE |= {"F32": 1e-4, "BF16": 0.1, "F16": 0.02, "Q8_0": 0.1}
LOST_TOO_MUCH = 0.5  # of the update, by rounding the merged weights
PROBED_POSITIONS = 32  # the last ones of each prompt


@dataclass(frozen=True)
class Comparison:
    """The distance of a written checkpoint's logits from the unmerged model's."""

    largest_difference: float
    largest_logit: float
    positions: int

    def is_broken(self, dtype: str) -> bool:
        """True if rounding to `dtype` does not explain the difference; NaN is never explained."""
        return not self.largest_difference <= TOLERANCE[dtype] * self.largest_logit


def stored_dtype(source: Path) -> str:
    """The dtype in which most of a checkpoint's numbers are stored; float32 if it is quantised."""
    sizes: dict[str, int] = {}
    for tensor in stored_tensors(source):
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.nbytes
    largest = max(sizes, key=lambda dtype: sizes[dtype])
    return STORED_DTYPES.get(largest, "float32")


def load_tuned(model: str, adapter: Path | None, scale: float) -> Decoder:
    """The model in float32 with its adapter beside the weights, not merged."""
    decoder = load_model(model, dtype="float32")
    if adapter:
        load_adapter(decoder, adapter)
        set_lora_scale(decoder, scale)
    return decoder


@torch.inference_mode()
def probe_logits(model: Decoder, prompts: Sequence[Sequence[int]]) -> list[Tensor]:
    """The logits [positions, V] behind the last tokens of each prompt.

    UserError, with the first layer where that happens, if they are not finite.
    """
    logits = []
    for index, prompt in enumerate(prompts):
        hidden_states = model(torch.tensor([list(prompt)]))  # [1, T, E]
        own = model.logits(hidden_states[0, -PROBED_POSITIONS:])
        if not own.isfinite().all():
            raise non_finite_error(model, prompt, f"prompt {index + 1} of the check", "the logits")
        logits.append(own)
    return logits


def compare_logits(expected: Sequence[Tensor], found: Sequence[Tensor]) -> Comparison:
    """The largest difference between two models' logits at the same positions."""
    differences = []
    for before, after in zip(expected, found, strict=True):
        differences.append((before.double() - after.double()).abs().max())
    return Comparison(
        largest_difference=float(torch.stack(differences).max()),
        largest_logit=max(float(logits.abs().max()) for logits in expected),
        positions=sum(len(logits) for logits in expected),
    )


@torch.inference_mode()
def update_lost(model: Decoder, dtype: str) -> float:
    """The share of the adapter's update that rounding the merged weights to `dtype` takes away.

    ||round(W + D) - (W + D)|| / ||D|| over all adapted weights W with updates D; 0 in float32, 1
    and more where the update drowns.
    """
    error = norm = 0.0
    for _, layer in lora_layers(model):
        update = layer.scaling * (layer.lora_B @ layer.lora_A)
        merged = layer.weight + update
        error += float(
            (merged.to(DTYPES[dtype]).float() - merged).square().sum(dtype=torch.float64)
        )
        norm += float(update.square().sum(dtype=torch.float64))
    return (error / norm) ** 0.5 if norm else 0.0


def merge_unless_lost(model: Decoder) -> bool:
    """Merge the adapter into the weights, if their dtype is fine enough; tell if it was done.

    Of a weak adapter, or a strong one scaled down, bfloat16 would keep little but rounding noise.
    It stays apart then, which is exact and costs some speed.
    """
    dtype = str(model.dtype).removeprefix("torch.")
    if model.dtype != torch.float32 and update_lost(model, dtype) > LOST_TOO_MUCH:
        return False
    merge_lora(model)
    return True


def write_checkpoint(model: Decoder, base: Path, folder: Path, dtype: str) -> None:
    """Write the weights of `model`, its config and the tokenizer files of `base` into `folder`.

    `base` is a checkpoint folder or a GGUF file.
    """
    tensors = {}
    for name, parameter in model.named_parameters():  # tied weights once
        tensors[name] = parameter.detach().to(DTYPES[dtype]).contiguous()
    with usual_permissions(folder / WEIGHTS_FILE):
        save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    _write_json(folder / CONFIG_FILE, _config(model, base, "lm_head.weight" not in tensors, dtype))
    for name in TOKENIZER_FILES:
        if base.is_dir():
            if name != CONFIG_FILE and (base / name).is_file():
                shutil.copyfile(base / name, folder / name)
        elif name not in (CONFIG_FILE, CHAT_TEMPLATE):
            content = read_json(base, name)
            if content is not None:
                _write_json(folder / name, content)
    template = read_chat_template(base)
    if template is not None:
        (folder / CHAT_TEMPLATE).write_text(template, encoding="utf-8")
    for path in (*folder.iterdir(), folder):
        flush_to_disk(path)


def _config(model: Decoder, base: Path, tied: bool, dtype: str) -> dict[str, Any]:
    """The base's config.json, or for a GGUF file one with the same ids as its generation config."""
    if base.is_dir():
        config = read_json(base, CONFIG_FILE, required=True) or {}
    else:
        config = model.config.to_dict() | (read_json(base, "generation_config.json") or {})
    config["tie_word_embeddings"] = tied
    config["torch_dtype"] = dtype  # transformers before 4.56
    config["dtype"] = dtype
    return config


def _write_json(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8")
