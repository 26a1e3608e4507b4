"""Adapter files of PEFT, read and written: adapter_config.json, adapter_model.safetensors."""

import hashlib
import json
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from llama.atomic_files import atomic_write
from llama.errors import UserError
from llama.json_files import read_json_object, read_number
from llama.model import Decoder
from lora.inject import block_linears, inject_lora, lora_layers, matching
from lora.layer import LoRAConfig

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."  # PEFT's wrapper around the wrapped model
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

# Fields of PEFT's LoraConfig that may hold anything: those read here, those that only say where the
# adapter comes from, those without effect on their own, and those without effect unless
# init_lora_weights names them. Whatever else is set would change the result.
READ_HERE = {"r", "target_modules", "lora_alpha", "lora_dropout"}
ORIGIN = {
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "peft_version",
    "revision",
    "task_type",
}
DEPENDENT = {"layers_pattern", "megatron_core", "qalora_group_size", "runtime_config"}
DEPENDENT |= {"loftq_config", "eva_config", "corda_config", "lora_ga_config"}
HARMLESS = READ_HERE | ORIGIN | DEPENDENT
# Most other initialisations ("pissa", "olora", "corda", "loftq", "lora_ga") change the base
# weights: all are refused.
IMPLEMENTED = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal"),
}
MATCHING_SECONDS = 5  # of the processor, for a regular expression; PEFT's own take milliseconds
# A regular expression can backtrack for ever: a process of its own can be stopped.
MATCH = """
import json, re, signal, sys
pattern, names, seconds = json.load(sys.stdin)
if hasattr(signal, "setitimer"):
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, seconds)
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
except ImportError:  # Windows: the time is bounded, the memory is not
    pass
try:
    matched = [name for name in names if re.fullmatch(pattern, name)]
except (re.error, OverflowError, RecursionError, MemoryError) as error:
    sys.exit(str(error) or type(error).__name__)
print(json.dumps(matched))
"""


def save_adapter(model: Decoder, folder: str | Path, base_model: str | None = None) -> None:
    """Write the LoRA layers of `model` for PEFT and `load_adapter`; each file atomically.

    `base_model` is noted as the model they belong to. Equal adapters give equal files. UserError if
    there are none, or if the files cannot be written.
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
    with atomic_write(folder / WEIGHTS_FILE) as path:
        save_file(tensors, path, metadata={"format": "pt"})
    with atomic_write(folder / CONFIG_FILE) as path:
        path.write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")


def load_adapter(model: Decoder, folder: str | Path) -> None:
    """Inject the adapter at `folder` into `model`, or load it into LoRA layers that agree with it.

    Raises UserError for files that are missing or broken and for PEFT settings that are not
    implemented, and one UserError listing every missing, unexpected, misshapen or non-finite
    tensor. After an error the model has no LoRA layers it did not have before.
    """
    config_path, weights_path = _adapter_files(folder)
    raw = read_json_object(config_path)
    try:
        tensors = {_module_key(key): tensor for key, tensor in load_file(weights_path).items()}
    except SafetensorError as error:
        raise UserError(f"{weights_path}: not a readable safetensors file ({error})") from None
    try:
        config = _read_config(raw, model)
        shapes = _expected_shapes(model, config)
    except UserError as error:
        raise UserError(f"{config_path}: {error}") from None
    if problems := _misfits(tensors, shapes, config):
        raise UserError(f"{folder}: the adapter does not fit this model: " + "; ".join(problems))
    _inject_or_compare(model, config, shapes, folder)
    load_adapter_state(model, tensors)


def _misfits(
    tensors: dict[str, Tensor], shapes: dict[str, list[int]], config: LoRAConfig
) -> list[str]:
    """Say what is wrong with each tensor that is not as `shapes` ask for."""
    problems = [f"missing {name}" for name in shapes if name not in tensors]
    for name, tensor in tensors.items():
        if name not in shapes:
            problems.append(f"unexpected {name} {list(tensor.shape)}")
        elif list(tensor.shape) != shapes[name]:
            problems.append(
                f"{name} is {list(tensor.shape)}, model and rank {config.rank} ask for "
                f"{shapes[name]}"
            )
        elif tensor.dtype not in FLOATS:
            problems.append(f"{name} holds {str(tensor.dtype).removeprefix('torch.')}")
        elif not tensor.isfinite().all():
            problems.append(f"{name} holds values that are not finite")
    return problems


def _inject_or_compare(
    model: Decoder, config: LoRAConfig, shapes: dict[str, list[int]], folder: str | Path
) -> None:
    """Inject LoRA layers, or raise UserError if those that are there are others."""
    existing = [layer.config for _, layer in lora_layers(model)]
    if not existing:
        inject_lora(model, config)
        return
    if (existing[0].rank, existing[0].alpha) != (config.rank, config.alpha):
        raise UserError(
            f"{folder}: the adapter has rank {config.rank} and alpha {config.alpha}, "
            f"the model's LoRA layers {existing[0].rank} and {existing[0].alpha}"
        )
    if different := sorted(shapes.keys() ^ adapter_state(model).keys()):
        raise UserError(
            f"{folder}: the adapter has other target_modules than the model: {different[0]}, ..."
        )


def adapter_state(model: Decoder) -> dict[str, Tensor]:
    """The trained tensors, detached, by name.

    `<module>.lora_A.weight` [rank, in] and `<module>.lora_B.weight` [out, rank].
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
    content = b"".join(path.read_bytes() for path in _adapter_files(folder))
    return hashlib.sha256(content).hexdigest()[:12]


def is_adapter(folder: str | Path) -> bool:
    """True if both files of an adapter are in `folder`."""
    return all((Path(folder) / name).is_file() for name in (CONFIG_FILE, WEIGHTS_FILE))


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
    """The configuration in PEFT's words. UserError names what is missing or not implemented."""
    unsupported = []
    for name, known in IMPLEMENTED.items():
        if raw.get(name, known[0]) not in known:
            unsupported.append(name)
    for name, value in raw.items():
        if name not in HARMLESS and name not in IMPLEMENTED and not _is_unset(value):
            unsupported.append(name)
    if unsupported:
        described = ", ".join(f"{name} = {raw[name]!r}" for name in unsupported)
        raise UserError(f"not supported: {described}")
    missing = [name for name in ("r", "lora_alpha", "target_modules") if raw.get(name) is None]
    if missing:
        raise UserError("lacks " + ", ".join(missing))
    dropout = 0.0
    if raw.get("lora_dropout") not in (None, 0):
        dropout = read_number(raw, "lora_dropout", float)
    targets = _read_targets(raw["target_modules"], model)
    rank, alpha = read_number(raw, "r", int), read_number(raw, "lora_alpha", float)
    return LoRAConfig(rank, alpha, dropout, targets)


def _is_unset(value: Any) -> bool:
    """True for null, false and empty; zero is a setting (`layers_to_transform` 0: layer one)."""
    return value is None or value is False or value in ("", [], {})


def _read_targets(targets: Any, model: Decoder) -> tuple[str, ...]:
    """The linears meant by a list of names, the word all-linear, or a regular expression.

    As in PEFT, a name in a list that this model has no linear for counts for nothing, as long as
    there is another: one list of names serves several families. A regular expression has to match
    a module's full name.
    """
    linears = list(block_linears(model))
    if isinstance(targets, list) and all(isinstance(target, str) for target in targets):
        found = [target for target in targets if matching(linears, [target])]
        return tuple(sorted(found or targets))  # inject_lora refuses names that match nothing
    if not isinstance(targets, str):
        raise UserError(
            f"target_modules = {targets!r}: expected a list of names or a regular expression"
        )
    if targets == "all-linear":
        return tuple(linears)
    matched = _match_within_time(targets, linears)
    if not matched:
        raise UserError(f"target_modules = {targets!r} matches no linear of the decoder")
    return tuple(matched)


def _match_within_time(pattern: str, names: Sequence[str]) -> list[str]:
    """The names that the whole pattern matches. UserError if it is broken or takes too long.

    Only seconds of the processor count, so that a busy machine takes none of the time; on Windows
    all do.
    """
    counts_itself = hasattr(signal, "setitimer")
    too_long = UserError(
        f"target_modules = {pattern!r:.200}: this regular expression takes more than "
        f"{MATCHING_SECONDS} seconds to match"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", MATCH],
            input=json.dumps([pattern, list(names), MATCHING_SECONDS]),
            capture_output=True,
            text=True,
            timeout=None if counts_itself else MATCHING_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise too_long from None
    if counts_itself and done.returncode == -signal.SIGPROF:
        raise too_long
    if done.returncode:
        reason = " ".join(done.stderr.split())
        raise UserError(f"target_modules = {pattern!r:.200}: broken regular expression ({reason})")
    return json.loads(done.stdout)
