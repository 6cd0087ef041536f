"""Matches the rules of two versions of a document, so that rules whose text is alike keep ids."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from policyalign_assets.policy.model import Rule

ALIKE = 0.75  # share of equal characters from which two texts are versions of one rule

Word = Literal["same", "changed", "added", "withdrawn"]


@dataclass(frozen=True)
class Change:
    """What happened to one rule. `rule` is the new one, with the id that it keeps."""

    word: Word
    rule: Rule | None
    before: Rule | None = None


def matched(before: Sequence[Rule], now: Sequence[Rule]) -> tuple[Change, ...]:
    """One change per rule, in the order of the new version, then what was withdrawn."""
    partner = _partners(before, now)
    taken = {rule.rule_id for rule in before}
    changes: list[Change] = []
    for at, rule in enumerate(now):
        old = partner.get(at)
        if old is None:
            fresh = _free_id(rule, taken)
            taken.add(fresh.rule_id)
            changes.append(Change("added", fresh))
        else:
            word: Word = "same" if _plain(old) == _plain(rule) else "changed"
            changes.append(Change(word, _kept(old, rule), old))
    used = {id(old) for old in partner.values()}
    changes += [Change("withdrawn", None, old) for old in before if id(old) not in used]
    return tuple(changes)


def _partners(before: Sequence[Rule], now: Sequence[Rule]) -> dict[int, Rule]:
    """{index of a new rule: the old rule that it is a version of}, the most alike pairs first."""
    from rapidfuzz import fuzz, process

    if not before or not now:
        return {}
    scores = process.cdist([_plain(r) for r in now], [_plain(r) for r in before], scorer=fuzz.ratio)
    pairs = sorted(
        (-(float(scores[i][j]) + (r.rule_id == b.rule_id) * 5), i, j)
        for i, r in enumerate(now)
        for j, b in enumerate(before)
        if scores[i][j] >= 100 * ALIKE or (r.rule_id == b.rule_id and scores[i][j] >= 50)
    )
    found: dict[int, Rule] = {}
    used: set[int] = set()
    for _, i, j in pairs:
        if i not in found and j not in used:
            found[i] = before[j]
            used.add(j)
    return found


def _plain(rule: Rule) -> str:
    return " ".join(rule.text.lower().split())


def _kept(old: Rule, new: Rule) -> Rule:
    """The new rule with the id of the old one and what its author wrote below it."""
    kept = replace(
        new,
        rule_id=old.rule_id,
        severity=old.severity or new.severity,
        violates=old.violates,
        allowed=old.allowed,
        overruled=old.overruled,
    )
    if "kind" in old.overruled:
        kept = replace(kept, kind=old.kind, forbids=old.forbids)
    if "action" in old.overruled:
        kept = replace(kept, action=old.action)
    if "condition" in old.overruled:
        kept = replace(kept, condition=old.condition)
    if "except" in old.overruled:
        kept = replace(kept, exceptions=old.exceptions)
    return kept


def _free_id(rule: Rule, taken: set[str]) -> Rule:
    name, count = rule.rule_id, 1
    while name in taken:
        count += 1
        name = f"{rule.rule_id}-{count}"
    return replace(rule, rule_id=name)
