"""How each rule is read, and whether it is measured: what lint, Dagster and the report show."""

import re
from collections.abc import Iterator, Sequence
from typing import TypedDict

from policyalign_assets.policy.errors import Fault
from policyalign_assets.policy.model import PolicyDocument, Rule
from policyalign_assets.policy.reading.languages import language_name


class ReadingRow(TypedDict):
    """One rule as it is read. `why` says how it is measured, or why it is not."""

    id: str
    text: str
    kind: str
    action: str | None
    condition: str | None
    exception: str | None
    measured: bool
    why: str


def reading_rows(policy: PolicyDocument) -> list[ReadingRow]:
    """One row per rule, in the policy's order, for lint, run metadata and the report."""
    return [reading_row(rule) for rule in policy.rules]


def reading_row(rule: Rule) -> ReadingRow:
    is_measured, why = measured(rule)
    return ReadingRow(
        id=rule.rule_id,
        text=rule.words,
        kind=rule.kind,
        action=rule.action,
        condition=rule.condition,
        exception="; ".join(rule.exceptions) or None,
        measured=is_measured,
        why=why,
    )


def reading_line(rule: Rule) -> str:
    """How a rule is read, in one line: "forbids: change a dose; except: a doctor agrees"."""
    verb = {"permit": "allows", "define": "explains"}.get(
        rule.kind, "forbids" if rule.forbids else "requires"
    )
    parts = [f"{verb}: {rule.action}" if rule.action else verb]
    if rule.condition:
        parts.append(f"when: {rule.condition}")
    parts += [f"except: {exception}" for exception in rule.exceptions]
    parts += [f"allows: {permitted}" for permitted in rule.permitted]
    return "; ".join(parts)


def measured(rule: Rule) -> tuple[bool, str]:
    """Whether the rule is trained and measured, and how, or why not."""
    if rule.kind == "permit":
        tied = f" and limits {rule.limits}" if rule.limits else ""
        return False, f"a permission: it is part of the prompt{tied}"
    if rule.kind == "define":
        return False, "an explanation: it is part of the prompt only"
    if rule.violates:
        return True, "trained and measured with requests by its author and by the model"
    if not rule.forbids:
        return False, "a duty: no single request violates it, unless 'violates:' names some"
    if rule.action:
        return True, "trained and measured with requests for its action"
    if rule.language != "en":
        name = language_name(rule.language)
        return False, f"it is in {name}, and requests are written in English: add 'violates:'"
    return False, "its action is not clear: write 'Never <do something>.' or add 'action:'"


def contradictions(rules: Sequence[Rule]) -> Iterator[tuple[Rule, Rule]]:
    """Pairs of unconditional rules of which one forbids word for word what the other wants."""
    forbidden: dict[str, Rule] = {}
    wanted: dict[str, Rule] = {}
    for rule in rules:
        if rule.condition or rule.exceptions:
            continue
        if rule.kind == "prohibit" and rule.action:
            key, own, other = _key(rule.action), forbidden, wanted
        elif rule.kind == "permit" and rule.action:
            key, own, other = _key(rule.action), wanted, forbidden
        elif rule.kind == "require":
            key, own, other = _key(_demand(rule.words)), wanted, forbidden
        else:
            continue
        own.setdefault(key, rule)
        if key in other:
            yield other[key], rule


def _demand(text: str) -> str:
    """What a duty asks for: "cite sources" of "Always cite sources."."""
    return re.sub(
        r"^(?:[\w' -]{0,40}?\b(?:must|shall|should|always|will)\b )+(?:always )?",
        "",
        text,
        flags=re.I,
    )


def _key(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def doubts_of(rule: Rule, doubts: dict[str, tuple[str, ...]]) -> Iterator[Fault]:
    """The reader's doubts about a rule, as warnings; a field that settles a doubt silences it."""
    for doubt in doubts.get(rule.rule_id, ()):
        if "kind" in rule.overruled or (rule.action and "action" in rule.overruled):
            continue
        if rule.language != "en" and rule.violates:
            continue
        fix = "Reword it, or write 'kind:' (and 'action:') below it to settle how it is read."
        yield Fault("", rule.line, f"{rule.rule_id} ({rule.kind}): {doubt}", fix, "warning")
