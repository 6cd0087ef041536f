"""How each rule is read, in words: what lint, Dagster and the report show."""

import re
from collections.abc import Iterator, Sequence

from policyalign_assets.policy.errors import Fault
from policyalign_assets.policy.model import Rule


def reading_line(rule: Rule) -> str:
    """How a rule is read, in one line: "forbids: change a dose; except: a doctor agrees"."""
    verb = {"permit": "allows", "define": "explains"}.get(
        rule.kind, "forbids" if rule.forbids else "requires"
    )
    parts = [f"{verb}: {said}" if (said := rule.action or rule.demand) else verb]
    if rule.condition:
        parts.append(f"when: {rule.condition}")
    parts += [f"except: {exception}" for exception in rule.exceptions]
    parts += [f"allows: {permitted}" for permitted in rule.permitted]
    if rule.limits:
        parts.append(f"limits {rule.limits}")
    return "; ".join(parts)


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
