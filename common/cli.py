"""What the scripts share on the command line: options, number types, device and dtype, the error
boundary.
"""

import argparse
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch

from common.errors import UserError
from common.ranks import rank_prefix
from data.few_shot import SELECTIONS
from llama.embedding import POOLINGS
from llama.quantization import SCHEMES
from llama.tokenizer import DEFAULT_DATE

DTYPES = ("auto", "float32", "bfloat16", "float16")
DEVICES = ("cpu", "cuda", "mps", "xpu")


class Parser(argparse.ArgumentParser):
    """Options of a script; a bad one is a single line, like every other bad input."""

    def __init__(self, description: str) -> None:
        super().__init__(
            description=description, formatter_class=argparse.RawDescriptionHelpFormatter
        )

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} ({self.prog} --help lists the options)\n")


def positive_int(text: str) -> int:
    """argparse type: an integer of at least 1."""
    return _number(text, int, lambda value: value >= 1, "a whole number of at least 1")


def non_negative_int(text: str) -> int:
    """argparse type: an integer of at least 0."""
    return _number(text, int, lambda value: value >= 0, "a whole number of at least 0")


def positive_float(text: str) -> float:
    """argparse type: a finite number above 0."""
    return _number(text, float, lambda value: 0 < value < float("inf"), "a number above 0")


def non_negative_float(text: str) -> float:
    """argparse type: a finite number of at least 0."""
    return _number(text, float, lambda value: 0 <= value < float("inf"), "a number of at least 0")


def probability(text: str) -> float:
    """argparse type: a number above 0 and at most 1."""
    return _number(text, float, lambda value: 0 < value <= 1, "a number above 0 and at most 1")


def fraction(text: str) -> float:
    """argparse type: a number of at least 0 and below 1."""
    return _number(text, float, lambda value: 0 <= value < 1, "a number of at least 0 and below 1")


def seed(text: str) -> int:
    """argparse type: a random seed."""
    return _number(
        text, int, lambda value: 0 <= value < 2**32, "a whole number from 0 to 4294967295"
    )


def _number(text: str, kind: type, valid: Callable[[Any], bool], wanted: str) -> Any:
    try:
        value = kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected {wanted}, got {text!r}") from None
    if not valid(value):
        raise argparse.ArgumentTypeError(f"expected {wanted}, got {text}")
    return value


def add_run_options(
    parser: argparse.ArgumentParser, model: str, batch_size: int, batch_help: str
) -> None:
    """Add the options that train.py, generate.py and judge.py have in common."""
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
    return {
        "cache_bytes": None if arguments.memory is None else int(arguments.memory * 2**30),
        "cache_dtype": None
        if arguments.cache_dtype == "auto"
        else getattr(torch, arguments.cache_dtype),
    }


def resolve_device(name: str) -> torch.device:
    """`auto` is CUDA if there is one, else the CPU. UserError for a device this machine lacks."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in DEVICES:
            raise RuntimeError(f"the devices are {', '.join(DEVICES)}")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ImportError) as error:
        raise UserError(
            f"--device {name} cannot be used here: {str(error).splitlines()[0]}"
        ) from None
    return device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on CUDA and float32 elsewhere."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return getattr(torch, name)


def run_script(
    function: Callable[[argparse.Namespace], None], arguments: argparse.Namespace
) -> int:
    """Call a script's body; bad input becomes one line on stderr and exit status 2, an interruption
    becomes 130.
    """
    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # a cluster's preemption ends like Ctrl-C
    try:
        function(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output, such as `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (UserError, OSError) as error:
        print(f"{rank_prefix()}error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not isinstance(
            error, torch.OutOfMemoryError | MemoryError
        ) and "allocate memory" not in str(error):
            raise
        print(
            f"{rank_prefix()}error: out of memory: try a smaller --batch-size or --micro-batch-tokens",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt as interrupt:
        if interrupt.args:  # a script that this one called has said so
            return 130
        print(
            f"{rank_prefix()}interrupted: the same command, without --no-resume, goes on from here",
            file=sys.stderr,
        )
        return 130
    return 0
