"""Reads the files of public benchmarks as rows: CSV, TSV, JSON, JSON Lines, Parquet and XLSX.

The files come from elsewhere, so nothing in them is trusted. A file that is damaged, far too large,
deeply nested or no table raises `NotRun` with a reason that quotes nothing of its content.
"""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

Row = dict[str, Any]

MAX_BYTES = 512 * 2**20  # of a file, and of what it holds when unpacked
MAX_FIELD = 131_072  # characters of one cell
MAX_ROWS = 500_000
MAX_LINE = 8 * 2**20  # characters of one row of JSON Lines
_BATCH = 64  # rows of a Parquet file that are decoded at a time


class NotRun(Exception):
    """Why a benchmark, or a part of it, has no figures: one sentence for the report."""


def read_rows(file: Path) -> list[Row]:
    """The rows of `file`, each with the column `file`, its name. Raises NotRun."""
    if file.suffix.lower() not in READERS:
        raise NotRun(f"{file.suffix} files are not read. Fix: convert it to {', '.join(READERS)}")
    try:
        if file.stat().st_size > MAX_BYTES:
            raise NotRun(f"{file.name} is larger than {MAX_BYTES // 2**20} MiB")
        return list(_objects(file, READERS[file.suffix.lower()](file)))
    except NotRun:
        raise
    except (RecursionError, MemoryError):
        raise NotRun(f"{file.name} is nested too deeply or too large") from None
    except Exception as error:  # each reader has errors of its own, and none may end the stage
        raise NotRun(f"its file cannot be read: {file.name} ({type(error).__name__})") from None


def _objects(file: Path, rows: Iterable[object]) -> Iterator[Row]:
    """The rows with the file's name. Raises NotRun if a row is no object, or there are too many."""
    for number, row in enumerate(rows, 1):
        if number > MAX_ROWS:
            raise NotRun(f"{file.name} has more than {MAX_ROWS} rows")
        if not isinstance(row, dict) or not all(isinstance(key, str) for key in row):
            raise NotRun(f"row {number} of {file.name} is no object with named columns")
        yield {"file": file.name, **row}


def _csv(file: Path) -> Iterator[Row]:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        separator = "\t" if file.suffix.lower() == ".tsv" else ","
        reader = csv.DictReader(lines, delimiter=separator, strict=True)
        header = reader.fieldnames or []
        _check_header(file, header)
        for number, row in enumerate(reader, 1):
            if None in row or None in row.values():
                raise NotRun(f"row {number} of {file.name} has not {len(header)} columns")
            # csv's own limit is one of the process, which another reader may have raised
            if any(len(value) > MAX_FIELD for value in row.values()):
                raise NotRun(
                    f"{file.name} cannot be read: a field of row {number} has more than "
                    f"{MAX_FIELD} characters"
                )
            yield row


def _check_header(file: Path, header: Iterable[object]) -> None:
    names = [str(name) for name in header if name is not None]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise NotRun(f"{file.name} has more than one column {twice[0][:40]!r}")


def _jsonl(file: Path) -> Iterator[object]:
    with file.open(encoding="utf-8-sig") as lines:
        while line := lines.readline(MAX_LINE + 1):
            if len(line) > MAX_LINE:
                raise NotRun(f"{file.name} has a line of more than {MAX_LINE} characters")
            if line.strip():
                yield json.loads(line)


def _json(file: Path) -> Iterator[object]:
    """A list of rows, or an object in which exactly one value is a list: the rows."""
    content = json.loads(file.read_text(encoding="utf-8-sig"))
    if isinstance(content, dict):
        lists = [value for value in content.values() if isinstance(value, list)]
        content = lists[0] if len(lists) == 1 else None
    if not isinstance(content, list):
        raise NotRun(f"{file.name} holds no list of rows")
    yield from content


def _parquet(file: Path) -> Iterator[Row]:
    import pyarrow.parquet as pq

    parquet = pq.ParquetFile(file)
    groups = (parquet.metadata.row_group(i) for i in range(parquet.metadata.num_row_groups))
    if sum(group.total_byte_size for group in groups) > MAX_BYTES:
        raise NotRun(f"{file.name} holds more than {MAX_BYTES // 2**20} MiB")
    decoded = 0
    for batch in parquet.iter_batches(batch_size=_BATCH):
        decoded += batch.nbytes
        if decoded > MAX_BYTES:  # repeated values take no space in the file
            raise NotRun(f"{file.name} holds more than {MAX_BYTES // 2**20} MiB")
        yield from batch.to_pylist()


def _xlsx(file: Path) -> Iterator[Row]:
    """The rows of the first sheet, by the names in its first row."""
    if find_spec("openpyxl") is None:
        raise NotRun(
            "reading XLSX needs openpyxl, which is not installed. "
            "Fix: pip install 'policyalign-assets[eval]'"
        )
    import openpyxl

    with zipfile.ZipFile(file) as archive:
        if sum(member.file_size for member in archive.infolist()) > MAX_BYTES:
            raise NotRun(f"{file.name} holds more than {MAX_BYTES // 2**20} MiB")
    book = openpyxl.load_workbook(file, read_only=True, data_only=True)
    try:
        rows = book.worksheets[0].iter_rows(values_only=True)
        header = [None if name is None else str(name) for name in next(rows, ())]
        _check_header(file, header)
        for row in rows:
            if any(value is not None for value in row):
                yield {name: value for name, value in zip(header, row) if name is not None}
    finally:
        book.close()


READERS: dict[str, Callable[[Path], Iterable[object]]] = {
    ".csv": _csv,
    ".tsv": _csv,
    ".json": _json,
    ".jsonl": _jsonl,
    ".parquet": _parquet,
    ".xlsx": _xlsx,
}
