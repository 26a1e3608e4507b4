"""Files that appear whole or not at all, and errors that say why one could not be written."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from llama.errors import UserError


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield another name to write to; afterwards flush that file to disk and rename it to `path`.

    After an error neither a new nor a partial file is left. UserError, with the file and the free
    space on its disk, if it cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with named_write_errors(path):
            with usual_permissions(partial):
                yield partial
            flush_to_disk(partial)
            os.replace(partial, path)
            flush_to_disk(path.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def named_write_errors(path: Path) -> Iterator[None]:
    """Turn what goes wrong while `path` is written into a UserError that names it."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"{path}: cannot be written ({reason}; {_free_space(path)} free on its disk); make "
            "room or choose another place, then run the same command again"
        ) from None


@contextmanager
def usual_permissions(path: Path) -> Iterator[None]:
    """Let a file that is written in the block have the permissions of any new file.

    safetensors gives its files to the owner alone, so that no colleague could read a model.
    """
    path.touch()
    permissions = path.stat().st_mode
    yield
    path.chmod(permissions)


def flush_to_disk(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    if path.is_dir() and not hasattr(os, "O_DIRECTORY"):
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)  # Windows: to write
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_folder(folder: Path) -> None:
    """Remove a folder so that it is gone at once, under its name, and never there in part."""
    removed = folder.with_name(f".{folder.name}.removed")
    shutil.rmtree(removed, ignore_errors=True)
    if folder.exists():
        os.replace(folder, removed)
        shutil.rmtree(removed, ignore_errors=True)


def _free_space(path: Path) -> str:
    for folder in path.absolute().parents:
        if folder.is_dir():
            return f"{shutil.disk_usage(folder).free / 2**20:,.0f} MiB"
    return "nothing known"
