"""Reads a document as Markdown, with the place that each line comes from and what was left out."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from policyalign_assets.policy.errors import PolicyError
from policyalign_assets.policy.source import MAX_BYTES

MAX_DOCUMENT = 32 * 1024 * 1024  # bytes; a Word file holds pictures too
FORMATS = (".md", ".markdown", ".txt", ".html", ".htm", ".docx", ".pdf")


@dataclass(frozen=True)
class Document:
    """A document's text as Markdown.

    places: for each line of `text`, where it stands in the document ("page 3", "line 14").
    notes: what its reader should know, such as tracked changes, comments, and what was left out.
    """

    name: str
    sha256: str
    text: str
    places: tuple[str, ...]
    notes: tuple[str, ...] = ()
    title: str = ""


def read_document(file: Path) -> Document:
    """Reads a file of one of `FORMATS`.

    Raises PolicyError: no such file, another format, a file that is too large or damaged, a PDF
    without text, or an optional library that is not installed.
    """
    suffix = file.suffix.lower()
    if suffix not in FORMATS:
        problem = f"{suffix or 'a file without an ending'!r} cannot be imported"
        fix = f"Save it as one of these: {', '.join(FORMATS)}."
        raise PolicyError(str(file), None, problem, fix)
    data = _data(file)
    title = ""
    digest = hashlib.sha256(data).hexdigest()
    if suffix == ".pdf":
        from policyalign_assets.policy.importing.pdf import read_pdf

        text, places, notes = read_pdf(str(file), data)
    elif suffix == ".docx":
        from policyalign_assets.policy.importing.word import read_word

        text, places, notes, title = read_word(str(file), data)
    elif suffix in (".html", ".htm"):
        from policyalign_assets.policy.importing.web import read_html

        text, places, notes = read_html(str(file), data)
    else:
        text, notes = _decoded(file, data), ()
        places = tuple(f"line {n}" for n in range(1, text.count("\n") + 2))
    if len(text.encode()) > MAX_BYTES:
        problem = f"its text is larger than {MAX_BYTES // 1024} KiB"
        fix = "Import the parts that hold rules one by one: a model reads the whole policy."
        raise PolicyError(str(file), None, problem, fix)
    if not re.search(r"\w", text):
        raise PolicyError(str(file), None, "it holds no text", "Check that it is the right file.")
    return Document(file.name, digest, text, places, notes, title)


def _data(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            data = opened.read(MAX_DOCUMENT + 1)
    except OSError as error:
        problem = f"the file cannot be read ({error.strerror})"
        raise PolicyError(str(file), None, problem, "Check its path and permissions.") from error
    if len(data) > MAX_DOCUMENT:
        problem = f"the file is larger than {MAX_DOCUMENT // 2**20} MiB"
        raise PolicyError(str(file), None, problem, "Take its pictures out, or split it.")
    return data


def _decoded(file: Path, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        fix = "Save the file with the encoding UTF-8."
        raise PolicyError(str(file), line, "the file is not UTF-8 text here", fix) from error


def section_places(text: str) -> tuple[str, ...]:
    """The heading above each line of Markdown, for formats whose lines mean nothing to a reader."""
    places, heading, fenced = [], "", False
    for line in text.split("\n"):
        fenced ^= line.startswith("```")
        found = None if fenced else re.match(r"#{1,6} +(?P<title>.+)", line)
        heading = re.sub(r"[*_`\\]", "", found["title"]).strip() if found else heading
        places.append(f"section {heading!r}" if heading else "before the first heading")
    return tuple(places)
