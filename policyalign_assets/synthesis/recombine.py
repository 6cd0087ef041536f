"""Neighbours made by recombining a policy's own rules: the verb of one with the object of another, or one word exchanged.

They share the most with violations and break no rule, which is where a student over-refuses first; a generator that sees
one rule at a time does not write them. Only for rules that state an action; whether the teacher answers them is checked
later, like for every neighbour.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from policyalign_assets.policy import Rule

SMALL_WORDS = frozenset(("a", "an", "the", "of", "on", "in", "to", "from", "for", "with", "without", "before", "into", "about", "another", "my",
                         "their", "his", "her", "its", "or", "and"))


def recombined(text: str, rule: Rule, others: Sequence[Rule], rng: random.Random) -> str | None:
    """`text`, which asks for `rule`'s action, changed to ask for another one; None where the action does not stand in it word for word."""
    others = [o for o in others if o.action and o.rule_id != rule.rule_id]
    if not rule.action or not others or rule.action not in text:
        return None
    verb, _, obj = rule.action.partition(" ")
    other_verb, _, other_obj = rng.choice(others).action.partition(" ")
    words = obj.split()
    exchangeable = [i for i, w in enumerate(words) if w not in SMALL_WORDS]
    foreign = [w for w in other_obj.split() if w not in SMALL_WORDS]
    how = rng.choice(("object", "verb", "word"))
    if how == "word" and exchangeable and foreign:
        words[rng.choice(exchangeable)] = rng.choice(foreign)
        changed = f"{verb} {' '.join(words)}"
    else:
        changed = f"{other_verb} {obj}" if how == "verb" else f"{verb} {other_obj}"
    return None if changed in {rule.action, *(o.action for o in others)} else text.replace(rule.action, changed)
