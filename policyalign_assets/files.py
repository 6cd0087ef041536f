"""Writes files atomically: a reader sees the old file or the new one, never a partial one.

A file is stored in a local folder or in an object store.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeGuard

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from upath import UPath

# Results quote policies, requests and answers, some of them harmful, so only the owner and the
# group may read them. Weights contain no text, and the user of a model server must be able to read
# them, so they are open. The umask can only restrict these modes further.
PRIVATE, OPEN = 0o640, 0o644
# The name of an unfinished file or folder contains MARK and the process that writes it.
MARK, UNKNOWN = ".policyalign-", "unknown"
_OWNED = re.compile(re.escape(MARK) + r"(\w+-\d+-[^.]+)\.")
Location = Path | UPath  # a folder, or a URL of anything that fsspec reads: s3://, gs://, memory://


def location(where: str) -> Location:
    """Return `where` as a plain path if it is local (file:// included), else as a UPath."""
    path = UPath(where)
    return Path(path.path) if path.protocol in ("", "file", "local") else path


def is_local(path: Location) -> TypeGuard[Path]:
    return isinstance(path, Path)


def scratch_folder(data: Location) -> Path:
    """Return where unfinished work is kept.

    That is the data folder, or a folder on this machine's disk if the data is in an object store.
    """
    return (
        data
        if isinstance(data, Path)
        else Path(
            os.environ.get("POLICYALIGN_SCRATCH_DIR", Path(tempfile.gettempdir()) / "policyalign")
        )
    )


def process_start(pid: int) -> str | None:
    """Return when a process of this machine started; None without such a process or without /proc.

    The value is the clock ticks since boot and the boot's id, so that a later process with the same
    number has a different value.
    """
    try:
        ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8]
    except OSError:
        return None
    return None if ticks[0] == "Z" else f"{ticks[19]}@{boot}"


@cache
def process_name(pid: int) -> str:
    """Return a name that no other process has, on this machine or on another one."""
    return f"{_host()}-{pid}-{process_start(pid) or UNKNOWN}"


def has_ended(process: str) -> bool:
    """Whether the process with this `process_name` is known to have ended.

    Nothing is known of processes of other machines, or where there is no /proc.
    """
    host, _, rest = process.partition("-")
    pid, _, start = rest.partition("-")
    if host != _host() or start == UNKNOWN or not pid.isdigit():
        return False
    return process_start(int(pid)) != start


def _owner_mark(pid: int) -> str:
    """Return the part of a temporary name that tells `sweep` which process it belongs to."""
    return f"{MARK}{process_name(pid)}."


@cache
def _host() -> str:
    """Return a hash of the host's name.

    Several machines or containers may share a data folder and use the same process numbers.
    """
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


@contextmanager
def temporary_folder(beside: Path | None = None) -> Iterator[Path]:
    """Yield a folder that is removed afterwards, or by `sweep` if this process is killed.

    The folder is created in `beside`, or among the machine's temporary files.
    """
    prefix = _owner_mark(os.getpid())
    with tempfile.TemporaryDirectory(prefix=prefix, dir=beside, ignore_cleanup_errors=True) as name:
        yield Path(name)


def sweep(data: Path) -> list[Path]:
    """Remove what killed processes of this machine left unfinished, and return the paths.

    The search covers the machine's temporary files, and `data` at every depth.
    """
    removed = []
    for folder in (Path(tempfile.gettempdir()), *_folders(data)):
        for entry in _entries(folder):
            owner = _OWNED.search(entry.name)
            if owner is not None and has_ended(owner[1]):
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
    except OSError:  # the folder no longer exists
        return []


def allow(path: Path, mode: int) -> None:
    """Set the mode of a file, or of a folder and everything in it, restricted by the umask.

    Users who may read a file may also enter its folder.
    """
    mask = os.umask(0)
    os.umask(mask)
    for entry in (path, *path.rglob("*")) if path.is_dir() else (path,):
        enter = (mode & 0o444) >> 2 if entry.is_dir() else 0
        entry.chmod((mode | enter) & ~mask)


@contextmanager
def uploading(folder: Location) -> Iterator[Path]:
    """Yield a local folder to write in: `folder`, or one whose files are uploaded afterwards."""
    if isinstance(folder, Path):
        yield folder
        return
    with temporary_folder() as name:
        yield name
        upload(name, folder)


@contextmanager
def downloaded(folder: Location) -> Iterator[Path]:
    """Yield a local folder to read from: `folder`, or a copy of the files directly in it."""
    if isinstance(folder, Path):
        yield folder
        return
    with temporary_folder() as name:
        for file in folder.iterdir():
            _copy(file, name / file.name)
        yield name


def upload(local: Path, target: UPath, last: str | None = None) -> None:
    """Copy the files directly in `local` into `target`.

    The file named `last` is copied last, so where it exists, all the others do too.
    """
    for file in sorted(local.iterdir(), key=lambda f: (f.name == last, f.name)):
        _copy(file, target / file.name)


def _copy(source: Location, target: Location) -> None:
    """Copy in pieces, because a model may be larger than the memory."""
    with source.open("rb") as read, target.open("wb") as write:
        shutil.copyfileobj(read, write, 1 << 24)


def remove(path: Location) -> None:
    """Remove a file, or a folder and everything in it, if it exists."""
    if not path.exists():
        return
    if not path.is_dir():
        path.unlink()
    elif isinstance(path, Path):
        shutil.rmtree(path)
    else:
        path.rmdir(recursive=True)


def write_whole(path: Location, data: bytes) -> None:
    """Write `data` so that no reader sees a part of it.

    An object store does this by itself; a file is written under another name and then renamed.
    """
    if not isinstance(path, Path):
        path.write_bytes(data)
        return
    with replacing_file(path) as aside:
        aside.write_bytes(data)


@contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it replaces `path` on success, or is removed."""
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
    """Yield a temporary folder beside `path`, and rename it to `path` on success.

    An existing `path` is never changed. `mode` is the mode of the files, most of which are weights.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(path.parent) as aside:
        yield aside
        if not path.exists():
            allow(aside, mode)
            os.rename(aside, path)


def parquet_bytes(table: pa.Table) -> bytes:
    """A table as the content of a Parquet file, for places that only take bytes."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def write_parquet(table: pa.Table, path: Path) -> None:
    with replacing_file(path) as aside:
        pq.write_table(table, aside, compression="zstd")


def sha256_files(
    folder: Path, patterns: tuple[str, ...] = ("*",), but: tuple[str, ...] = ()
) -> str:
    """Hash the names and contents of the files directly in `folder`.

    Only files that match one of `patterns` count, and those named in `but` are left out.
    """
    found = {f for p in patterns for f in folder.glob(p) if f.is_file() and f.name not in but}
    return sha256_named({file.name: file for file in found})


def sha256_named(files: Mapping[str, Path]) -> str:
    """Hash the contents of files, with the names that they have or shall have."""
    digest = hashlib.sha256()
    for name, file in sorted(files.items()):
        digest.update(name.encode() + b"\0")
        with file.open("rb") as stream:  # in pieces, because a model may exceed the memory
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def sha256_table(table: pa.Table) -> str:
    """Hash a table's columns and values, independent of chunking and of Parquet's encoding."""
    # Parquet calls the items of a list "element", and Arrow calls them "item".
    schema = str(table.schema.remove_metadata())
    for before in ("list<", "child 0, "):
        schema = schema.replace(f"{before}element: ", f"{before}item: ")
    digest = hashlib.sha256(schema.encode())
    for column in table.column_names:
        for start in range(0, table.num_rows, 65_536) or (0,):
            digest.update(repr(table[column].slice(start, 65_536).to_pylist()).encode())
    return digest.hexdigest()


def parse_shipped_yaml(text: str) -> Any:
    """Plain data from a YAML file of this package.

    libyaml parses ten times as fast as PyYAML's own parser. Files of users go through
    `yaml.safe_load`, whose errors are exceptions of Python however deep such a file is nested.
    """
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
