"""Adapter files as PEFT writes them: `adapter_config.json` and `adapter_model.safetensors`, both directions."""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llama.files import read_json_object
from llama.model import Decoder
from lora.inject import inject_lora, lora_layers
from lora.layer import LoRAConfig

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."  # PEFT's wrapper around the wrapped model


def save_adapter(model: Decoder, folder: str | Path, base_model: str | None = None) -> None:
    """Write the LoRA layers of `model` so that PEFT, and `load_adapter`, can read them; each file atomically.

    `base_model` is noted as the model they belong to. ValueError if the model has none.
    """
    layers = dict(lora_layers(model))
    if not layers:
        raise ValueError("the model has no LoRA layers to save")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = next(iter(layers.values())).config
    raw = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": list(config.target_modules),
        "bias": "none",
        "inference_mode": True,
    }
    tensors = {PREFIX + name: tensor for name, tensor in adapter_state(model).items()}
    partial = folder / (WEIGHTS_FILE + ".partial")
    save_file(tensors, partial, metadata={"format": "pt"})
    os.replace(partial, folder / WEIGHTS_FILE)
    partial = folder / (CONFIG_FILE + ".partial")
    partial.write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, folder / CONFIG_FILE)


def load_adapter(model: Decoder, folder: str | Path) -> None:
    """Inject the adapter at `folder` into `model`, or load it into LoRA layers that are there and agree.

    Raises ValueError for files that are missing or broken and for PEFT settings that are not implemented, and one
    ValueError listing every missing, unexpected or misshapen tensor, in which case the model is left without LoRA
    layers it did not have before.
    """
    folder = Path(folder)
    raw = read_json_object(folder / CONFIG_FILE)
    try:
        tensors = {_module_key(key): tensor for key, tensor in load_file(folder / WEIGHTS_FILE).items()}
    except (SafetensorError, FileNotFoundError) as error:
        raise ValueError(f"{folder / WEIGHTS_FILE}: not a readable safetensors file ({error})") from None
    config = _read_config(folder / CONFIG_FILE, raw, model)
    wanted = _expected_shapes(model, config)
    problems = [f"missing {name}" for name in wanted if name not in tensors]
    for name, tensor in tensors.items():
        if name not in wanted:
            problems.append(f"unexpected {name} {list(tensor.shape)}")
        elif list(tensor.shape) != wanted[name]:
            problems.append(f"{name} is {list(tensor.shape)}, model and rank {config.rank} ask for {wanted[name]}")
    if problems:
        raise ValueError(f"{folder}: the adapter does not fit this model: " + "; ".join(problems))
    existing = [layer.config for _, layer in lora_layers(model)]
    if not existing:
        inject_lora(model, config)
    elif (existing[0].rank, existing[0].alpha) != (config.rank, config.alpha):
        raise ValueError(
            f"{folder}: the adapter has rank {config.rank} and alpha {config.alpha}, "
            f"the model's LoRA layers {existing[0].rank} and {existing[0].alpha}"
        )
    load_adapter_state(model, tensors)


def adapter_state(model: Decoder) -> dict[str, Tensor]:
    """The trained tensors, detached: `<module>.lora_A.weight` [rank, in] and `<module>.lora_B.weight` [out, rank]."""
    state = {}
    for name, layer in lora_layers(model):
        state[f"{name}.lora_A.weight"] = layer.lora_A.detach()
        state[f"{name}.lora_B.weight"] = layer.lora_B.detach()
    return state


@torch.no_grad()
def load_adapter_state(model: Decoder, state: dict[str, Tensor]) -> None:
    """Copy tensors named as in `adapter_state` into the LoRA layers."""
    for name, layer in lora_layers(model):
        layer.lora_A.copy_(state[f"{name}.lora_A.weight"])
        layer.lora_B.copy_(state[f"{name}.lora_B.weight"])


def adapter_fingerprint(folder: str | Path) -> str:
    """The first 12 hexadecimal digits of the weight file's SHA-256: tells adapters apart in summaries."""
    return hashlib.sha256((Path(folder) / WEIGHTS_FILE).read_bytes()).hexdigest()[:12]


def _module_key(key: str) -> str:
    """PEFT's key without its wrapper; an adapter name between lora_A and weight is dropped."""
    return re.sub(r"\.(lora_[AB])\.[^.]+\.weight$", r".\1.weight", key.removeprefix(PREFIX))


def _expected_shapes(model: Decoder, config: LoRAConfig) -> dict[str, list[int]]:
    """Names and shapes of an adapter with this configuration, found without touching the model."""
    with torch.device("meta"):
        skeleton = Decoder(model.config)
    inject_lora(skeleton, config)
    return {name: list(tensor.shape) for name, tensor in adapter_state(skeleton).items()}


def _read_config(path: Path, raw: dict[str, Any], model: Decoder) -> LoRAConfig:
    neutral = {"peft_type": "LORA", "bias": "none", "use_dora": False, "use_rslora": False, "fan_in_fan_out": False}
    empty = ("rank_pattern", "alpha_pattern", "modules_to_save", "layers_to_transform", "exclude_modules")
    unsupported = [f"{name} = {raw[name]!r}" for name in neutral if raw.get(name, neutral[name]) != neutral[name]]
    unsupported += [f"{name} = {raw[name]!r}" for name in empty if raw.get(name)]
    if unsupported:
        raise ValueError(f"{path}: not supported: " + ", ".join(unsupported))
    missing = [name for name in ("r", "lora_alpha", "target_modules") if raw.get(name) is None]
    if missing:
        raise ValueError(f"{path}: lacks " + ", ".join(missing))
    try:
        targets = _read_targets(raw["target_modules"], model)
        return LoRAConfig(int(raw["r"]), float(raw["lora_alpha"]), float(raw.get("lora_dropout") or 0.0), targets)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None


def _read_targets(targets: str | list[str], model: Decoder) -> tuple[str, ...]:
    """PEFT allows a list of names, the word all-linear, or a regular expression over full module names."""
    if not isinstance(targets, str):
        return tuple(sorted(targets))
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name != "lm_head"]
    if targets == "all-linear":
        return tuple(linears)
    matched = tuple(name for name in linears if re.fullmatch(targets, name))
    if not matched:
        raise ValueError(f"target_modules = {targets!r} matches no linear of the decoder")
    return matched
