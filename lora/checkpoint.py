"""Training checkpoints: folders of safetensors and JSON that appear whole or not at all."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from llama.files import read_json_object

TENSORS, VALUES = "state.safetensors", "state.json"


def save_checkpoint(folder: Path, step: int, tensors: dict[str, Tensor], values: dict[str, Any], keep: int = 2) -> Path:
    """Write `folder/step-<step>` under another name, flush it to disk, rename it; keep only the last `keep`."""
    target = folder / f"step-{step:08d}"
    partial = folder / f".{target.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial / TENSORS)
    (partial / VALUES).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    for name in (TENSORS, VALUES, "."):
        flush(partial / name)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(partial, target)
    flush(folder)
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def checkpoints(folder: Path) -> list[Path]:
    """The finished checkpoints in `folder`, oldest first."""
    return sorted(folder.glob("step-*")) if folder.is_dir() else []


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (on the CPU) and values of one checkpoint. ValueError names a file that is missing or broken."""
    values = read_json_object(path / VALUES)
    try:
        return load_file(path / TENSORS), values
    except (SafetensorError, FileNotFoundError) as error:
        raise ValueError(f"{path / TENSORS}: not a readable safetensors file ({error}); delete {path}") from None


def flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
