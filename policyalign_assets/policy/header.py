"""Reads a policy file's front matter."""

import datetime
import difflib
import re
from collections.abc import Hashable
from dataclasses import dataclass, field

import yaml

from policyalign_assets.policy.domains import domains_fix, known_domains
from policyalign_assets.policy.errors import Fault
from policyalign_assets.policy.model import collapse
from policyalign_assets.policy.source import Source
from policyalign_assets.settings import BARS, GateSettings, approver_parts

MAX_FRONT_MATTER = 16 * 1024  # characters; more slows every look at the policies
_BOUNDARY = re.compile(r"-{3,}\s*")
_EXAMPLES = {
    "title": "General conduct",
    "owner": "Clinical Safety Office",
    "domains": "[medical, legal]",
}
KEYS = (
    "title",
    "owner",
    "effective_date",
    "references",
    "domains",
    "waive_starved",
    "imported",
    "reviewed",
    "gates",
    "approvers",
)
_REVIEWED = re.compile(r"(?P<name>.*\w.*), *(?P<date>\d{4}-\d{2}-\d{2})")


@dataclass(frozen=True)
class Header:
    """The front matter; what a file leaves out is empty or None. `lines` are those of its keys."""

    title: str = ""
    owner: str = ""
    effective_date: datetime.date | None = None
    references: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()
    waive_starved: tuple[str, ...] = ()
    imported: str = ""  # the document that the policy was imported from
    reviewed: str = ""  # "NAME, DATE" of whoever checked an imported policy
    gates: tuple[tuple[str, float], ...] = ()  # bars of the release gates for this policy
    approvers: tuple[str, ...] = ()  # who may approve its releases
    lines: dict[str, int] = field(default_factory=dict)
    found: bool = False  # whether there is front matter at all
    broken: bool = False  # whether it cannot be read as a whole


def read_shared_header(source: Source, faults: list[Fault]) -> tuple[Header, Source]:
    """The front matter of a policy.md, and the text after it.

    Adds to `faults` as `read_header`, and where title, owner or domains are missing or unknown.
    """
    header, body = read_header(source, faults)
    if header.broken:
        return header, body
    told = {fault.problem.split(" ", 1)[0] for fault in faults}
    for key, example in _EXAMPLES.items():
        if not getattr(header, key) and key not in told:
            fix = f"Add a line such as '{key}: {example}' between the '---' lines."
            faults.append(source.error(None, f"the front matter has no {key}", fix))
    for domain in header.domains:
        if domain not in known_domains():
            fix = domains_fix()
            problem = f"{domain[:80]!r} is not a domain"
            faults.append(Fault(source.path, header.lines.get("domains"), problem, fix))
    return header, body


def read_header(source: Source, faults: list[Fault]) -> tuple[Header, Source]:
    """The front matter of any policy file (it may be absent), and the text after it.

    Adds to `faults`: front matter that is too long, unclosed or not valid YAML, a key that is
    unknown or stands twice, a value of the wrong form.
    """
    first = next((i for i, line in enumerate(source.lines) if line.strip()), 0)
    if not source.lines or not _BOUNDARY.fullmatch(source.lines[first]):
        return Header(), source
    last = next(
        (i for i, line in enumerate(source.lines) if i > first and _BOUNDARY.fullmatch(line)), None
    )
    if last is None:
        fault = source.error(first, "the front matter is never closed", "End it with a line '---'.")
        faults.append(fault)
        return Header(found=True, broken=True), source.tail(len(source.lines))
    front = Source(source.path, source.lines[:last], source.numbers[:last])
    body = source.tail(last + 1)
    values = _values(front, first + 1, faults)
    if values is None:
        return Header(found=True, broken=True), body
    return _header(front, values, faults), body


class _Loader(getattr(yaml, "CBaseLoader", yaml.BaseLoader)):  # type: ignore[misc]
    """Keeps every value as written: no date, yes or number is converted behind the author's back.

    It notes the line of each key of the outermost mapping, and keys that stand there twice.
    """

    key_lines: dict[str, int]
    twice: list[tuple[str, int]]

    def construct_mapping(
        self, node: yaml.MappingNode, deep: bool = False
    ) -> dict[Hashable, object]:
        for key, _ in node.value:
            if key.start_mark.column == 0 and isinstance(key.value, str):
                if key.value in self.key_lines:
                    self.twice.append((key.value, key.start_mark.line))
                self.key_lines.setdefault(key.value, key.start_mark.line)
        made: dict[Hashable, object] = super().construct_mapping(node, deep)
        return made


def _values(front: Source, start: int, faults: list[Fault]) -> dict[str, tuple[object, int]] | None:
    """{key: (value, index of its line)} from line `start` on; None where it cannot be read."""
    text = "\n".join(front.lines[start:])
    if len(text) > MAX_FRONT_MATTER:
        problem = f"the front matter is longer than {MAX_FRONT_MATTER // 1024} KiB"
        faults.append(front.error(start, problem, "Shorten it: rules belong below it."))
        return None
    loader = _Loader(text)
    loader.key_lines, loader.twice = {}, []
    try:
        fields = loader.get_single_data()
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        what = getattr(error, "problem", None) or "unreadable characters or nesting"
        fix = "Write each line as 'key: value' and put quotes around a value that holds a colon."
        at = start + mark.line if mark else start - 1
        problem = f"the front matter is not valid YAML ({what})"
        faults.append(front.error(min(at, len(front.lines) - 1), problem, fix))
        return None
    finally:
        loader.dispose()
    if not isinstance(fields, dict | None):
        problem = "the front matter is not a list of 'key: value' lines"
        fix = "Write lines such as 'title: General conduct'."
        faults.append(front.error(start, problem, fix))
        return None
    lines = {key: start + line for key, line in loader.key_lines.items()}
    for key, line in loader.twice:
        place = front.numbers[start + line]
        problem = f"the key {key[:80]!r} stands twice in the front matter (line {place})"
        faults.append(front.error(lines[key], problem, "Keep one of the two lines."))
    for key in fields or {}:
        if key not in KEYS:
            faults.append(_unknown_key(front, str(key), lines.get(str(key))))
    return {str(k): (v, lines.get(str(k), start)) for k, v in (fields or {}).items()}


def _unknown_key(front: Source, key: str, index: int | None) -> Fault:
    near = difflib.get_close_matches(key, KEYS, 1, 0.6)
    fix = f"Did you mean {near[0]!r}?" if near else f"Use only these: {', '.join(KEYS)}."
    return front.warning(index, f"the front matter key {key[:80]!r} is unknown: ignored", fix)


def _header(front: Source, values: dict[str, tuple[object, int]], faults: list[Fault]) -> Header:
    reader = _Values(front, values, faults)
    return Header(
        title=reader.text("title"),
        owner=reader.text("owner"),
        effective_date=reader.date("effective_date"),
        references=reader.texts("references"),
        domains=reader.texts("domains"),
        waive_starved=reader.texts("waive_starved"),
        imported=reader.text("imported"),
        reviewed=reader.reviewed(),
        gates=reader.gates("gates"),
        approvers=reader.approvers(),
        lines={key: front.numbers[index] for key, (_, index) in values.items()},
        found=True,
    )


@dataclass(frozen=True)
class _Values:
    front: Source
    values: dict[str, tuple[object, int]]
    faults: list[Fault]

    def _wrong(self, key: str, problem: str, fix: str) -> None:
        self.faults.append(self.front.error(self.values[key][1], problem, fix))

    def text(self, key: str) -> str:
        value = self.values.get(key, ("", 0))[0]
        if not isinstance(value, str):
            self._wrong(key, f"{key} is not plain text", f"Write it as '{key}: some words'.")
            return ""
        return "" if value in ("~", "null") else collapse(value)

    def texts(self, key: str) -> tuple[str, ...]:
        values = self.values.get(key, ([], 0))[0] or []
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            fix = f"Write it as '{key}: [first, second]'."
            self._wrong(key, f"{key} is not a list of words", fix)
            return ()
        return tuple(collapse(value) for value in values)

    def date(self, key: str) -> datetime.date | None:
        value = self.text(key)
        try:
            return datetime.date.fromisoformat(value) if value else None
        except ValueError:
            fix = "Write it as year-month-day, such as 2026-01-31."
            self._wrong(key, f"{key} {value[:80]!r} is not a date", fix)
            return None

    def gates(self, key: str) -> tuple[tuple[str, float], ...]:
        """Margins of the release gates. The settings know the bars and their hard floors."""
        values = self.values.get(key, ({}, 0))[0] or {}
        if not isinstance(values, dict):
            fix = "Write it as 'gates: {over_refusal_margin: 0.01}'."
            self._wrong(key, f"{key} is not a list of bars with a number each", fix)
            return ()
        found = []
        for bar, value in values.items():
            named = {"loosened_by": "owner", "loosened_because": "policy"}
            try:
                if bar not in BARS:
                    raise ValueError
                found.append((str(bar), float(str(value))))
                GateSettings.model_validate({bar: float(str(value)), **named})
            except ValueError:
                fix = f"Use a number within the hard floors, and one of {', '.join(BARS)}."
                problem = f"{key} cannot set {str(bar)[:80]!r} to {str(value)[:40]!r}"
                self._wrong(key, problem, fix)
                return ()
        return tuple(found)

    def approvers(self) -> tuple[str, ...]:
        named = self.texts("approvers")
        for one in named:
            try:
                approver_parts(one)
            except ValueError as error:
                problem, _, fix = str(error).partition(". Fix: ")
                self._wrong("approvers", problem, f"{fix[:1].upper()}{fix[1:]}.")
                return ()
        return named

    def reviewed(self) -> str:
        value = self.text("reviewed")
        found = _REVIEWED.fullmatch(value)
        try:
            if value and (found is None or not datetime.date.fromisoformat(found["date"])):
                raise ValueError
        except ValueError:
            fix = "Write it as 'reviewed: NAME, DATE', such as 'reviewed: Ada Smith, 2026-01-31'."
            self._wrong("reviewed", f"reviewed {value[:80]!r} names no person and date", fix)
            return ""
        return value
