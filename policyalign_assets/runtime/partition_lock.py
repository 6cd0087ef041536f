"""One run of a partition at a time, on one machine or on a shared file system.

Dagster's limits hold for queued runs alone: a run that somebody starts by hand passes them by. Two
runs of one partition would write the same files. The operating system frees the lock when the run
ends, however it ends. The guard of a worker inherits it (see `guard`), so the lock of a killed run
is held until the last process of that run is gone.
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
    """Another run holds the lock. The message says which."""


@contextmanager
def partition_lock(
    data: Path, partition: str, holder: str, patience: float | None = None
) -> Iterator[None]:
    """Holds the lock of `partition` below `data`. `holder` is what others are told.

    Raises PartitionBusy after `patience` seconds, PATIENCE by default.
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
        os.close(descriptor)  # the file stays: removing it could free a lock that another one took


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
