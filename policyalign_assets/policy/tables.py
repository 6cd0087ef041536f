"""Reads a table of rules: which column holds the rules, and what the other columns say."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from policyalign_assets.policy.reading.surroundings import heading_kind

_COLUMNS = (
    ("id", re.compile(r"(?:id|no\.?|nr\.?|#|number|ref(?:erence)?|rule (?:id|no\.?|number)"
                      r"|control id)")),
    ("severity", re.compile(r"(?:severity|risk(?: level)?|priority|level|tier)")),
    ("category", re.compile(r"(?:category|area|topic|domain|section|theme|group)")),
    ("kind", re.compile(r"(?:kind)")),
    ("except", re.compile(r"(?:exceptions?|unless|except)")),
    ("violates", re.compile(r"(?:violates|violations?|example of (?:a )?violation|bad example)")),
    ("allowed", re.compile(r"(?:allowed example|acceptable example|good example)")),
    ("example", re.compile(r"(?:examples?|e\.g\.)")),
    ("source", re.compile(r"(?:source|origin)")),
    ("rule", re.compile(r".*\b(?:rules?|policy|requirements?|statement|standard|guideline|control"
                        r"|description|text|what)\b.*")),
)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One rule of a table. `heading` is its column's, where that tells a kind ("Don't")."""

    text: str
    fields: tuple[str, ...] = ()
    heading: str = ""
    category: str = ""


def table_cells(rows: list[list[str]]) -> Iterator[tuple[int, Cell]]:
    """(row number from 0, which is the header; rule) of each rule in a table."""
    if len(rows) < 2:
        return
    header = [re.sub(r"[*_`]", "", name).strip() for name in rows[0]]
    roles = _roles(header, rows[1:])
    for number, row in enumerate(rows[1:], 1):
        said = {role: row[at] for at, role in enumerate(roles) if at < len(row) and row[at].strip()}
        name = said.get("id", "")
        fields = tuple(
            f"{role}: {said[role]}"
            for role in ("kind", "severity", "except", "violates", "allowed", "example", "source")
            if role in said and said[role].strip(" -–—").lower() not in ("", "none", "n/a", "no")
        )
        for at, role in enumerate(roles):
            if role not in ("rule", "telling") or at >= len(row) or not row[at].strip(" -–—"):
                continue
            text = f"{name}: {row[at]}" if name and "telling" not in roles else row[at]
            yield (
                number,
                Cell(
                    text, fields, header[at] if role == "telling" else "", said.get("category", "")
                ),
            )


def _roles(header: list[str], rows: list[list[str]]) -> list[str]:
    roles = [
        next((role for role, name in _COLUMNS if name.fullmatch(title.lower())), "")
        for title in header
    ]
    telling = [at for at, title in enumerate(header) if not roles[at] and heading_kind(title)]
    for at in telling:
        roles[at] = "telling"
    if not telling and "rule" not in roles:
        lengths = [
            sum(len(row[at]) for row in rows if at < len(row)) if not roles[at] else -1
            for at in range(len(header))
        ]
        if lengths and max(lengths) > 0:
            roles[lengths.index(max(lengths))] = "rule"
    first = roles.index("rule") if "rule" in roles else -1
    return ["" if role == "rule" and at != first else role for at, role in enumerate(roles)]
