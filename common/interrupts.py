"""SIGINT and SIGTERM end a script in one line, with exit status 130 or 143, at any moment.

While a script is imported, and when it has ended, nothing can be lost, and a signal ends the
process at once. While it works, the first signal is raised as an exception, so that files are
closed and summaries written; a second one ends the process at once. Loads nothing that takes time.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from common.ranks import rank_prefix

SIGNALS = (signal.SIGINT, signal.SIGTERM)
STATUSES = tuple(128 + number for number in SIGNALS)
MESSAGE = "interrupted: the same command, without --no-resume, goes on from here"


class Interrupted(KeyboardInterrupt):
    """A signal, or a script called by this one that was ended by a signal and has said so."""

    def __init__(self, status: int, reported: bool = False) -> None:
        self.status, self.reported = status, reported


def exit_on_signals() -> None:
    """From now on, end at once on a signal. For the beginning of a script, before its imports."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as `nohup` or a shell's & may have it
            signal.signal(number, _exit)


@contextmanager
def raised_signals() -> Iterator[None]:
    """Raise the first signal within the block as `Interrupted`."""
    if threading.current_thread() is not threading.main_thread():  # others get no signals
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, _raise)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _raise(number: int, frame: FrameType | None) -> None:
    exit_on_signals()
    raise Interrupted(128 + number)


def _exit(number: int, frame: FrameType | None) -> None:
    os.write(2, f"{rank_prefix()}{MESSAGE}\n".encode())
    os._exit(128 + number)
