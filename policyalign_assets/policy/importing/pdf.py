"""Reads the text of a PDF: its lines, lists and headings, without page headers and footers."""

import io
import re
from collections import Counter

from policyalign_assets.policy.errors import PolicyError
from policyalign_assets.policy.importing.pandoc import INSTALL

MAX_PAGES = 300
_LEAST_LETTERS = 20  # a page with fewer holds a picture of text
_BULLET = re.compile(r"[•◦▪‣·●○■➢✓\uf0b7\uf0a7-]|o(?= )")
_NUMBER = re.compile(r"(?:\(?(?:[0-9]{1,3}|[a-z]|[ivx]{1,4})[.)]|[0-9]{1,3}(?:\.[0-9]{1,3})+[.)]?)")
_RUNNING = 3  # lines at the top and bottom of a page that may be running headers


def read_pdf(path: str, data: bytes) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """(Markdown, place of each line, notes). Raises PolicyError: damaged, locked or scanned."""
    pages = _pages(path, data)
    letters = [len(re.findall(r"\w", "".join(page))) for page in pages]
    empty = [n for n, count in enumerate(letters, 1) if count < _LEAST_LETTERS]
    if len(empty) == len(pages):
        problem = "it is a scanned PDF: its pages are pictures and hold no text"
        fix = "Make its text searchable with a text recognition program (OCR), or use the original."
        raise PolicyError(path, None, problem, fix)
    running = _running_lines(pages)
    lines = [
        (line, f"page {number}")
        for number, page in enumerate(pages, 1)
        for line in _joined_marks(_without(page, running))
    ]
    text, places = _markdown(lines)
    notes = [f"a page header or footer, left out: {line!r}" for line in sorted(running)]
    notes += [f"page {n} holds no text: it may be a picture" for n in empty]
    return text, places, tuple(notes)


def _pages(path: str, data: bytes) -> list[list[str]]:
    """The lines of each page, with their indentation."""
    try:
        from pypdf import PdfReader
        from pypdf.errors import PyPdfError
    except ImportError as error:
        raise PolicyError(path, None, "pypdf, which reads PDF, is missing", INSTALL) from error
    try:
        reader = PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            problem = "the PDF is locked with a password"
            raise PolicyError(path, None, problem, "Save it without a password.")
        if len(reader.pages) > MAX_PAGES:
            problem = f"the PDF has more than {MAX_PAGES} pages"
            raise PolicyError(path, None, problem, "Import the parts that hold rules one by one.")
        texts = [page.extract_text(extraction_mode="layout") for page in reader.pages]
    except PolicyError:
        raise
    except (PyPdfError, ValueError, KeyError, TypeError, RecursionError, OSError) as error:
        problem = f"the PDF is damaged ({type(error).__name__})"
        raise PolicyError(path, None, problem, "Open it, and save it anew as PDF.") from error
    return [[line.rstrip() for line in text.split("\n") if line.strip()] for text in texts]


def _running_lines(pages: list[list[str]]) -> set[str]:
    """Lines that most pages have at their top or bottom; numbers in them may differ."""
    if len(pages) < 2:
        return set()
    counts = Counter(
        line
        for page in pages
        for line in {_numberless(x) for x in (*page[:_RUNNING], *page[-_RUNNING:])}
    )
    return {line for line, count in counts.items() if count >= max(2, 0.6 * len(pages))}


def _numberless(line: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"\d+", "#", line)).strip()


def _without(page: list[str], running: set[str]) -> list[str]:
    inner = range(_RUNNING, len(page) - _RUNNING)
    return [line for at, line in enumerate(page) if at in inner or _numberless(line) not in running]


def _joined_marks(lines: list[str]) -> list[str]:
    """A list mark on a line of its own goes before the next line."""
    out: list[str] = []
    mark = ""
    for line in lines:
        if _BULLET.fullmatch(line.strip()) or _NUMBER.fullmatch(line.strip()):
            mark = line
            continue
        if mark:
            indent = len(mark) - len(mark.lstrip())
            line = f"{' ' * indent}{mark.strip()} {line.strip()}"
            mark = ""
        out.append(line)
    return out


def _markdown(lines: list[tuple[str, str]]) -> tuple[str, tuple[str, ...]]:
    """Paragraphs, headings and nested lists from lines and their indentation."""
    out: list[tuple[str, str]] = []
    indents: list[int] = []
    first = re.sub(r"\s+", " ", lines[0][0]).strip() if lines else ""
    if first and len(first) <= 80 and not first.endswith((".", ":", ";", ",")):
        out, lines = [(f"# {first}", lines[0][1]), ("", lines[0][1])], lines[1:]
    for line, place in lines:
        indent, text = len(line) - len(line.lstrip()), re.sub(r"\s+", " ", line).strip()
        bullet = re.match(rf"(?:{_BULLET.pattern}) +(?P<text>\S.*)", text)
        number = re.match(rf"(?P<mark>{_NUMBER.pattern}) +(?P<text>\S.*)", text)
        if _is_heading(text, bool(bullet)):
            indents = []
            out += [("", place), (f"## {text}", place), ("", place)]
        elif bullet or (number and not re.match(r"\d+\.\d", number["mark"])):
            while indents and indents[-1] > indent:
                indents.pop()
            if not indents or indents[-1] < indent:
                indents.append(indent)
            said = bullet["text"] if bullet else text
            if not out or not out[-1][0].lstrip().startswith("- "):
                out.append(("", place))
            out.append((f"{'  ' * (len(indents) - 1)}- {said}", place))
        elif number:
            indents = [indent]
            out += [("", place), (f"- {text}", place)]
        elif (indents and indent > indents[-1] and out and out[-1][0]) or (
            out and out[-1][0] and not out[-1][0].startswith(("#", "- ")) and not indents
        ):
            out[-1] = (_run_on(out[-1][0], text), out[-1][1])
        else:
            indents = []
            out += [("", place), (text, place)]
    return "\n".join(line for line, _ in out), tuple(place for _, place in out)


def _run_on(before: str, text: str) -> str:
    if re.search(r"[a-z]-$", before) and text[:1].islower():
        return before[:-1] + text
    return f"{before} {text}"


def _is_heading(text: str, bullet: bool) -> bool:
    """A short line without an end mark: numbered as one, in capitals, or in title case."""
    if bullet or len(text) > 70 or text.endswith((".", ":", ";", ",", "?", "!")) or len(text) < 4:
        return False
    bare = re.sub(r"^(?:(?:Section|Part|Article) )?[0-9]+(?:\.[0-9]+)*[.)]?\s+", "", text)
    words = re.findall(r"[A-Za-z][\w'-]*", bare)
    if not words or len(words) > 8:
        return False
    if bare.isupper() or (
        bare != text and len(words) <= 6 and not re.search(r"\b(?:must|may|not|never)\b", bare)
    ):
        return True
    large = [w for w in words if len(w) > 3]
    return bool(large) and all(w[0].isupper() for w in large) and len(words) <= 6
