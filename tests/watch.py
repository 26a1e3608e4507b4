"""See what this process does to the world: files changed, code unpickled or fetched.

An audit hook cannot be removed, so one is installed and asks whether anybody is watching.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = {"os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.chmod", "os.link", "os.symlink"}
FORBIDDEN = {"pickle.find_class", "marshal.loads", "os.system", "os.exec", "os.posix_spawn"}
FORBIDDEN |= {"socket.connect", "socket.getaddrinfo"}


class Watch:
    """Collects what happens while it is active: paths changed outside `allowed`, other deeds."""

    def __init__(self, allowed: Path | None) -> None:
        self.allowed = str(allowed.resolve()) if allowed else None
        self.deeds: list[str] = []

    def see(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if flags & WRITING:
                self.see_change(event, path)
        elif event == "os.rename":
            self.see_change(event, arguments[0])
            self.see_change(event, arguments[1])
        elif event in ("os.remove", "os.rmdir", "os.mkdir") and arguments[-1] >= 0:
            # As shutil.rmtree does: a name in an open folder.
            folder = os.readlink(f"/proc/self/fd/{arguments[-1]}")
            self.see_change(event, os.path.join(folder, os.fsdecode(arguments[0])))
        elif event in CHANGES:
            self.see_change(event, arguments[0])
        elif event == "subprocess.Popen" and arguments[0] != sys.executable:
            self.deeds.append(f"{event} {arguments[0]}")
        elif event in FORBIDDEN and "importlib" not in str(sys._getframe(2).f_code.co_filename):
            self.deeds.append(f"{event} {arguments!r:.200}")

    def see_change(self, event: str, path: Any) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return  # a descriptor: it was seen when it was opened
        full = os.path.realpath(os.fsdecode(path))
        inside = self.allowed is not None and full.startswith(self.allowed)
        if not inside and full != os.devnull and "__pycache__" not in full:
            self.deeds.append(f"{event} {full}")


_active: list[Watch] = []
_installed = False


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _active:
        watch = _active.pop()  # what the watch itself does is not watched
        try:
            watch.see(event, arguments)
        finally:
            _active.append(watch)


@contextmanager
def watching(allowed: Path | None = None) -> Iterator[Watch]:
    """Watch the block. Only below the folder `allowed` may it change files."""
    global _installed
    if not _installed:
        sys.addaudithook(_hook)
        _installed = True
    watch = Watch(allowed)
    _active.append(watch)
    try:
        yield watch
    finally:
        _active.remove(watch)
