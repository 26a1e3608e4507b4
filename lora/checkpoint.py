"""Training checkpoints: folders of safetensors and JSON that appear whole or not at all."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from llama.errors import UserError
from llama.json_files import read_json_object

TENSORS, VALUES = "state.safetensors", "state.json"


def save_checkpoint(
    folder: Path, step: int, tensors: dict[str, Tensor], values: dict[str, Any], keep: int = 2
) -> Path:
    """Write `folder/step-<step>` under another name, flush it to disk, rename it.

    Of the others, the last `keep` stay (this one counted), and that with the lowest
    `validation_loss` in its values.
    """
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
    best = best_checkpoint(folder)
    for old in checkpoints(folder)[:-keep]:
        if old != best:
            shutil.rmtree(old)
    return target


def best_checkpoint(folder: Path) -> Path | None:
    """The checkpoint with the lowest `validation_loss` in its values, the earliest of equals; None
    if none has one.
    """
    losses = {
        path: read_json_object(path / VALUES).get("validation_loss") for path in checkpoints(folder)
    }
    return min(
        (path for path in losses if losses[path] is not None), key=losses.__getitem__, default=None
    )


def checkpoints(folder: Path) -> list[Path]:
    """The finished checkpoints in `folder`, oldest first."""
    return sorted(folder.glob("step-*")) if folder.is_dir() else []


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (on the CPU) and values of one checkpoint. UserError names a file that is missing or
    broken.
    """
    values = read_json_object(path / VALUES)
    try:
        return load_file(path / TENSORS), values
    except (SafetensorError, FileNotFoundError) as error:
        raise UserError(
            f"{path / TENSORS}: not a readable safetensors file ({error}); delete {path}"
        ) from None


def flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
