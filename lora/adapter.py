"""Adapter files as PEFT writes them: `adapter_config.json` and `adapter_model.safetensors`, both
directions.
"""

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

from llama.errors import UserError
from llama.json_files import read_json_object, read_number
from llama.model import Decoder
from lora.checkpoint import flush
from lora.inject import inject_lora, lora_layers
from lora.layer import LoRAConfig

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."  # PEFT's wrapper around the wrapped model

# The fields of PEFT's LoraConfig that may hold anything; whatever else is set would change the
# result.
HARMLESS = {
    *("r", "target_modules", "lora_alpha", "lora_dropout"),  # read here
    *(
        "auto_mapping",
        "base_model_name_or_path",
        "inference_mode",
        "peft_version",
        "revision",
        "task_type",
    ),
    *(
        "layers_pattern",
        "megatron_core",
        "qalora_group_size",
        "runtime_config",
    ),  # without effect on their own,
    *(
        "loftq_config",
        "eva_config",
        "corda_config",
        "lora_ga_config",
    ),  # these without their init_lora_weights
}
# Most other initialisations ("pissa", "olora", "corda", "loftq", "lora_ga") change the base
# weights: all are refused.
IMPLEMENTED = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal"),
}


def save_adapter(model: Decoder, folder: str | Path, base_model: str | None = None) -> None:
    """Write the LoRA layers of `model` so that PEFT, and `load_adapter`, can read them; each file
    atomically.

    `base_model` is noted as the model they belong to. Equal adapters give equal files. UserError if
    there are none.
    """
    layers = dict(lora_layers(model))
    if not layers:
        raise UserError("the model has no LoRA layers to save")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = next(iter(layers.values())).config
    raw = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": config.rank,
        "lora_alpha": float(config.alpha),
        "lora_dropout": float(config.dropout),
        "target_modules": sorted(config.target_modules),
        "bias": "none",
        "inference_mode": True,
    }
    tensors = {PREFIX + name: tensor for name, tensor in adapter_state(model).items()}
    partial = folder / (WEIGHTS_FILE + ".partial")
    save_file(tensors, partial, metadata={"format": "pt"})
    flush(partial)
    os.replace(partial, folder / WEIGHTS_FILE)
    partial = folder / (CONFIG_FILE + ".partial")
    partial.write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")
    flush(partial)
    os.replace(partial, folder / CONFIG_FILE)
    flush(folder)


def load_adapter(model: Decoder, folder: str | Path) -> None:
    """Inject the adapter at `folder` into `model`, or load it into LoRA layers that are there and
    agree.

    Raises UserError for files that are missing or broken and for PEFT settings that are not
    implemented, and one UserError listing every missing, unexpected or misshapen tensor, in which
    case the model is left without LoRA layers it did not have before.
    """
    config_path, weights_path = _adapter_files(folder)
    raw = read_json_object(config_path)
    try:
        tensors = {_module_key(key): tensor for key, tensor in load_file(weights_path).items()}
    except SafetensorError as error:
        raise UserError(f"{weights_path}: not a readable safetensors file ({error})") from None
    try:
        config = _read_config(raw, model)
        wanted = _expected_shapes(model, config)
    except ValueError as error:
        raise UserError(f"{config_path}: {error}") from None
    problems = [f"missing {name}" for name in wanted if name not in tensors]
    for name, tensor in tensors.items():
        if name not in wanted:
            problems.append(f"unexpected {name} {list(tensor.shape)}")
        elif list(tensor.shape) != wanted[name]:
            problems.append(
                f"{name} is {list(tensor.shape)}, model and rank {config.rank} ask for {wanted[name]}"
            )
    if problems:
        raise UserError(f"{folder}: the adapter does not fit this model: " + "; ".join(problems))
    existing = [layer.config for _, layer in lora_layers(model)]
    if not existing:
        inject_lora(model, config)
    elif (existing[0].rank, existing[0].alpha) != (config.rank, config.alpha):
        raise UserError(
            f"{folder}: the adapter has rank {config.rank} and alpha {config.alpha}, "
            f"the model's LoRA layers {existing[0].rank} and {existing[0].alpha}"
        )
    elif different := sorted(wanted.keys() ^ adapter_state(model).keys()):
        raise UserError(
            f"{folder}: the adapter has other target_modules than the model: {different[0]}, ..."
        )
    load_adapter_state(model, tensors)


def adapter_state(model: Decoder) -> dict[str, Tensor]:
    """The trained tensors, detached: `<module>.lora_A.weight` [rank, in] and
    `<module>.lora_B.weight` [out, rank].
    """
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
    """The first 12 hexadecimal digits of both files' SHA-256: tells adapters apart in summaries.

    UserError if a file is missing.
    """
    return hashlib.sha256(
        b"".join(path.read_bytes() for path in _adapter_files(folder))
    ).hexdigest()[:12]


def _adapter_files(folder: str | Path) -> tuple[Path, Path]:
    paths = Path(folder) / CONFIG_FILE, Path(folder) / WEIGHTS_FILE
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise UserError(f"{folder}: no {' / '.join(missing)}: is {folder} an adapter folder?")
    return paths


def _module_key(key: str) -> str:
    """PEFT's key without its wrapper; an adapter name between lora_A and weight is dropped."""
    return re.sub(r"\.(lora_[AB])\.[^.]+\.weight$", r".\1.weight", key.removeprefix(PREFIX))


def _expected_shapes(model: Decoder, config: LoRAConfig) -> dict[str, list[int]]:
    """Names and shapes of an adapter with this configuration, found without touching the model."""
    with torch.device("meta"):
        skeleton = Decoder(model.config)
    inject_lora(skeleton, config)
    return {name: list(tensor.shape) for name, tensor in adapter_state(skeleton).items()}


def _read_config(raw: dict[str, Any], model: Decoder) -> LoRAConfig:
    unsupported = [
        name for name, known in IMPLEMENTED.items() if raw.get(name, known[0]) not in known
    ]
    unsupported += [
        name
        for name in raw
        if name not in HARMLESS | IMPLEMENTED.keys() and not _is_unset(raw[name])
    ]
    if unsupported:
        raise UserError(
            "not supported: " + ", ".join(f"{name} = {raw[name]!r}" for name in unsupported)
        )
    missing = [name for name in ("r", "lora_alpha", "target_modules") if raw.get(name) is None]
    if missing:
        raise UserError("lacks " + ", ".join(missing))
    dropout = (
        0.0 if raw.get("lora_dropout") in (None, 0) else read_number(raw, "lora_dropout", float)
    )
    targets = _read_targets(raw["target_modules"], model)
    return LoRAConfig(
        read_number(raw, "r", int), read_number(raw, "lora_alpha", float), dropout, targets
    )


def _is_unset(value: Any) -> bool:
    """Null, false or empty; zero is a setting (`layers_to_transform` 0 is the first layer)."""
    return value is None or value is False or value in ("", [], {})


def _read_targets(targets: Any, model: Decoder) -> tuple[str, ...]:
    """PEFT allows a list of names, the word all-linear, or a regular expression over full module
    names.
    """
    if isinstance(targets, list) and all(isinstance(target, str) for target in targets):
        return tuple(sorted(targets))
    if not isinstance(targets, str):
        raise UserError(
            f"target_modules = {targets!r}: expected a list of names or a regular expression"
        )
    linears = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name != "lm_head"
    ]
    if targets == "all-linear":
        return tuple(linears)
    try:
        matched = tuple(name for name in linears if re.fullmatch(targets, name))
    except (re.error, OverflowError, RecursionError) as error:
        raise UserError(
            f"target_modules = {targets!r}: broken regular expression ({error})"
        ) from None
    if not matched:
        raise UserError(f"target_modules = {targets!r} matches no linear of the decoder")
    return matched
