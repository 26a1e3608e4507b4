"""Memory of training on the CPU: large blocks come from the kernel, in large pages, and go back when freed."""

import ctypes
import os
import sys

LARGE = 2 * 2**20  # bytes: the size of a huge page
M_MMAP_THRESHOLD = -3  # of glibc's mallopt


def use_large_pages() -> None:
    """Call before the first tensor is made. Without effect where the C library is not glibc.

    Blocks of many sizes, some kept for the backward pass and some not, leave a heap full of holes; mapped one by one
    they leave none, and huge pages make mapping cheap. An environment variable or an earlier choice goes first.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch reads it at its first allocation
    if sys.platform == "linux" and "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt:
            mallopt(M_MMAP_THRESHOLD, LARGE)
