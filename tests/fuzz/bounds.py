"""What every case must keep to: an answer or one line, in time, in memory, nothing written."""

import contextlib
import io
import os
import resource
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hypothesis

from common.errors import UserError
from tests.watch import watching

CASES = int(os.environ.get("UNFORGET_FUZZ_CASES", "500"))  # of all the tests here together
SECONDS = 30  # of the processor; a case takes milliseconds
PATIENCE = 900  # seconds on a busy machine, and for what only waits
MEMORY = 2**31  # bytes that a case may ask for, beyond what the process has
LONGEST_MESSAGE = 8000
OUTCOMES: dict[str, Counter[str]] = {}  # "answered" and "refused" by test, for the summary


class TookTooLongError(BaseException):
    """No Exception, so that nothing takes it for an error in a file."""


def cases(share: int) -> hypothesis.settings:
    """Settings of a test that takes `share` of every 500 cases; the same ones every time."""
    return hypothesis.settings(
        max_examples=max(1, CASES * share // 500),
        derandomize=True,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],  # to shrink a case takes minutes
        suppress_health_check=list(hypothesis.HealthCheck),
    )


@contextmanager
def within_bounds(surface: str, allowed: Path | None = None) -> Iterator[None]:
    """Pass over a UserError or OSError whose message is one line; whatever else is a failure.

    Files may be changed below `allowed` alone. `surface` is what the outcome is counted under.
    """
    outcomes = OUTCOMES.setdefault(surface, Counter())
    with _limited(), watching(allowed) as watch:
        try:
            yield
            outcomes["answered"] += 1
        except (UserError, OSError) as error:
            outcomes["refused"] += 1
            message = str(error)
            assert len(message) <= LONGEST_MESSAGE, f"{len(message)} characters: {message[:200]}"
            assert "\n" not in message, message
            if isinstance(error, UserError):
                assert message.isprintable(), ascii(message)
    assert not watch.deeds, watch.deeds


@contextmanager
def _limited() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TookTooLongError(
            f"more than {SECONDS} seconds of the processor, or {PATIENCE} in all"
        )

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    handlers = {number: signal.signal(number, stop) for number in (signal.SIGALRM, signal.SIGPROF)}
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.alarm(PATIENCE)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, before[1]))
    try:
        yield
    finally:
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)


@contextmanager
def replaced(path: Path, content: bytes | str) -> Iterator[None]:
    """Put other content into a file for the time of a case."""
    original = path.read_bytes()
    if isinstance(content, str):
        content = content.encode("utf-8", "surrogatepass")
    path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(original)


def call(main: Callable[[list[str]], int], *argv: object) -> str:
    """What a script prints. UserError with its one line if it refuses its input."""
    printed, errors = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(errors):
            status = main([str(word) for word in argv])
    except SystemExit as exit_of_argparse:
        status = exit_of_argparse.code
    if status == 0:
        return printed.getvalue()
    assert status == 2, f"exit status {status}"
    message = errors.getvalue().removesuffix("\n")
    assert message.startswith("error: ") and "\n" not in message, message
    raise UserError(message)
