"""The device and the dtype that `--device` and `--dtype` ask for."""

import os
from functools import cache

import torch

from common.errors import UserError
from common.ranks import rank

DEVICES = ("cpu", "cuda", "mps", "xpu")
BFLOAT16_CAPABILITY = (8, 0)  # below it CUDA devices compute bfloat16 in emulation


def resolve_device(name: str) -> torch.device:
    """The device called `name`; `auto` is CUDA, else Apple's MPS, else the CPU.

    UserError for a device that this machine lacks.
    """
    if name == "auto":
        return torch.device(_best_device())
    try:
        device = torch.device(name)
        if device.type not in DEVICES:
            raise RuntimeError(f"the devices are {', '.join(DEVICES)}")
        torch.empty(0, device=device)
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)  # on which streams and graphs are made
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {name} cannot be used here: {reason}") from None
    return device


def total_memory(device: torch.device) -> int | None:
    """The device's bytes of memory, for the CPU those of the machine; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if device.type != "cpu" or not hasattr(os, "sysconf"):  # Windows
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype called `name`; `auto` is bfloat16 on CUDA and float32 elsewhere.

    On a CUDA device without bfloat16 of its own (compute capability below 8.0, such as a T4) auto
    is float16, which is said once.
    """
    if name != "auto":
        return getattr(torch, name)
    if device.type != "cuda":
        return torch.float32
    capability = torch.cuda.get_device_capability(device)
    if capability >= BFLOAT16_CAPABILITY:
        return torch.bfloat16
    _say_once(
        f"{torch.cuda.get_device_name(device)} (compute capability {capability[0]}."
        f"{capability[1]}) has no bfloat16 of its own: using float16; --dtype overrules it"
    )
    return torch.float16


@cache
def _say_once(text: str) -> None:
    if rank() == 0:
        print(text, flush=True)
