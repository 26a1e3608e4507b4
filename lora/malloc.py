"""Tune glibc's malloc for training on a CPU: keep freed pages in the process.

Every step needs the same memory again. By default freed memory goes back to the kernel, and a
tensor on fresh pages costs many times the arithmetic of an elementwise operation.
"""

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # parameters of glibc's mallopt
LARGEST_MMAP_THRESHOLD = 32 * 2**20  # bytes: what glibc accepts
LARGEST_TRIM_THRESHOLD = 2**31 - 1


def keep_freed_memory() -> None:
    """Keep freed memory in the process instead of returning it to the kernel.

    Call it before the first tensor is made. It also asks for huge pages for large tensors, of which
    fewer have to be faulted in. Without effect where the C library is not glibc.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch reads it at its first allocation
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)
        mallopt(M_TRIM_THRESHOLD, LARGEST_TRIM_THRESHOLD)
