"""Memory of training on the CPU: every step needs the same again, so what is freed is kept for the
next.
"""

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
LARGEST_MMAP_THRESHOLD = 32 * 2**20  # bytes: what glibc accepts


def keep_freed_memory() -> None:
    """Call before the first tensor is made. Without effect where the C library is not glibc.

    By default freed memory goes back to the kernel again and again, and a tensor on fresh pages
    costs many times the arithmetic of an elementwise operation. Huge pages for large tensors leave
    fewer of them to ask for.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch reads it at its first allocation
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
