"""Hands adapters to an engine, each under a number and a path that were never used before.

vLLM can answer with an older adapter's weights or cached key/values when a name, an id or a path is
reused (vllm#42125, vllm#48312). Adapters are written to memory where the system allows it.
"""

from __future__ import annotations

import fcntl
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

IN_MEMORY = Path("/dev/shm")
_PREFIX = "policyalign-adapters-"


class AdapterVersions:
    """A temporary folder that belongs to this process.

    Creating it also removes the folders of this machine's processes that were killed.
    `beginning` is how the paths of all such folders begin.
    """

    def __init__(self, parent: Path | None = None):
        prefix = _PREFIX
        if parent is None:
            parent = IN_MEMORY if os.access(IN_MEMORY, os.W_OK) else Path(tempfile.gettempdir())
        else:  # other machines may use it too, and their locks may not be seen from here
            prefix += f"{re.sub(r'[^a-zA-Z0-9]', '_', platform.node())}-"
        self.beginning = str(parent / prefix)
        for left in parent.glob(f"{prefix}*"):
            _remove_if_abandoned(left)
        self.folder, self._version = Path(tempfile.mkdtemp(prefix=prefix, dir=parent)), 0
        self._lock = _lock(self.folder)

    def put(self, write: Callable[[Path], object]) -> tuple[int, Path]:
        """Creates a new folder, lets `write` fill it, and removes earlier ones.

        Returns the folder's number and path. If `write` fails, the new folder is removed and the
        earlier ones stay.
        """
        self._version += 1
        path = self.folder / str(self._version)
        path.mkdir()
        try:
            write(path)
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)
            raise
        for old in self.folder.iterdir():
            if old.is_dir() and old != path:
                shutil.rmtree(old)
        return self._version, path

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)


def _lock(folder: Path) -> int:
    """Locks `folder`; raises OSError if another process holds the lock.

    The operating system releases the lock when the process ends, however it ends.
    """
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
    except OSError:  # the folder is in use, or belongs to another user
        return
    shutil.rmtree(folder, ignore_errors=True)
    os.close(file)
