"""The memory of a device that is still to be had, and how many sequences that is for."""

import torch

# Sequences in progress at one time, where nobody says: with more a CPU gains little, while a GPU
# reads its weights once for all of them. How many fit is for the engine to find out.
BATCH_SIZES = {"cuda": 256}
BATCH_SIZE = 32


def default_batch_size(device: torch.device) -> int:
    """Sequences to have in progress at one time on such a device, if memory holds them."""
    return BATCH_SIZES.get(device.type, BATCH_SIZE)


def free_bytes(device: torch.device) -> int | None:
    """Bytes that new tensors can take on a CUDA device; None on others.

    Counted is what no process holds, and what this one's allocator keeps for tensors to come.
    """
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    reserved, allocated = torch.cuda.memory_reserved(device), torch.cuda.memory_allocated(device)
    return free + reserved - allocated
