"""Reads evaluation prompts from files of every common shape, or refuses the file by name.

A firewall that reads a file wrong stops nothing and says nothing. So a value is a prompt only if it
is text: a string, UTF-8 bytes, a list of these, or a list of chat messages, of which the user's
turns count. Every other type is refused, and so is a file without any prompt. Errors name the file
and the row; they never quote the content, which may belong to another file (a link).
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa

# Formats that are read, and formats that hold data but are not read.
READ = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet")
NOT_READ = (
    *(".arrow", ".avro", ".bz2", ".db", ".feather", ".gz", ".npz", ".orc", ".pkl", ".sqlite"),
    *(".xls", ".xlsx", ".xz", ".yaml", ".yml", ".zip", ".zst"),
)
# Names under which benchmarks keep their prompts; where a file has several, the first one counts.
# (meli_query: a copy of StrongREJECT)
COLUMNS = (
    *("forbidden_prompt", "harmful_prompt", "prompt", "instruction", "question", "problem"),
    *("query", "goal", "behavior", "adversarial", "meli_query", "text"),
    *("prompts", "user_prompt", "request", "messages", "conversations", "conversation"),
    *("dialogue", "turns", "input"),
)
MAX_FILE_BYTES = 1 << 30
MAX_TEXT_BYTES = 1 << 30  # of all distinct prompts of a file, after decompression
MAX_ROWS = 5_000_000
_WRAPPERS = ("data", "rows", "examples", "instances", "items", "questions", "prompts")


class FirewallError(ValueError):
    """References that cannot be used. The message names the file and the fix."""


@dataclass(frozen=True)
class ReferenceFile:
    """One file of evaluation prompts. `prompts`: (row, text); a row can hold several prompts.

    `empty`: rows without a prompt. `column`: None where the rows themselves are the prompts.
    """

    name: str
    column: str | None
    prompts: tuple[tuple[int, str], ...]
    empty: int


@dataclass(frozen=True)
class References:
    """`ignored`: names of the other files in the folder, such as a README."""

    files: tuple[ReferenceFile, ...]
    ignored: tuple[str, ...]

    @property
    def prompts(self) -> dict[str, str]:
        """{"<file>:<row>": prompt}; further prompts of a row are "<file>:<row>.1" and so on."""
        named: dict[str, str] = {}
        for file in self.files:
            for row, text in file.prompts:
                name, n = f"{file.name}:{row}", 0
                while name in named:
                    n += 1
                    name = f"{file.name}:{row}.{n}"
                named[name] = text
        return named


def read_references(folder: Path, column: str | None = None) -> References:
    """Every file of `READ` in `folder` and its sub-folders.

    column: where the prompts are; without it, the first of `COLUMNS` that a file has. Raises
    FirewallError.
    """
    if not folder.is_dir():
        raise FirewallError(
            f"firewall.references={str(folder)!r} is not a folder. "
            "Fix: name the folder that holds the evaluation prompts."
        )
    files, ignored = [], []
    for path in sorted(f for f in folder.rglob("*") if f.is_file()):
        name = str(path.relative_to(folder)).encode(errors="backslashreplace").decode()
        suffix = path.suffix.lower()
        if suffix in READ:
            files.append(_read_file(path, name, column))
        elif suffix in NOT_READ:
            raise FirewallError(
                f"{name} may hold evaluation prompts, but {suffix} files are not read. "
                "Fix: convert it to CSV, JSON Lines or Parquet, or move it out of the folder."
            )
        else:
            ignored.append(name)
    if not files:
        raise FirewallError(
            f"firewall.references={str(folder)!r} holds no {', '.join(READ)} file, so nothing "
            "would be kept out. Fix: put the evaluation prompts there, or unset it."
        )
    return References(tuple(files), tuple(ignored))


def _read_file(path: Path, name: str, column: str | None) -> ReferenceFile:
    read = _parquet if path.suffix.lower() == ".parquet" else _text_file
    try:
        found, rows = read(path, name, column)
        prompts, empty = _prompts(rows, name)
    except RecursionError:
        raise _refused(name, "is nested too deeply") from None
    except (pa.ArrowException, OSError, csv.Error) as error:
        raise _refused(name, f"cannot be read ({type(error).__name__})") from None
    if not prompts:
        where = f"column {found!r}" if found else "it"
        raise FirewallError(
            f"{name} has no prompt in {where}, so it would keep nothing out. "
            "Fix: set firewall.column, repair the file, or move it out of the folder."
        )
    return ReferenceFile(name, found, tuple(prompts), empty)


def _prompts(rows: Iterable[Any], name: str) -> tuple[list[tuple[int, str]], int]:
    """(row, prompt) of every prompt, and the number of rows without one."""
    prompts: list[tuple[int, str]] = []
    empty, size = 0, 0
    distinct: set[int] = set()  # ids: a dictionary of Parquet repeats one string object
    for n, value in enumerate(rows):
        if n >= MAX_ROWS:
            raise _refused(name, f"has more than {MAX_ROWS:,} rows", "split it")
        try:
            texts = [text for text in prompt_texts(value) if text.strip()]
        except TypeError as error:
            raise _refused(name, f"row {n}: {error}", "set firewall.column") from None
        empty += not texts
        for text in texts:
            if id(text) not in distinct:
                distinct.add(id(text))
                size += len(text)
            prompts.append((n, text))
        if size > MAX_TEXT_BYTES:
            raise _refused(name, "holds more than 1 GiB of text", "split it")
    return prompts, empty


def prompt_texts(value: Any) -> list[str]:
    """The prompts in one value. Raises TypeError for a value that is no text, without quoting it.

    Text is a string, UTF-8 bytes, a message, or a list of these. Of messages, the user's count.
    """
    if value is None:
        return []
    if isinstance(value, str):
        return [value]
    if isinstance(value, bytes | bytearray):
        try:
            return [bytes(value).decode("utf-8")]
        except UnicodeDecodeError:
            raise TypeError("the prompt is bytes that are not UTF-8 text") from None
    if isinstance(value, dict) and _role(value) is not None:
        return _message_texts(value)
    if isinstance(value, list):
        if any(isinstance(item, list) for item in value):
            raise TypeError("the prompt is a list of lists")
        return list(chain.from_iterable(prompt_texts(item) for item in value))
    raise TypeError(f"the prompt is of type {type(value).__name__}, not text")


def _role(message: dict[str, Any]) -> str | None:
    role = message.get("role", message.get("from"))
    return role if isinstance(role, str) else None


def _message_texts(message: dict[str, Any]) -> list[str]:
    if str(_role(message)).lower() not in ("user", "human"):
        return []
    content = message.get("content", message.get("value", message.get("text")))
    if isinstance(content, list):  # content parts: [{"type": "text", "text": "..."}]
        parts = [p.get("text") if isinstance(p, dict) else p for p in content]
        return [part for part in parts if isinstance(part, str)]
    if content is None or isinstance(content, str):
        return [content] if content else []
    raise TypeError("a message's content is not text")


# ---- text files --------------------------------------------------------------------------------


def _text_file(path: Path, name: str, column: str | None) -> tuple[str | None, Iterable[Any]]:
    if path.stat().st_size > MAX_FILE_BYTES:
        raise _refused(name, "is larger than 1 GiB", "split it, or convert it to Parquet")
    text = _decoded(path.read_bytes(), name)
    if path.suffix.lower() in (".csv", ".tsv"):
        return _csv(text, name, column)
    rows = _json_rows(text, name, column)
    return _column_of_rows(rows, name, column)


def _decoded(data: bytes, name: str) -> str:
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise _refused(
            name,
            f"is not UTF-8 text (byte {error.start})",
            f"convert it, for example: iconv -f {_guess(data)} -t UTF-8",
        ) from None
    if "\0" in text:
        raise _refused(name, "holds null characters, so it is not a text file")
    return text


def _guess(data: bytes) -> str:
    """The likely encoding. It is only suggested: a wrong guess would change the prompts."""
    from charset_normalizer import from_bytes

    best = from_bytes(data[:200_000]).best()
    return best.encoding.upper().replace("_", "-") if best else "LATIN1"


def _csv(text: str, name: str, column: str | None) -> tuple[str, Iterable[Any]]:
    csv.field_size_limit(max(csv.field_size_limit(), 1 << 24))
    header: list[str] = []
    for delimiter in ",\t;":
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        header = [cell.strip() for cell in next(reader, [])]
        found = _column(header, column)
        if found is not None:
            return header[found], _cells(reader, len(header), found, name)
    raise _no_column(name, column, next(csv.reader(io.StringIO(text)), []))


def _cells(reader: Any, width: int, place: int, name: str) -> Iterator[str]:
    for row in reader:
        if not row:
            continue
        if len(row) != width:
            raise _refused(
                name, f"line {reader.line_num} has {len(row)} cells, but the header has {width}"
            )
        yield row[place]


def _json_rows(text: str, name: str, column: str | None) -> list[Any]:
    """Rows of a JSON document, or of JSON Lines."""
    try:
        document = json.loads(text)
    except json.JSONDecodeError:
        return _json_lines(text, name)
    for key in _WRAPPERS:  # {"data": [{...}, ...]}
        if isinstance(document, dict) and _objects(document.get(key)):
            document = document[key]
    if isinstance(document, list):
        return document
    if isinstance(document, dict):
        return _rows_of_columns(document, column) or [document]
    raise _refused(name, "holds neither a list nor an object")


def _objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(r, dict) for r in value)


def _rows_of_columns(document: dict[str, Any], column: str | None) -> list[dict[str, Any]]:
    """Rows of {"prompt": {"0": "...", ...}} or {"prompt": ["...", ...]}, as pandas writes them.

    Empty for an object of another form, which is then a row itself.
    """
    columns: dict[str, list[Any]] = {}
    for key, value in document.items():
        if isinstance(value, dict) and _role(value) is None:
            columns[key] = list(value.values())
        elif isinstance(value, list) and not (_objects(value) and _role(value[0]) is not None):
            columns[key] = value
        else:
            return []
    if _column(list(columns), column) is None or len({len(c) for c in columns.values()}) != 1:
        return []
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _json_lines(text: str, name: str) -> list[Any]:
    rows = []
    for n, line in enumerate(text.split("\n"), 1):  # other line separators may stand in strings
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            raise _refused(name, f"line {n} is not JSON") from None
    return rows


def _column_of_rows(
    rows: list[Any], name: str, column: str | None
) -> tuple[str | None, Iterable[Any]]:
    """The prompts' column and its values. Rows that are no objects must be prompts themselves."""
    if not rows:
        raise _refused(name, "is empty", "add the prompts, or move it out of the folder")
    objects = [row for row in rows if isinstance(row, dict) and _role(row) is None]
    if not objects:
        return None, rows
    if len(objects) < len(rows):
        raise _refused(name, "mixes objects with other values")
    keys = list(dict.fromkeys(key for row in rows for key in row))
    place = _column(keys, column)
    if place is None:
        raise _no_column(name, column, keys)
    wanted = keys[place]
    for n, row in enumerate(rows):
        if wanted not in row and _column(list(row), None) is not None:
            raise _refused(
                name,
                f"row {n} has no {wanted!r}, but another column of prompts",
                "set firewall.column, or use one name for the prompts",
            )
    return wanted, [row.get(wanted) for row in rows]


# ---- Parquet -----------------------------------------------------------------------------------


def _parquet(path: Path, name: str, column: str | None) -> tuple[str | None, Iterable[Any]]:
    import pyarrow.parquet as pq

    names = pq.read_schema(path).names
    place = _column(names, column)
    if place is None:
        raise _no_column(name, column, names)
    return names[place], _parquet_values(path, name, names[place])


def _parquet_values(path: Path, name: str, column: str) -> Iterator[Any]:
    """The values in small batches: a small file can decompress to any size.

    Text is read as a dictionary, so a string that is repeated is held once.
    """
    import pyarrow.parquet as pq

    kind = pq.read_schema(path).field(column).type
    flat = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind)
    size = 0
    with pq.ParquetFile(path, read_dictionary=[column] if flat else []) as file:
        for batch in file.iter_batches(4096 if flat else 16, columns=[column]):
            values = batch.column(0)
            size += values.nbytes
            if size > MAX_TEXT_BYTES:
                raise _refused(name, "holds more than 1 GiB of text", "split it")
            if isinstance(values, pa.DictionaryArray):
                texts = values.dictionary.to_pylist()
                yield from (None if i is None else texts[i] for i in values.indices.to_pylist())
            else:
                yield from values.to_pylist()


# ---- columns and errors ------------------------------------------------------------------------


def _column(names: Sequence[str], wanted: str | None) -> int | None:
    """The place of the prompts' column; capitals do not count."""
    places = {name.lower(): n for n, name in reversed(list(enumerate(names)))}
    candidates = [wanted.lower()] if wanted else COLUMNS
    return next((places[c] for c in candidates if c in places), None)


def _no_column(name: str, column: str | None, names: Sequence[str]) -> FirewallError:
    wanted = repr(column) if column else "with a known name (" + ", ".join(COLUMNS[:6]) + ", ...)"
    return FirewallError(
        f"{name} has no column {wanted}; it has {len(names)} columns. "
        "Fix: set firewall.column, or move the file out of firewall.references."
    )


def _refused(name: str, fault: str, fix: str = "repair it") -> FirewallError:
    return FirewallError(f"{name} {fault}. Fix: {fix}, or move it out of the folder.")
