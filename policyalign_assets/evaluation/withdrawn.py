"""Requests that a withdrawn rule forbade: under the present policy they must be answered again.

They are the held-out cases of the last released report, so the present training has not seen them
as such, and they are asked in all arms. Where the teacher still declines one, another rule of the
present policy forbids it, and nothing is expected of the aligned model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from policyalign_assets.evaluation.cases import TestCase
from policyalign_assets.evaluation.conversation import Conversation
from policyalign_assets.evaluation.suites import VIOLATION_SUITES
from policyalign_assets.policy import PolicyDocument
from policyalign_assets.synthesis.duplicates import normalize

SUITE = "withdrawn"
ASKED_IN = (*VIOLATION_SUITES, "conditions_forbidden")


@dataclass(frozen=True)
class WithdrawnRules:
    """Rules of the last release that the present policy lacks.

    report: the name of the released report. rules: {rule id: text}. asked: {rule id: cases}.
    why_not: why none of their requests could be asked, or None. declined_elsewhere: requests that
    are no cases, because another policy of the deployment forbids them (its teacher declines).
    """

    report: str
    rules: dict[str, str] = field(default_factory=dict)
    asked: dict[str, int] = field(default_factory=dict)
    why_not: str | None = None
    declined_elsewhere: int = 0


def withdrawn_rules(before: Iterable[Mapping[str, Any]], policy: PolicyDocument) -> dict[str, str]:
    """{rule id: text} of the rules that the policy lacks; `before` items: rule_id, text.

    A rule that only got another id is none of them, nor one whose id now has new words: that one
    was changed. Rules that define or permit forbid nothing.
    """
    old = {str(rule["rule_id"]): str(rule["text"]) for rule in before if _forbids(rule)}
    now = {rule.rule_id: rule.text for rule in policy.rules}
    known = set(old.values())
    return {
        rule_id: text
        for rule_id, text in old.items()
        if text not in now.values() and (rule_id not in now or now[rule_id] in known)
    }


def of_policy(policy_id: str, cases: Iterable[TestCase]) -> list[TestCase]:
    """Cases of a policy that has left the deployment, whose rules carry its name from now on."""
    return [
        replace(case, case_id=f"{SUITE}-{policy_id}-{i:04d}", kind=f"{policy_id} {case.kind}")
        for i, case in enumerate(cases)
    ]


def not_declined(
    about: WithdrawnRules, cases: Sequence[TestCase], declined: Sequence[bool | None]
) -> tuple[WithdrawnRules, list[TestCase]]:
    """Leaves out the cases that another policy's teacher declines.

    Where its answer cannot be read (None), the case stays.
    """
    kept = [case for case, no in zip(cases, declined, strict=True) if not no]
    counts = Counter(case.kind for case in kept)
    asked = {rule: counts[rule] for rule in about.rules}
    return replace(about, asked=asked, declined_elsewhere=len(cases) - len(kept)), kept


def _forbids(rule: Mapping[str, Any]) -> bool:
    return rule.get("kind") in ("prohibit", "condition", None)


def withdrawn_cases(
    rules: Collection[str], released: Iterable[Mapping[str, Any]], exclude: Sequence[str]
) -> list[TestCase]:
    """The held-out cases of the released report that tested one of the `rules`.

    released: its rows, one for each case. exclude: texts that are cases already, or trained on.
    """
    known = {normalize(text) for text in exclude}
    cases: list[TestCase] = []
    for row in released:
        prompt = row["prompt"]
        if row["rule_id"] not in rules or row["suite"] not in ASKED_IN or not prompt:
            continue
        if normalize(prompt) in known:
            continue
        known.add(normalize(prompt))
        cases.append(
            TestCase(
                f"{SUITE}-{len(cases):04d}",
                SUITE,
                row["rule_id"],
                None,
                bool(row["wrapped"]),
                Conversation.of(prompt),
                cluster=row["cluster"],
            )
        )
    return cases
