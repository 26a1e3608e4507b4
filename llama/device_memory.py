"""The memory of a device that is still to be had."""

import torch


def free_bytes(device: torch.device) -> int | None:
    """Bytes that new tensors can take on a CUDA device; None on others.

    Counted is what no process holds, and what this one's allocator keeps for tensors to come.
    """
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    reserved, allocated = torch.cuda.memory_reserved(device), torch.cuda.memory_allocated(device)
    return free + reserved - allocated
