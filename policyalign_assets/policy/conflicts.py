"""Conflicts between policies: one forbids what another demands or permits.

Only rules' texts are compared. What teachers do with the same request is compared in
`distillation.routing`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from policyalign_assets.policy.model import PolicyDocument, Rule

ALIKE = 0.6  # share of content words of the shorter action that the other one holds
_EMPTY = frozenset(
    "a an and any are as at be by for from give has have help how in into is it its must never not "
    "of on or patient patients someone that the their them they this to user users with you your "
    "anyone always do does should will".split()
)


@dataclass(frozen=True)
class Conflict:
    """`forbidding` stands in policy `forbids_in`, `wanting` in policy `wanted_in`."""

    forbids_in: str
    forbidding: str
    wanted_in: str
    wanting: str
    sentence: str


def rule_conflicts(policies: Sequence[PolicyDocument]) -> Iterator[Conflict]:
    """Pairs of rules of two policies of which one forbids what the other demands or permits.

    A pair whose words differ although its sense does not is not found here.
    """
    for forbidding in policies:
        for wanting in policies:
            if forbidding is not wanting:
                yield from _between(forbidding, wanting)


def _between(forbidding: PolicyDocument, wanting: PolicyDocument) -> Iterator[Conflict]:
    for own in forbidding.rules:
        if not own.forbids or not own.action:
            continue
        for other in wanting.rules:
            for wanted in _wanted(other):
                if _alike(own.action, wanted):
                    verb = "permits" if other.kind in ("permit", "prohibit") else "demands"
                    yield Conflict(
                        forbidding.policy_id,
                        own.rule_id,
                        wanting.policy_id,
                        other.rule_id,
                        f"{forbidding.policy_id} {own.rule_id} forbids “{own.action}”; "
                        f"{wanting.policy_id} {other.rule_id} {verb} “{wanted}”",
                    )


def _wanted(rule: Rule) -> tuple[str, ...]:
    """What a rule demands or permits, in the words of its text."""
    if rule.kind in ("require", "permit") or (rule.kind == "condition" and not rule.forbids):
        return (rule.action or rule.words, *rule.permitted)
    return rule.permitted


def _alike(first: str, second: str) -> bool:
    """Whether the two texts speak of the same action, by their content words."""
    a, b = _content(first), _content(second)
    shorter = min(len(a), len(b))
    return shorter > 0 and len(a & b) / shorter >= ALIKE and len(a & b) / len(a | b) >= ALIKE / 2


def _content(text: str) -> frozenset[str]:
    words = (re.sub(r"(?:ing|es|s|ed)$", "", w) for w in re.findall(r"\w+", text.lower()))
    return frozenset(w for w in words if w and w not in _EMPTY)
