"""Training checkpoints: folders of safetensors and JSON that appear whole or not at all."""

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from llama.atomic_files import (
    flush_to_disk,
    named_write_errors,
    remove_folder,
    usual_permissions,
)
from llama.errors import UserError
from llama.json_files import read_json_object

TENSORS, VALUES = "state.safetensors", "state.json"


def save_checkpoint(
    folder: Path, step: int, tensors: dict[str, Tensor], values: dict[str, Any], keep: int = 2
) -> Path:
    """Write `folder/step-<step>` under another name, flush it to disk, rename it.

    Of the others, the last `keep` stay (this one counted), and that with the lowest
    `validation_loss` in its values. UserError if the disk is full; the others are untouched then.
    """
    target = folder / f"step-{step:08d}"
    partial = folder / f".{target.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with named_write_errors(target):
            partial.mkdir(parents=True)
            contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
            with usual_permissions(partial / TENSORS):
                save_file(contiguous, partial / TENSORS)
            (partial / VALUES).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
            for name in (TENSORS, VALUES, "."):
                flush_to_disk(partial / name)
            remove_folder(target)
            os.replace(partial, target)
            flush_to_disk(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    tidy_checkpoints(folder, keep)
    return target


def tidy_checkpoints(folder: Path, keep: int) -> None:
    """Remove what a killed call left half made or half removed, and checkpoints beyond `keep`.

    That with the lowest `validation_loss` stays.
    """
    for left in (folder.with_name(f".{folder.name}.removed"), *folder.glob(".step-*")):
        shutil.rmtree(left, ignore_errors=True)
    best = best_checkpoint(folder)
    for old in checkpoints(folder)[:-keep]:
        if old != best:
            remove_folder(old)


def best_checkpoint(folder: Path) -> Path | None:
    """The earliest checkpoint with the lowest `validation_loss`; None if none has one."""
    losses: dict[Path, float] = {}
    for path in checkpoints(folder):
        loss = read_json_object(path / VALUES).get("validation_loss")
        if isinstance(loss, float) and math.isfinite(loss):  # else there is none, or it was edited
            losses[path] = loss
    return min(losses, key=losses.__getitem__, default=None)


def checkpoints(folder: Path) -> list[Path]:
    """The finished checkpoints in `folder`, oldest first."""
    if not folder.is_dir():
        return []
    return [
        path
        for path in sorted(folder.glob("step-*"))
        if all((path / name).is_file() for name in (TENSORS, VALUES))
    ]


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (on the CPU) and values of one checkpoint. UserError names a broken file."""
    values = read_json_object(path / VALUES)
    try:
        return load_file(path / TENSORS), values
    except (SafetensorError, FileNotFoundError) as error:
        raise UserError(
            f"{path / TENSORS}: not a readable safetensors file ({error}); delete {path}"
        ) from None
