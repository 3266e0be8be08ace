"""Keep freed memory for the next step, on Linux.

A step of training or of sampling allocates and frees the same gigabytes each time. glibc gives large blocks back to
the system at once, which then clears every page anew. That takes about 6% of a training step on a CPU, and more of
NumPy's sampling (docs/log.md).
"""

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # from malloc.h


def keep_freed_memory() -> None:
    """Make glibc keep all memory that is freed until the process ends; does nothing on other systems."""
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        for parameter, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 64 * 2**20)):
            libc.mallopt(parameter, value)
