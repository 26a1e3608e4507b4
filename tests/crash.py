"""A process that dies at its N-th change to the disk, as a kill or a power cut would have it.

Counted are, below one folder: opening a file to write, a record's line (written half), closing,
flushing to disk, renaming, removing and making folders; each before and after it happens.
"""

import builtins
import io
import multiprocessing
import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

KILLED = 137
PATIENCE = 900  # seconds for one command, which has a share of a busy machine
# A server that has the scripts imported and forks a process in milliseconds for each crash.
CONTEXT = multiprocessing.get_context("forkserver")
SLOW_IMPORTS = ["torch", "torch._dynamo"]  # the second comes with a model's first parameter
CONTEXT.set_forkserver_preload(["train", "generate", "judge", "experiment", *SLOW_IMPORTS])
CHANGES = ("replace", "rename", "unlink", "remove", "rmdir", "mkdir", "fsync")


class CrashPoints:
    """Counts the changes below `folder` and ends the process at number `target` (0: never)."""

    def __init__(self, folder: Path, target: int) -> None:
        self.folder, self.target, self.count = str(folder), target, 0

    def reached(self) -> bool:
        self.count += 1
        return self.count == self.target

    def pass_point(self) -> None:
        if self.reached():
            os._exit(KILLED)

    def concerns(self, path: Any) -> bool:
        """Whether a path, or a descriptor as `os.fsync` takes it, lies in the folder."""
        if isinstance(path, int):
            path = os.readlink(f"/proc/self/fd/{path}")
        return isinstance(path, str | os.PathLike) and os.fspath(path).startswith(self.folder)

    def install(self) -> None:
        for name in CHANGES:
            setattr(os, name, self._change(getattr(os, name)))
        opener = self._open(builtins.open)
        builtins.open = io.open = opener  # pathlib calls the second

    def _change(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def change(path: Any, *rest: Any, **keywords: Any) -> Any:
            inside = self.concerns(path) or keywords.get("dir_fd") is not None
            if inside:
                self.pass_point()
            result = function(path, *rest, **keywords)
            if inside:
                self.pass_point()
            return result

        return change

    def _open(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def open_file(path: Any, mode: str = "r", *rest: Any, **keywords: Any) -> Any:
            if not set(mode) & set("wax+") or not self.concerns(path):
                return function(path, mode, *rest, **keywords)
            self.pass_point()
            file = function(path, mode, *rest, **keywords)
            self.pass_point()
            return WatchedFile(file, self, appends="a" in mode)

        return open_file


class WatchedFile:
    """A file open for writing. A line that is appended may be torn in two by the crash."""

    def __init__(self, file: Any, points: CrashPoints, appends: bool) -> None:
        self.file, self.points, self.appends = file, points, appends

    def write(self, text: Any) -> int:
        if self.appends and self.points.reached():
            self.file.write(text[: len(text) // 2])
            self.file.flush()
            os._exit(KILLED)
        return self.file.write(text)

    def close(self) -> None:
        self.file.close()
        self.points.pass_point()

    def __enter__(self) -> "WatchedFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def run_until(target: int, folder: Path, script: str, argv: list[str]) -> tuple[int, int]:
    """Run `script` in a process of its own, up to crash point `target`; its status and its
    points.
    """
    receiver, sender = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=_run, args=(target, str(folder), script, argv, sender))
    process.start()
    process.join(PATIENCE)
    if process.is_alive():  # it would go on to write beside the next one
        process.kill()
        process.join()
        raise TimeoutError(f"{script} was not done after {PATIENCE} s")
    assert process.exitcode is not None
    return process.exitcode, receiver.recv() if receiver.poll() else 0


def _run(target: int, folder: str, script: str, argv: list[str], sender: Any) -> None:
    import torch

    from reporting import plot_style

    torch.set_num_threads(1)
    plot_style.is_available = lambda: False  # pictures take longer than all the rest
    with open(os.devnull, "w") as silent:  # the progress of a hundred runs is of no interest
        os.dup2(silent.fileno(), 1)
        os.dup2(silent.fileno(), 2)
    points = CrashPoints(Path(folder), target)
    points.install()
    status = import_module(script).main(argv)
    sender.send(points.count)
    os._exit(status)
