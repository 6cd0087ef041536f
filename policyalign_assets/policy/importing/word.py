"""Reads a Word file: lists and tables as they are, tracked changes and comments by name."""

import io
import json
import re
import zipfile
from collections.abc import Iterator
from typing import Any

from policyalign_assets.policy.importing.documents import section_places
from policyalign_assets.policy.importing.pandoc import run_pandoc

_MARKDOWN = "gfm-raw_html-tex_math_dollars"
_CHANGES = {"insertion": "inserted", "deletion": "deleted", "comment-start": "commented"}


def read_word(path: str, data: bytes) -> tuple[str, tuple[str, ...], tuple[str, ...], str]:
    """Markdown, place of each line, notes, title. Tracked changes are accepted, and named."""
    options = ("--wrap=none", "--track-changes=accept")
    text = run_pandoc(path, data, "docx", _MARKDOWN, *options)
    tree = json.loads(run_pandoc(path, data, "docx", "json", "--track-changes=all"))
    notes = [*_changes(tree["blocks"]), *_headers(data)]
    title = _plain(tree["meta"].get("title", {})).strip()
    return text, section_places(text), tuple(notes), title


def _changes(blocks: list[Any]) -> Iterator[str]:
    """One note for each tracked change and comment, with its author and words."""
    for span in _spans(blocks):
        (_, classes, attributes), content = span
        kind = next((_CHANGES[c] for c in classes if c in _CHANGES), None)
        if kind is None:
            continue
        told = dict(attributes)
        who = told.get("author", "somebody")
        date = f" on {told['date'][:10]}" if told.get("date") else ""
        text = re.sub(r"\s+", " ", _plain(content)).strip()
        if kind == "commented":
            yield f"a comment by {who}{date}, left out: {text!r}"
        else:
            accepted = "its words are in the draft" if kind == "inserted" else "they are left out"
            yield f"a tracked change by {who}{date}, {kind}: {text!r} ({accepted})"


def _spans(node: Any) -> Iterator[Any]:
    if isinstance(node, dict):
        if node.get("t") == "Span":
            yield node["c"]
        for value in node.values():
            yield from _spans(value)
    elif isinstance(node, list):
        for value in node:
            yield from _spans(value)


def _plain(node: Any) -> str:
    if isinstance(node, list):
        return "".join(_plain(each) for each in node)
    if not isinstance(node, dict):
        return ""
    if node.get("t") == "Str":
        return str(node["c"])
    if node.get("t") in ("Space", "SoftBreak", "LineBreak"):
        return " "
    return _plain(node.get("c", []))


def _headers(data: bytes) -> Iterator[str]:
    """A note where the file has page headers or footers with words in them."""
    with zipfile.ZipFile(io.BytesIO(data)) as package:
        names = [
            n for n in package.namelist() if re.fullmatch(r"word/(?:header|footer)\d*\.xml", n)
        ]
        words = set()
        for name in names[:50]:
            with package.open(name) as part:
                xml = part.read(256 * 1024).decode("utf-8", errors="replace")
            words.add(" ".join(re.findall(r"<w:t(?: [^>]*)?>([^<]*)</w:t>", xml)).strip())
    for text in sorted(words - {""}):
        yield f"a page header or footer, left out: {text[:120]!r}"
