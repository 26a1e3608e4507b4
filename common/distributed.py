"""Processes that `torchrun` starts side by side: their devices, barriers and shares of the work."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import NoReturn

import torch
import torch.distributed

from common.errors import UserError
from common.ranks import rank, rank_prefix, world_size


def device_of_rank(device: torch.device) -> torch.device:
    """The CUDA device of this process among those of its machine; any other device as it is.

    UserError if there are more processes than devices: NCCL takes one process for each.
    """
    if device.type != "cuda" or device.index is not None or world_size() == 1:
        return device
    index, devices = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if index >= devices:
        processes = os.environ.get("LOCAL_WORLD_SIZE", world_size())
        raise UserError(
            f"{processes} processes, but {devices} CUDA devices for them: use --nproc-per-node "
            f"{devices}"
        )
    torch.cuda.set_device(index)  # on it streams and graphs are made
    return torch.device("cuda", index)


def barrier() -> None:
    """Wait until all processes have come this far."""
    if world_size() > 1:
        torch.distributed.barrier()


@contextmanager
def process_group(device: torch.device, timeout: timedelta | None = None) -> Iterator[None]:
    """Join the other processes within the block; does nothing for a process alone.

    NCCL connects CUDA devices, gloo CPUs. `timeout` is how long one may wait for another (torch's
    own default if None).
    """
    if world_size() == 1:
        yield
        return
    backend = "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
        backend = "nccl"
    torch.distributed.init_process_group(backend, timeout=timeout)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def flush_and_exit(status: int) -> NoReturn:
    """End this process; one of several skips the interpreter's shutdown.

    FSDP leaves the group's mesh in a cache of torch's, so gloo's threads outlive the group, and a
    shutting down interpreter aborts now and then beneath them (torch 2.13; two of 97 runs).
    """
    if world_size() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


@contextmanager
def inference_group() -> Iterator[None]:
    """Process group for independent shards.

    The only collectives are barriers, the last one behind all work, hence the timeout of 30 days.
    """
    with process_group(torch.device("cpu"), timedelta(days=30)):
        yield


def barrier_or_exit() -> None:
    """Wait until all processes have come this far. SystemExit if one of them has ended."""
    if world_size() == 1:
        return
    try:
        torch.distributed.barrier()
    except RuntimeError:  # the connection is closed
        raise SystemExit(f"{rank_prefix()}stopped, because another rank has ended") from None


@contextmanager
def rank_zero_first() -> Iterator[None]:
    """Run the block on rank 0 first, then on the other ranks; barrier at the end.

    Rank 0 downloads what all need, and reports alone what is wrong with the input.
    """
    if rank():
        barrier_or_exit()
    yield
    if rank() == 0:
        barrier_or_exit()
    barrier_or_exit()


def shard_by_work(prompts: Sequence[list[int]], new_tokens: int, processes: int) -> list[list[int]]:
    """The indices of the prompts for each of `processes`: contiguous shares of about equal work.

    Sorted prompts share beginnings, which are computed once: the work of a prompt is what it does
    not have in common with the one before it, and `new_tokens`.
    """
    order = sorted(range(len(prompts)), key=lambda i: prompts[i])
    work: list[int] = []
    before: Sequence[int] = []
    for i in order:
        work.append(len(prompts[i]) - _common_prefix(before, prompts[i]) + new_tokens)
        before = prompts[i]
    shares: list[list[int]] = [[] for _ in range(processes)]
    total, begun = sum(work), 0
    for i, tokens in zip(order, work, strict=True):
        shares[int((begun + tokens / 2) * processes / total)].append(i)
        begun += tokens
    return [sorted(indices) for indices in shares]


def _common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """The number of tokens that two prompts share at their beginning."""
    for index, (token, other_token) in enumerate(zip(one, other, strict=False)):
        if token != other_token:
            return index
    return min(len(one), len(other))
