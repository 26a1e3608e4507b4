"""Lines for the user about what goes on in another way than planned."""

import sys
from functools import cache


@cache
def tell_once(line: str) -> None:
    """Print `line` to stderr, the first time only that this process has it to tell."""
    print(line, file=sys.stderr, flush=True)
