"""What the scripts share: options, number types, the error boundary, device and memory."""

import argparse
import os
import platform
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

DEFAULT_DATE = "26 Jul 2024"
DTYPES = ("auto", "float32", "bfloat16", "float16")


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


def _number(text: str, kind: type, valid: Callable[[Any], bool], wanted: str) -> Any:
    try:
        value = kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected {wanted}, got {text!r}") from None
    if not valid(value):
        raise argparse.ArgumentTypeError(f"expected {wanted}, got {text}")
    return value


def add_run_options(parser: argparse.ArgumentParser, model: str, batch_size: int, batch_help: str) -> None:
    """Add the options that train.py, generate.py and judge.py have in common."""
    parser.add_argument(
        "--run", type=Path, default=Path("runs/default"), metavar="DIR", help="run folder (%(default)s)"
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
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ...; auto: CUDA if there is one")
    parser.add_argument(
        "--seed", type=non_negative_int, default=0, metavar="N", help="of all that is random (%(default)s)"
    )
    parser.add_argument("--limit", type=positive_int, metavar="N", help="use only N records (all)")
    parser.add_argument("--batch-size", type=positive_int, default=batch_size, metavar="N", help=batch_help)
    parser.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="keep what an earlier, interrupted call finished; --no-resume starts again",
    )


def add_date_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--date", default=DEFAULT_DATE, help="the date a chat template prints, pinned so results stay (%(default)s)"
    )


def resolve_device(name: str) -> torch.device:
    """`auto` is CUDA if there is one, else the CPU. ValueError for a device this machine lacks."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name} cannot be used here: {str(error).splitlines()[0]}") from None
    return device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on CUDA and float32 elsewhere."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return getattr(torch, name)


def prepare_run(folder: Path) -> None:
    """Make the run folder and prove that it can be written, before any hour of work is spent on it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(
            f"cannot write to the run folder {folder}: {error.strerror}; choose another with --run"
        ) from None


def check_settings(path: Path, earlier: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to continue records that other settings produced; `path` is the file they stand in."""
    for name in sorted(earlier.keys() | now.keys()):
        if earlier.get(name) != now.get(name):
            raise ValueError(
                f"{path} was made with {name} = {earlier.get(name)!r}, now it is {now.get(name)!r}: "
                "choose another --run, or start again with --no-resume"
            )


def peak_memory_bytes(device: torch.device) -> int:
    """The process's largest resident set on the CPU; the largest allocation on a CUDA device. In bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes if sys.platform == "darwin" else kilobytes * 1024  # macOS already counts bytes


def environment(device: torch.device) -> dict[str, Any]:
    """Versions and hardware, for the summaries."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "device": str(device),
        "device_name": name,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
    }


def run_script(function: Callable[[argparse.Namespace], None], arguments: argparse.Namespace) -> int:
    """Call a script's body; a bad input becomes one line on stderr and exit status 2, Ctrl-C becomes 130."""
    try:
        function(arguments)
    except (ValueError, OSError) as error:
        message = " ".join(str(error).split())
        print(f"error: {message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: what is finished is kept, the same command goes on from there", file=sys.stderr)
        return 130
    return 0
