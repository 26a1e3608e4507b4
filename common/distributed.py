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

    UserError if there are more processes than devices.
    """
    if device.type != "cuda" or device.index is not None or world_size() == 1:
        return device
    index = int(os.environ.get("LOCAL_RANK", 0))
    if index >= torch.cuda.device_count():
        raise UserError(
            f"{os.environ.get('LOCAL_WORLD_SIZE', world_size())} processes, but {torch.cuda.device_count()} CUDA "
            "devices for them: use a smaller --nproc-per-node, or name one device for all with --device cuda:0"
        )
    return torch.device("cuda", index)


def barrier() -> None:
    """Until all processes have come this far."""
    if world_size() > 1:
        torch.distributed.barrier()


@contextmanager
def process_group(device: torch.device, timeout: timedelta | None = None) -> Iterator[None]:
    """Join the other processes within the block: NCCL between CUDA devices, gloo between CPUs;
    alone, nothing.

    `timeout` is how long one may wait for another (torch's own default if None).
    """
    if world_size() == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.distributed.init_process_group(
        "nccl" if device.type == "cuda" else "gloo", timeout=timeout
    )
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def flush_and_exit(status: int) -> NoReturn:
    """End this process with `status`: of several, at once after flushing, without taking the
    interpreter down first.

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
    """A process group for work that is shared out: one only ever waits for another to finish,
    however long.
    """
    with process_group(torch.device("cpu"), timedelta(days=30)):
        yield


def barrier_or_exit() -> None:
    """Wait until every process has come here; alone, go on. Ends this process if another one has
    ended.
    """
    if world_size() == 1:
        return
    try:
        torch.distributed.barrier()
    except RuntimeError:  # the connection is closed
        raise SystemExit(f"{rank_prefix()}stopped, because another rank has ended") from None


@contextmanager
def rank_zero_first() -> Iterator[None]:
    """Rank 0 passes the block before the others enter it: it downloads what all need, and says
    alone what is wrong.

    They leave it together.
    """
    if rank():
        barrier_or_exit()
    yield
    if rank() == 0:
        barrier_or_exit()
    barrier_or_exit()


def shard_by_work(
    prompts: Sequence[Sequence[int]], new_tokens: int, processes: int
) -> list[list[int]]:
    """The indices of the prompts for each of `processes`: about equal work, prompts that begin
    alike together.

    The work of a prompt is what it does not have in common with the one sorted before it, and
    `new_tokens`.
    """
    order = sorted(range(len(prompts)), key=lambda i: prompts[i])
    work: list[int] = []
    before: Sequence[int] = []
    for i in order:
        pairs = enumerate(zip(before, prompts[i], strict=False))
        common = next((n for n, (one, other) in pairs if one != other), len(before))
        work.append(len(prompts[i]) - common + new_tokens)
        before = prompts[i]
    shares: list[list[int]] = [[] for _ in range(processes)]
    begun = 0
    for i, tokens in zip(order, work, strict=True):
        shares[int((begun + tokens / 2) * processes / sum(work))].append(i)
        begun += tokens
    return [sorted(indices) for indices in shares]
