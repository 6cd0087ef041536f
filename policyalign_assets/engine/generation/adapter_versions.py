"""Adapters on their way to an engine: each under a number and a path that were never used before, in memory where the system allows.

vLLM may answer with an older adapter's weights or cached key/values where a name, an id or a path comes back (vllm#42125, #48312).
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

IN_MEMORY = Path("/dev/shm")
_PREFIX = "policyalign-adapters-"


class AdapterVersions:
    """A folder that is this process's for as long as it lives; those of processes that were killed are removed on the way."""

    def __init__(self, parent: Path | None = None):
        parent = parent or (
            IN_MEMORY if os.access(IN_MEMORY, os.W_OK) else Path(tempfile.gettempdir())
        )
        for left in parent.glob(f"{_PREFIX}*"):
            _remove_if_abandoned(left)
        self.folder, self._version = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent)), 0
        self._lock = _lock(self.folder)

    def put(self, write: Callable[[Path], object]) -> tuple[int, Path]:
        """Makes a new folder, lets `write` fill it, and removes the ones before. Returns its number and path."""
        self._version += 1
        path = self.folder / str(self._version)
        path.mkdir()
        write(path)
        for old in self.folder.iterdir():
            if old.is_dir() and old != path:
                shutil.rmtree(old)
        return self._version, path

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)


def _lock(folder: Path) -> int:
    """Held until the file is closed, which the system does for a process however it dies. Raises OSError where another holds it."""
    file = os.open(folder / "lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(file)
        raise
    return file


def _remove_if_abandoned(folder: Path) -> None:
    try:
        file = _lock(folder)
    except OSError:  # in use, or another user's
        return
    shutil.rmtree(folder, ignore_errors=True)
    os.close(file)
