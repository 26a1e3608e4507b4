"""This process's place among those that `torchrun` started; alone, rank 0 of 1. Loads no torch."""

import os


def rank() -> int:
    """The number of this process. Rank 0 writes the results and talks."""
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    """The number of processes that work together."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rank_prefix() -> str:
    """`rank N: ` before a message if there are several processes, else nothing."""
    return f"rank {rank()}: " if world_size() > 1 else ""
