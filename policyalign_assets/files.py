"""Writing files so that a reader sees the old one or the new one, never half of one; in a folder or in an object store."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

# Results quote policies, requests and answers, some of them harmful: the owner and the group read
# them, and nobody else. Weights hold no text, and a server's user must read them, so they are open.
# The umask can take more away, never give more.
PRIVATE, OPEN = 0o640, 0o644
# In the name of whatever is unfinished, with the process that writes it
MARK, UNKNOWN = ".policyalign-", "unknown"
_OWNED = re.compile(re.escape(MARK) + r"(\w+)-(\d+)-([^.]+)\.")
Location = Path | UPath  # a folder, or a URL of anything that fsspec reads: s3://, gs://, memory://


def location(where: str) -> Location:
    """`where` as a plain path if it is one (file:// too), else as a UPath."""
    path = UPath(where)
    return Path(path.path) if path.protocol in ("", "file", "local") else path


def is_local(path: Location) -> bool:
    return isinstance(path, Path)


def scratch_folder(data: Location) -> Path:
    """Where unfinished work is kept: beside the data, or on this machine's disk where the data is an object store."""
    return (
        data
        if isinstance(data, Path)
        else Path(
            os.environ.get("POLICYALIGN_SCRATCH_DIR", Path(tempfile.gettempdir()) / "policyalign")
        )
    )


def unfinished_folder(data: Location, stage: str, made_from: Mapping[str, Any]) -> Path:
    """Where a stage keeps what it has done of exactly these inputs: a killed run goes on there, other inputs never do."""
    digest = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
    return scratch_folder(data) / "unfinished" / stage / digest[:16]


def process_start(pid: int) -> str | None:
    """When a process of this machine started; None if there is no such process, or no /proc.

    The ticks since this boot, with the boot's id: another process with the same number differs.
    """
    try:
        ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8]
    except OSError:
        return None
    return None if ticks[0] == "Z" else f"{ticks[19]}@{boot}"


@cache
def _owner_mark(pid: int) -> str:
    """Says in a temporary name whose it is, so that `sweep` can tell what a dead process left."""
    return f"{MARK}{_host()}-{pid}-{process_start(pid) or UNKNOWN}."


@cache
def _host() -> str:
    """Several machines, or containers, may share a data folder and number their processes alike."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


@contextmanager
def temporary_folder(beside: Path | None = None) -> Iterator[Path]:
    """A folder that is removed afterwards, and by `sweep` if this process is killed.

    It lies in `beside`, or among the machine's temporary files.
    """
    prefix = _owner_mark(os.getpid())
    with tempfile.TemporaryDirectory(prefix=prefix, dir=beside, ignore_cleanup_errors=True) as name:
        yield Path(name)


def sweep(data: Path) -> list[Path]:
    """Removes what killed processes of this machine left half written, and returns it.

    Looks among the machine's temporary files, and in `data` at every depth.
    """
    removed = []
    for folder in (Path(tempfile.gettempdir()), *_folders(data)):
        for entry in _entries(folder):
            owner = _OWNED.search(entry.name)
            if owner is None or owner[1] != _host() or owner[3] == UNKNOWN:
                continue
            if process_start(int(owner[2])) != owner[3]:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink(missing_ok=True)
                removed.append(entry)
    return removed


def _folders(top: Path) -> Iterator[Path]:
    for folder, below, _ in os.walk(top):
        below[:] = [name for name in below if MARK not in name]
        yield Path(folder)


def _entries(folder: Path) -> list[Path]:
    try:
        return [entry for entry in folder.iterdir() if MARK in entry.name]
    except OSError:  # it is gone by now
        return []


def allow(path: Path, mode: int) -> None:
    """Sets the mode of a file, or of a folder with all that is in it, as far as the umask lets.

    Whoever may read a file may enter its folder.
    """
    mask = os.umask(0)
    os.umask(mask)
    for entry in (path, *path.rglob("*")) if path.is_dir() else (path,):
        enter = (mode & 0o444) >> 2 if entry.is_dir() else 0
        entry.chmod((mode | enter) & ~mask)


@contextmanager
def uploading(folder: Location) -> Iterator[Path]:
    """Gives a local folder to write in: `folder`, or one whose files then go into the store."""
    if isinstance(folder, Path):
        yield folder
        return
    with temporary_folder() as name:
        yield name
        upload(name, folder)


@contextmanager
def downloaded(folder: Location) -> Iterator[Path]:
    """Gives a local folder to read from: `folder`, or a copy of the files directly in it."""
    if isinstance(folder, Path):
        yield folder
        return
    with temporary_folder() as name:
        for file in folder.iterdir():
            _copy(file, name / file.name)
        yield name


def upload(local: Path, target: UPath, last: str | None = None) -> None:
    """Puts the files directly in `local` into `target`. The file named `last` goes last: where it is, all are."""
    for file in sorted(local.iterdir(), key=lambda f: (f.name == last, f.name)):
        _copy(file, target / file.name)


def _copy(source: Location, target: Location) -> None:
    """Piece by piece: a model may be larger than the memory."""
    with source.open("rb") as read, target.open("wb") as write:
        shutil.copyfileobj(read, write, 1 << 24)


def remove(path: Location) -> None:
    """A file, or a folder with all that is in it; nothing where there is none."""
    if not path.exists():
        return
    if not path.is_dir():
        path.unlink()
    elif isinstance(path, Path):
        shutil.rmtree(path)
    else:
        path.rmdir(recursive=True)


def write_whole(path: Location, data: bytes) -> None:
    """A store's object appears whole by itself; a file is written aside and renamed."""
    if not isinstance(path, Path):
        path.write_bytes(data)
        return
    with replacing_file(path) as aside:
        aside.write_bytes(data)


@contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside `path`; renamed over it on success, removed on failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, name = tempfile.mkstemp(dir=path.parent, prefix=_owner_mark(os.getpid()))
    os.close(fd)
    aside = Path(name)
    try:
        yield aside
        allow(aside, PRIVATE)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def new_directory(path: Path, mode: int = OPEN) -> Iterator[Path]:
    """Gives a temporary folder beside `path`; renamed to it on success.

    A finished `path` is never touched again. `mode` is that of its files: most hold weights.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(path.parent) as aside:
        yield aside
        if not path.exists():
            allow(aside, mode)
            os.rename(aside, path)


def write_parquet(table: pa.Table, path: Path) -> None:
    with replacing_file(path) as aside:
        pq.write_table(table, aside, compression="zstd")


def sha256_files(
    folder: Path, patterns: tuple[str, ...] = ("*",), but: tuple[str, ...] = ()
) -> str:
    """Hash of the names and bytes of the files directly in `folder` that match `patterns` and are not named in `but`."""
    digest = hashlib.sha256()
    for file in sorted(
        {f for p in patterns for f in folder.glob(p) if f.is_file() and f.name not in but}
    ):
        digest.update(file.name.encode() + b"\0")
        with file.open("rb") as stream:  # a model may be larger than the memory
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def sha256_table(table: pa.Table) -> str:
    """Hash of a table's columns and values, independent of chunking and of Parquet's encoding."""
    # Parquet calls the items of a list "element", Arrow calls them "item"
    schema = str(table.schema.remove_metadata())
    for before in ("list<", "child 0, "):
        schema = schema.replace(f"{before}element: ", f"{before}item: ")
    digest = hashlib.sha256(schema.encode())
    for column in table.column_names:
        for start in range(0, table.num_rows, 65_536) or (0,):
            digest.update(repr(table[column].slice(start, 65_536).to_pylist()).encode())
    return digest.hexdigest()
