"""The fields that an author writes below a rule: "- severity: high"."""

import difflib
import re
from dataclasses import dataclass, field

from policyalign_assets.policy.errors import Fault
from policyalign_assets.policy.model import KINDS, SEVERITIES, collapse
from policyalign_assets.policy.source import Source

_NAMES = {
    "kind": "kind",
    "action": "action",
    "condition": "condition",
    "except": "except",
    "exception": "except",
    "exceptions": "except",
    "severity": "severity",
    "violates": "violates",
    "violation": "violates",
    "allowed": "allowed",
    "source": "source",
    "limits": "limits",
    "example": "example",
    "examples": "example",
}
_MANY = ("except", "violates", "allowed", "example")
_FIELD = re.compile(
    r"(?:\*\*|__)?(?P<name>[A-Za-z]+)(?:\*\*|__)?:(?:\*\*|__)?(?:\s+(?P<value>.*))?", re.DOTALL
)
_LEVELS = {
    "critical": "critical", "severe": "critical", "blocker": "critical",
    "high": "high", "major": "high",
    "medium": "medium", "moderate": "medium", "low": "low", "minor": "low",
}  # fmt: skip
_INLINE_SEVERITY = re.compile(
    rf"^[\[(](?P<first>{'|'.join(_LEVELS)})(?: (?:severity|risk|priority))?[\])]:? +|"
    rf" *[\[(](?:severity: ?|risk: ?|priority: ?)?(?P<last>{'|'.join(_LEVELS)})"
    r"(?: (?:severity|risk|priority))?[\])]\.?$",
    re.IGNORECASE,
)
_HEADING_SEVERITY = re.compile(
    rf"\b(?P<a>{'|'.join(_LEVELS)})[ -](?:severity|risk|priority|level|tier)\b"
    r"|\b(?:severity|risk|priority|level|tier)\b[ :–—-]*"
    rf"(?P<b>{'|'.join(_LEVELS)})\b"
    rf"|^(?P<c>{'|'.join(_LEVELS)})$",
    re.IGNORECASE,
)


@dataclass
class Fields:
    """What stands below one rule: {name: [values]}, and the line of each name."""

    values: dict[str, list[str]] = field(default_factory=dict)
    indices: dict[str, int] = field(default_factory=dict)

    def one(self, name: str) -> str | None:
        return self.values[name][0] if self.values.get(name) else None

    def all(self, name: str) -> tuple[str, ...]:
        return tuple(self.values.get(name, ()))

    def with_inherited(self, outer: "Fields") -> "Fields":
        """These, with the severity and source of the line above the list."""
        made = Fields(dict(self.values), dict(self.indices))
        for name in ("severity", "source"):
            if name in outer.values and name not in made.values:
                made.values[name] = outer.values[name]
                made.indices[name] = outer.indices[name]
        return made


def field_name(text: str) -> str | None:
    """The name of the field that a line below a rule is, or None where it is no field."""
    found = _FIELD.fullmatch(text)
    return _NAMES.get(found["name"].lower()) if found else None


def add_field(fields: Fields, text: str, index: int, source: Source, faults: list[Fault]) -> None:
    """Adds a line such as "severity: high" to `fields`, or says in `faults` why it cannot be."""
    found = _FIELD.fullmatch(text)
    assert found is not None
    name = _NAMES[found["name"].lower()]
    value = collapse(found["value"] or "")
    value = value.strip('"“”„') if re.fullmatch(r"[\"“„].*[\"”“]", value) else value
    if not value:
        faults.append(
            source.error(index, f"the field '{name}' is empty", "Write its value, or delete it.")
        )
        return
    if name == "kind" and value not in KINDS:
        fix = f"Use one of these: {', '.join(KINDS)}."
        faults.append(source.error(index, f"{value[:80]!r} is not a kind of rule", fix))
        return
    if name == "severity":
        level = _LEVELS.get(value.lower())
        if level is None:
            fix = f"Use one of these: {', '.join(SEVERITIES)}."
            faults.append(source.error(index, f"{value[:80]!r} is not a severity", fix))
            return
        value = level
    if name not in _MANY and name in fields.values:
        faults.append(
            source.error(index, f"the field '{name}' stands here twice", "Keep one of them.")
        )
        return
    fields.values.setdefault(name, []).append(value)
    fields.indices.setdefault(name, index)


def near_field(text: str) -> str | None:
    """The field that a line may have meant: "severity" for "sevrity: high"; else None."""
    found = re.fullmatch(r"(?P<name>[a-z_]{3,14}): +\S.*", text, re.DOTALL)
    if found is None or field_name(text):
        return None
    near = difflib.get_close_matches(found["name"], list(_NAMES), 1, 0.75)
    return _NAMES[near[0]] if near else None


def split_severity(text: str) -> tuple[str | None, str]:
    """("high", "Never lie.") for "Never lie. (high)"; (None, text) without one."""
    found = _INLINE_SEVERITY.search(text)
    if found is None:
        return None, text
    level = _LEVELS[(found["first"] or found["last"]).lower()]
    return level, (text[: found.start()] + text[found.end() :]).strip()


def heading_severity(heading: str) -> str | None:
    found = _HEADING_SEVERITY.search(heading.strip())
    return _LEVELS[(found["a"] or found["b"] or found["c"]).lower()] if found else None
