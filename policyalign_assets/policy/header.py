"""Reads a policy file's front matter."""

import datetime
from dataclasses import dataclass

import yaml
from frontmatter import YAMLHandler

from policyalign_assets.policy.errors import PolicyError
from policyalign_assets.policy.model import DOMAINS, collapse
from policyalign_assets.policy.source import Source

_HANDLER = YAMLHandler()
_EXAMPLES = {
    "title": "General conduct",
    "owner": "Clinical Safety Office",
    "domains": "[medical, legal]",
}


@dataclass(frozen=True)
class Header:
    """The front matter; what a file leaves out is empty or None. The two lines are those of the file that name the
    domains and the waived rules."""

    title: str
    owner: str
    effective_date: datetime.date | None
    references: tuple[str, ...]
    domains: tuple[str, ...]
    domains_line: int | None
    waive_starved: tuple[str, ...] = ()
    waive_line: int | None = None


def read_shared_header(source: Source) -> tuple[Header, Source]:
    """The front matter of a policy.md, and the text after it.

    Raises PolicyError: as `read_header`, and where title, owner or domains are missing or a domain is unknown.
    """
    header, body = read_header(source)
    for key, example in _EXAMPLES.items():
        if not getattr(header, key):
            raise source.error(
                None,
                f"the front matter has no {key}",
                f"Add a line such as '{key}: {example}' between the '---' lines.",
            )
    for domain in header.domains:
        if domain not in DOMAINS:
            problem = f"{domain[:80]!r} is not a domain"
            raise PolicyError(
                source.path, header.domains_line, problem, f"Use only these: {', '.join(DOMAINS)}."
            )
    return header, body


def read_header(source: Source) -> tuple[Header, Source]:
    """The front matter of any policy file (it may be absent), and the text after it.

    Raises PolicyError: front matter that is unclosed or not valid YAML, or a value of the wrong form.
    """
    fields, body = _split(source)
    front = Source(source.path, source.lines[: len(source.lines) - len(body.lines)], source.numbers)
    domains_index, waive_index = _index_of(front, "domains"), _index_of(front, "waive_starved")
    header = Header(
        title=_text(front, fields, "title"),
        owner=_text(front, fields, "owner"),
        effective_date=_date(front, fields, "effective_date"),
        references=_texts(front, fields, "references"),
        domains=_texts(front, fields, "domains"),
        domains_line=None if domains_index is None else front.numbers[domains_index],
        waive_starved=_texts(front, fields, "waive_starved"),
        waive_line=None if waive_index is None else front.numbers[waive_index],
    )
    return header, body


def _split(source: Source) -> tuple[dict[str, object], Source]:
    text = source.text
    opening = _HANDLER.FM_BOUNDARY.match(text)
    if opening is None:
        return {}, source
    try:
        front, content = _HANDLER.split(text)
    except ValueError as error:
        raise source.error(
            0, "the front matter is never closed", "End it with a line '---'."
        ) from error
    first = text.count("\n", 0, opening.end())
    try:
        # BaseLoader keeps every value as written: no date, yes/no or number is converted behind the author's back.
        fields = _HANDLER.load(front, Loader=yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        what = getattr(error, "problem", None) or "unreadable characters or nesting"
        mend = "Write each line as 'key: value' and put quotes around a value that holds a colon."
        raise source.error(
            first + mark.line if mark else 0, f"the front matter is not valid YAML ({what})", mend
        ) from error
    if not isinstance(fields, dict | None):
        raise source.error(
            first,
            "the front matter is not a list of 'key: value' lines",
            "Write lines such as 'title: General conduct'.",
        )
    return fields or {}, source.tail(text.count("\n", 0, len(text) - len(content)))


def _index_of(front: Source, key: str) -> int | None:
    return next(
        (
            index
            for index, line in enumerate(front.lines)
            if line.startswith((f"{key}:", f"{key} :"))
        ),
        None,
    )


def _text(front: Source, fields: dict[str, object], key: str) -> str:
    value = fields.get(key, "")
    if not isinstance(value, str):
        raise front.error(
            _index_of(front, key), f"{key} is not plain text", f"Write it as '{key}: some words'."
        )
    return "" if value in ("~", "null") else collapse(value)


def _texts(front: Source, fields: dict[str, object], key: str) -> tuple[str, ...]:
    values = fields.get(key) or []
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise front.error(
            _index_of(front, key),
            f"{key} is not a list of words",
            f"Write it as '{key}: [first, second]'.",
        )
    return tuple(collapse(value) for value in values)


def _date(front: Source, fields: dict[str, object], key: str) -> datetime.date | None:
    value = _text(front, fields, key)
    try:
        return datetime.date.fromisoformat(value) if value else None
    except ValueError as error:
        problem = f"{key} {value[:80]!r} is not a date"
        raise front.error(
            _index_of(front, key), problem, "Write it as year-month-day, such as 2026-01-31."
        ) from error
