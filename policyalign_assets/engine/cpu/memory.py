"""Freed memory is kept for the next tensor instead of being given back to the system."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h
KEPT = 1 << 30


def keep_freed_memory() -> None:
    """For this whole process; up to 1 GiB more than is in use. Does nothing where the C library is not glibc.

    A training step on a CPU frees and takes the same few hundred MiB again and again. By default glibc hands most of it back, and
    the system then has to clear and map each page anew: a quarter of a step's time on a virtual machine.
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
