"""Writing files so that a reader sees the old one or the new one, never half of one; in a folder or in an object store."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

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


@contextmanager
def uploading(folder: Location) -> Iterator[Path]:
    """Gives a local folder to write in: `folder` itself, or one whose files are then put into the object store."""
    if isinstance(folder, Path):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="policyalign.") as name:
        yield Path(name)
        upload(Path(name), folder)


@contextmanager
def downloaded(folder: Location) -> Iterator[Path]:
    """Gives a local folder to read from: `folder` itself, or a copy of the files directly in it."""
    if isinstance(folder, Path):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="policyalign.") as name:
        for file in folder.iterdir():
            _copy(file, Path(name) / file.name)
        yield Path(name)


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
        aside.chmod(0o644)  # mkstemp makes it private


@contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside `path`; renamed over it on success, removed on failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(fd)
    aside = Path(name)
    try:
        yield aside
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Gives a temporary folder beside `path`; renamed to it on success. A finished `path` is never touched again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield aside
        if not path.exists():
            aside.chmod(0o755)  # mkdtemp makes it private
            os.rename(aside, path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


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
