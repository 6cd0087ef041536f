"""Keeps freed memory for the next tensor instead of giving it back to the operating system."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # constants of malloc.h
KEPT = 1 << 30  # bytes


def keep_freed_memory() -> None:
    """Applies to the whole process, which keeps up to 1 GiB more than it uses.

    A training step on a CPU frees and allocates the same few hundred MiB again and again. By
    default glibc returns most of it, and the system then has to clear and map every page again,
    which took a quarter of a step's time on a virtual machine. Has no effect without glibc.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in (
            (M_MMAP_THRESHOLD, KEPT),
            (M_TRIM_THRESHOLD, KEPT),
            (M_TOP_PAD, 64 << 20),
        ):
            mallopt(option, value)
