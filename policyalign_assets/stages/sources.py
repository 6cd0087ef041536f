"""Reads what the registry points to: code versions, texts and data files, without loading models.

Texts count by their content. YAML and JSON enter as parsed, SQL and templates without comments and
surplus white space, Python constants by value. So a text can be reformatted or moved, and nothing
is out of date; once a word changes, what depends on it is.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import policyalign_assets
from policyalign_assets.files import parse_shipped_yaml
from policyalign_assets.settings import Settings

PACKAGE = Path(policyalign_assets.__file__).parent
# Quoted text, a comment, or a token of SQL; only the tokens' order decides what a query does
_SQL = re.compile(
    r"""('(?:[^']|'')*'|"(?:[^"]|"")*")|(?:--[^\n]*|/\*.*?\*/)|(\w+|[^\w\s])""", re.DOTALL
)
_JINJA_COMMENT = re.compile(r"\{#.*?#\}", re.DOTALL)


class SourceError(RuntimeError):
    """The registry points to something that is not there: a mistake in the package itself."""


def digest(content: object) -> str:
    """16 hexadecimal digits of the SHA-256 of JSON-able `content`. The order of keys counts."""
    text = json.dumps(content, ensure_ascii=False, default=_plain)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def content_of(source: str, settings: Settings) -> object:
    """The content behind an entry of `Stage.shaped_by`."""
    module, colon, function = source.partition(":")
    if colon:
        return getattr(import_module(module), function)(settings)
    return _files(source)


@cache
def code_version(module: str) -> int:
    """The `CODE_VERSION` of a module, read from its source: importing a trainer loads torch."""
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise SourceError(f"the registry names the module {module}, which does not exist.")
    for node in ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == "CODE_VERSION" for target in node.targets
        ):
            return int(ast.literal_eval(node.value))
    raise SourceError(f"{module} has no line 'CODE_VERSION = <number>'.")


@cache
def _files(pattern: str) -> list[object]:
    found = sorted(PACKAGE.glob(pattern))
    if not found:
        raise SourceError(f"the registry names {pattern}, and the package holds no such file.")
    # sorted by content, so that a renamed file changes nothing
    return sorted((parsed(f.suffix, f.read_text(encoding="utf-8")) for f in found), key=digest)


def parsed(suffix: str, text: str) -> object:
    """`text` of a data file as its meaning: what two spellings of the same content share."""
    match suffix:
        case ".yaml" | ".yml":
            return parse_shipped_yaml(text)
        case ".json":
            return json.loads(text)
        case ".sql":
            return normalized_sql(text)
        case ".jinja":
            return " ".join(_JINJA_COMMENT.sub("", text).split())
        case _:
            return text


def normalized_sql(text: str) -> str:
    """The tokens of SQL, one space apart, without comments. Quoted text stays as it is."""
    return " ".join(quoted or token for quoted, token in _SQL.findall(text) if quoted or token)


def _plain(value: Any) -> object:
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=repr)
    raise TypeError(f"{type(value).__name__} is no JSON-able content: {value!r}")
