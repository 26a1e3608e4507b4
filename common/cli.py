"""The error boundary of the scripts: what becomes one line and an exit status. Loads no torch."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from common.errors import UserError
from common.interrupts import MESSAGE, Interrupted, raised_signals
from common.options import (
    Parser,
    fraction,
    non_negative_float,
    non_negative_int,
    positive_float,
    positive_int,
    probability,
    seed,
)
from common.ranks import rank_prefix
from common.run_folder import release_runs
from data.few_shot import SELECTIONS

# For the scripts that do not have a settings dataclass yet.
__all__ = [
    "Parser",
    "add_cache_options",
    "add_prompt_options",
    "add_run_options",
    "cache_options",
    "fraction",
    "non_negative_float",
    "non_negative_int",
    "positive_float",
    "positive_int",
    "probability",
    "run_script",
    "seed",
]

DTYPES = ("auto", "float32", "bfloat16", "float16")
SMALLER_BATCH = "try a smaller --batch-size"

S = TypeVar("S")


def run_script(
    function: Callable[[S], object], settings: S, when_out_of_memory: str = SMALLER_BATCH
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
    """Of errors that came while another was dealt with, such as a full disk's, the first."""
    before = error.__context__
    if before is None:
        return error
    first = _first_of(before)
    if error.__suppress_context__:  # `raise ... from`: `before` in better words
        return error if first is before else first
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


def add_run_options(
    parser: argparse.ArgumentParser, model: str, batch_size: int, batch_help: str
) -> None:
    """Add the options that train.py, generate.py and judge.py have in common."""
    from llama.quantization import SCHEMES

    parser.add_argument(
        "--run",
        type=Path,
        default=Path("runs/default"),
        metavar="DIR",
        help="run folder (%(default)s)",
    )
    parser.add_argument(
        "--model",
        default=model,
        help="local checkpoint folder, Hugging Face id, or the small model smollm2 (%(default)s)",
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="auto",
        metavar="TYPE",
        help="float32, bfloat16, float16, or auto: bfloat16 on CUDA, float32 on CPU",
    )
    parser.add_argument(
        "--quantize",
        choices=SCHEMES,
        help="int8: frozen linears with 8-bit weights, a quarter of float32's memory",
    )
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1, ...; auto: CUDA if there is one"
    )
    parser.add_argument("--limit", type=positive_int, metavar="N", help="use only N records (all)")
    parser.add_argument(
        "--batch-size", type=positive_int, default=batch_size, metavar="N", help=batch_help
    )
    parser.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="keep what an earlier, interrupted call finished; --no-resume starts again",
    )


def add_prompt_options(parser: argparse.ArgumentParser) -> None:
    """Add what prompts and samples depend on, for train.py and generate.py."""
    from llama.embedding import POOLINGS
    from llama.tokenizer import DEFAULT_DATE

    parser.add_argument(
        "--seed", type=seed, default=0, metavar="N", help="of all that is random (%(default)s)"
    )
    parser.add_argument(
        "--date",
        default=DEFAULT_DATE,
        help="the date a chat template prints, pinned so results stay (%(default)s)",
    )
    parser.add_argument(
        "--shots",
        type=non_negative_int,
        default=0,
        metavar="N",
        help="worked examples before each question (0)",
    )
    parser.add_argument(
        "--shot-selection",
        choices=SELECTIONS,
        default="fixed",
        help="shots: the first N of the training file, drawn anew for each question, or nearest to it (fixed)",
    )
    parser.add_argument(
        "--embedder",
        default="Qwen/Qwen3-Embedding-0.6B",
        metavar="MODEL",
        help="of similar shots (%(default)s)",
    )
    parser.add_argument(
        "--pooling",
        choices=POOLINGS,
        default="last",
        help="the token whose state stands for a question; the first has seen no other (last)",
    )


def add_cache_options(parser: argparse.ArgumentParser) -> None:
    """Add what bounds the key/value cache, for generate.py and judge.py."""
    parser.add_argument(
        "--memory",
        type=positive_float,
        metavar="GIB",
        help="bound on the key/value cache: with less of it fewer rows are in progress, the tokens stay (none)",
    )
    parser.add_argument(
        "--cache-dtype",
        choices=("auto", "bfloat16"),
        default="auto",
        metavar="TYPE",
        help="auto is the model's; bfloat16 halves a float32 cache and changes some tokens (%(default)s)",
    )


def cache_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `add_cache_options` read, as `generate` takes it."""
    import torch

    return {
        "cache_bytes": None if arguments.memory is None else int(arguments.memory * 2**30),
        "cache_dtype": None
        if arguments.cache_dtype == "auto"
        else getattr(torch, arguments.cache_dtype),
    }
