"""The error boundary of the scripts: what becomes one line and an exit status. Loads no torch."""

import os
import sys
from collections.abc import Callable
from typing import TypeVar

from common.errors import UserError
from common.interrupts import MESSAGE, Interrupted, raised_signals
from common.ranks import rank_prefix
from common.run_folder import release_runs

NO_OPTION = "no option of this script needs less; use a machine with more memory"

S = TypeVar("S")


def run_script(
    function: Callable[[S], object], settings: S, when_out_of_memory: str = NO_OPTION
) -> int:
    """Call a script's body with its settings; return the exit status.

    Bad input, an operating system error and memory running out become one line on stderr and 2,
    SIGINT 130 and SIGTERM 143. `when_out_of_memory` says what helps in this script. Every other
    exception is a bug of ours and passes through.
    """
    with raised_signals():
        try:
            return _run(function, settings, when_out_of_memory)
        except KeyboardInterrupt as interrupt:
            known = interrupt if isinstance(interrupt, Interrupted) else Interrupted(130)
            if not known.reported:
                _say(MESSAGE)
            return known.status


def _run(function: Callable[[S], object], settings: S, when_out_of_memory: str) -> int:
    try:
        function(settings)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output, such as `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (UserError, OSError) as error:
        _say(f"error: {_first_of(error)}")
        return 2
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        _say(f"error: out of memory: {when_out_of_memory}")
        return 2
    finally:
        release_runs()
    return 0


def _first_of(error: BaseException) -> BaseException:
    """The first of several errors, where later ones came while it was dealt with (a full
    disk's).
    """
    before = error.__context__
    if before is None:
        return error
    first = _first_of(before)
    if error.__suppress_context__:  # `raise ... from`: `before` in better words
        return first if isinstance(first, UserError) and first is not before else error
    return first if isinstance(first, UserError | OSError) else error


def _is_out_of_memory(error: BaseException) -> bool:
    """MemoryError, torch's OutOfMemoryError, or what its allocator on the CPU raises."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"MemoryError", "OutOfMemoryError"}) or "allocate memory" in str(error)


def _say(text: str) -> None:
    """Print one line on stderr; what could steer a terminal is escaped."""
    line = " ".join(text.split())
    escaped = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
    print(rank_prefix() + escaped, file=sys.stderr)
