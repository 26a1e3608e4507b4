"""Which of the processes that `torchrun` started this one is; alone, rank 0 of 1. Loads no torch."""

import os


def rank() -> int:
    """This process's number. Rank 0 writes the results and talks."""
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    """How many processes work together."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rank_prefix() -> str:
    """`rank N: `, with which a message begins where there are several processes, else nothing."""
    return f"rank {rank()}: " if world_size() > 1 else ""
