"""Allows one run of a partition at a time, on one machine or on a shared file system.

Dagster's limits apply only to queued runs, so a run that somebody starts by hand bypasses them. Two
runs of one partition would write the same files. The operating system releases the lock when the
run ends for any reason. The guard of a worker inherits the lock (see `guard`), so the lock of a
killed run is held until the last process of that run has ended.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from policyalign_assets.runtime import guard

PATIENCE = 10.0  # seconds: longer than the guard of a killed run needs to end its processes


class PartitionBusy(RuntimeError):
    """Another run holds the lock. The message names that run."""


@contextmanager
def partition_lock(
    data: Path, partition: str, holder: str, patience: float | None = None
) -> Iterator[None]:
    """Hold the lock of `partition` in `data`. `holder` is the name that other runs are shown.

    Raises PartitionBusy if the lock is still held after `patience` seconds (default: PATIENCE).
    """
    folder = data / ".locks"
    folder.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(partition.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    descriptor = os.open(folder / f"{name}.lock", os.O_CREAT | os.O_RDWR, 0o660)
    try:
        _take(descriptor, partition, PATIENCE if patience is None else patience)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, holder.encode("utf-8", "replace"), 0)
        guard.INHERITED.add(descriptor)
        yield
    finally:
        guard.INHERITED.discard(descriptor)
        # The file is kept, because removing it could release a lock that another run has taken.
        os.close(descriptor)


def _take(descriptor: int, partition: str, patience: float) -> None:
    until = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= until:
                holder = os.pread(descriptor, 500, 0).decode("utf-8", "replace")
                raise PartitionBusy(
                    f"{partition} is being made by {holder or 'another run'}. "
                    "Fix: wait until it has ended, or terminate it."
                ) from None
        time.sleep(0.2)
