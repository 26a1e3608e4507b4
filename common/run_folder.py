"""Run folders: one run at a time writes to one, and nothing in it is destroyed unasked.

Loads no torch.
"""

import json
import os
import shutil
import socket
import time
from pathlib import Path

import filelock

from common.errors import UserError
from common.ranks import rank

KEPT_ASIDE = 3
LOCK, HOLDER = ".in-use.lock", ".in-use.json"
_held: dict[Path, filelock.BaseFileLock] = {}  # by this process


def prepare_run(folder: Path) -> None:
    """Make the run folder, prove that it can be written, and take it until `release_runs`.

    Comes before any hour of work is spent on it. Of several ranks, which are one run, rank 0 takes
    it. UserError if it cannot be written, or if another process has taken it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if rank() == 0:
            _take(folder)
    except OSError as error:
        raise UserError(
            f"cannot write to the run folder {folder}: {error.strerror}; choose another with --run"
        ) from None


def _take(folder: Path) -> None:
    """Lock the folder and write down who holds it, which proves that it can be written.

    The lock of a process that was killed is gone with it.
    """
    path = folder.resolve()
    if path in _held:
        return
    lock = filelock.FileLock(path / LOCK, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise UserError(
            f"{folder} is in use by {_holder(path)}: wait for its end, or choose another run, "
            f"--run {free_run(folder)}"
        ) from None
    except NotImplementedError:  # a file system without locks
        pass
    _held[path] = lock
    holder = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%F %T")}
    (path / HOLDER).write_text(json.dumps(holder), encoding="utf-8")


def _holder(folder: Path) -> str:
    try:
        holder = json.loads((folder / HOLDER).read_text(encoding="utf-8"))
        return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (
        OSError,
        ValueError,
        RecursionError,
        TypeError,
        KeyError,
    ):  # it has only just begun, or is ending
        return "another process"


def release_runs() -> None:
    """Give back the run folders that this process has taken."""
    while _held:
        path, lock = _held.popitem()
        (path / HOLDER).unlink(missing_ok=True)
        lock.release()


def set_aside(*paths: Path) -> list[Path]:
    """Rename what an earlier call left, NAME to NAME.1, NAME.1 to NAME.2: the last three stay.

    Returns the new paths of those of `paths`, files or folders, that there were.
    """
    kept = []
    for path in paths:
        if not path.exists():
            continue
        names = [path] + [path.with_name(f"{path.name}.{n + 1}") for n in range(KEPT_ASIDE)]
        for newer, older in zip(names[-2::-1], names[:0:-1], strict=True):
            if newer.exists():
                _remove(older)
                os.replace(newer, older)
        kept.append(names[1])
    return kept


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def free_run(folder: Path) -> Path:
    """The first of NAME-2, NAME-3, ... beside a run folder that is not there yet."""
    number = 2
    while folder.with_name(f"{folder.name}-{number}").exists():
        number += 1
    return folder.with_name(f"{folder.name}-{number}")


def other_run(folder: Path) -> str:
    """Advice at the end of a refusal to go on with a run."""
    return (
        f"choose another run, --run {free_run(folder)}, or start again with --no-resume, which "
        "keeps the old files as NAME.1"
    )
