"""Chunks of prompts: those that exist at one time, so that memory does not grow with all."""

import torch

from common.ranks import world_size
from llama.device_memory import default_batch_size

CHUNK = 2048  # prompts, in all processes together
CHUNK_ROUNDS = 8  # at least so many times the batch: at the end of a chunk few rows are left in it
LONGEST = 16  # prompts checked in advance of those beyond the first chunk


def chunk_size(batch_size: int | None, device: torch.device) -> int:
    """The number of prompts that exist at one time, in all processes together.

    `batch_size` is the number in progress in each process; None is the device's default.
    """
    in_progress = batch_size or default_batch_size(device)
    return max(CHUNK, CHUNK_ROUNDS * in_progress * world_size())
