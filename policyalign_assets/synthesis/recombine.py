"""Neighbours made by recombining a policy's own rules: the verb of one with the object of another, or one word exchanged.

They share the most with violations and break no rule, which is where a student over-refuses first; a generator that sees
one rule at a time does not write them. Only for rules that state an action; whether the teacher answers them is checked
later, like for every neighbour.

They are the one kind of row that depends on other rules. Which other rule a request is combined with is decided by a hash
of the two (each request ranks the rules, whatever else stands in the policy), and kept as `partner_hash`: an edit of a rule
changes the rows that used it, or that now rank it first, and no others.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from policyalign_assets.policy import Rule
from policyalign_assets.synthesis.drafting import seed_for

SMALL_WORDS = frozenset(
    (
        "a",
        "an",
        "the",
        "of",
        "on",
        "in",
        "to",
        "from",
        "for",
        "with",
        "without",
        "before",
        "into",
        "about",
        "another",
        "my",
        "their",
        "his",
        "her",
        "its",
        "or",
        "and",
    )
)


def recombinations(
    parent: dict, rule: Rule, rules: Sequence[Rule], seed: int
) -> Iterator[tuple[Rule, str]]:
    """Ever another (partner, text) that asks for an action which no rule of `rules` names, from a request for `rule`'s action."""
    stated = {r.action for r in rules}
    if not rule.action or rule.action not in parent["text"]:
        return
    partners = [r for r in rules if r.action and r.rule_id != rule.rule_id]
    for partner in sorted(
        partners, key=lambda r: seed_for(seed, parent["instruction_id"], r.content_hash)
    ):
        changed = _exchanged(
            rule.action,
            partner.action,
            random.Random(f"{seed}/{parent['instruction_id']}/{partner.content_hash}"),
        )
        if changed not in stated:
            yield partner, parent["text"].replace(rule.action, changed)


def _exchanged(action: str, other: str, rng: random.Random) -> str:
    verb, _, obj = action.partition(" ")
    other_verb, _, other_obj = other.partition(" ")
    words = obj.split()
    exchangeable = [i for i, w in enumerate(words) if w not in SMALL_WORDS]
    foreign = [w for w in other_obj.split() if w not in SMALL_WORDS]
    how = rng.choice(("object", "verb", "word"))
    if how == "word" and exchangeable and foreign:
        words[rng.choice(exchangeable)] = rng.choice(foreign)
        return f"{verb} {' '.join(words)}"
    return f"{other_verb} {obj}" if how == "verb" else f"{verb} {other_obj}"
