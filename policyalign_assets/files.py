"""Writing files so that a reader sees the old one or the new one, never half of one."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


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


def sha256_files(folder: Path, patterns: tuple[str, ...] = ("*",)) -> str:
    """Hash of the names and bytes of the files directly in `folder` that match `patterns`."""
    digest = hashlib.sha256()
    for file in sorted({f for p in patterns for f in folder.glob(p) if f.is_file()}):
        digest.update(file.name.encode() + b"\0")
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def sha256_table(table: pa.Table) -> str:
    """Hash of a table's columns and values, independent of chunking and of Parquet's encoding."""
    digest = hashlib.sha256(str(table.schema.remove_metadata()).encode())
    for column in table.column_names:
        digest.update(repr(table[column].to_pylist()).encode())
    return digest.hexdigest()
