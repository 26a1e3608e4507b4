"""Processes that `torchrun` starts side by side: which one this is, which device is its own, how they meet."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed


def rank() -> int:
    """This process's number, 0 without torchrun. Rank 0 writes the results and talks."""
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    """How many processes work together, 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", 1))


def own_device(device: torch.device) -> torch.device:
    """The CUDA device of this process among those of its machine; any other device as it is."""
    if device.type == "cuda" and device.index is None and world_size() > 1:
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return device


def wait() -> None:
    """Until all processes have come this far."""
    if world_size() > 1:
        torch.distributed.barrier()


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the other processes within the block: NCCL between CUDA devices, gloo between CPUs; alone, nothing."""
    if world_size() == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()
