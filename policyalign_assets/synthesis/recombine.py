"""Makes neighbours by recombining a policy's own rules.

A recombination takes the verb of one rule and the object of another, or exchanges one word. Such
requests share the most with violations and break no rule, so a student over-refuses them first; a
generator that sees one rule at a time does not write them. Only rules that state an action take
part. Whether the teacher answers them is checked later, as for every neighbour.

They are the only rows that depend on other rules. A hash of the request and the other rule decides
which rule a request is combined with, and the row keeps that rule as `partner_hash`. So an edit of
a rule changes the rows that used it or that now rank it first, and no others.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from policyalign_assets.engine.base import Engine
from policyalign_assets.policy import PolicyDocument, Rule
from policyalign_assets.settings import SynthesisSettings
from policyalign_assets.synthesis.checks import DraftChecks
from policyalign_assets.synthesis.drafting import Origin, Row, make_row, seed_for
from policyalign_assets.synthesis.duplicates import DuplicateFilter
from policyalign_assets.synthesis.yields import RuleYield

SMALL_WORDS = frozenset(
    (
        *("a", "an", "the", "of", "on", "in", "to", "from", "for", "with", "without", "before"),
        *("into", "about", "another", "my", "their", "his", "her", "its", "or", "and"),
    )
)


class Recombining:
    """The recombined neighbours of one rule. Counts every candidate text in `counts`."""

    def __init__(
        self,
        policy: PolicyDocument,
        rule: Rule,
        engine: Engine,
        settings: SynthesisSettings,
        checks: DraftChecks,
        counts: RuleYield,
    ):
        self.partners, self.rule, self.engine = policy.prohibitions, rule, engine
        self.settings, self.checks, self.counts = settings, checks, counts
        self.seen = DuplicateFilter(settings.near_duplicate)

    def run(self, rows: Sequence[Row]) -> list[Row]:
        """Each of the first requests that name the action gives one neighbour, or none.

        Where there are too few of them, they give several.
        """
        plain = [r for r in rows if r["kind"] == "violating" and r["parent_id"] is None]
        action = self.rule.action
        parents = [row for row in plain if action and action in row["text"]]
        for row in rows:
            self.seen.add(row["text"])
        wanted = round(len(plain) * self.settings.recombined_ratio) if action else 0
        attempts = min(wanted, len(parents) * self.settings.rounds)
        made = [self._first(parents[n % len(parents)], n // len(parents)) for n in range(attempts)]
        neighbours = [row for row in made if row is not None]
        self.counts.wanted_neighbours += wanted
        self.counts.neighbours += len(neighbours)
        return neighbours

    def _first(self, parent: Row, round_: int) -> Row | None:
        """The first recombination of `parent` that passes the checks."""
        content = self.rule.content_hash
        seed = seed_for(self.settings.seed, content, "recombined", str(round_))
        for partner, text in recombinations(parent, self.rule, self.partners, seed):
            self.counts.templated += 1
            reason = self.checks.reject_reason(text) or self.seen.add(text)
            if reason is None:
                row = make_row(self.rule, self.engine, "neighbour", text, Origin(seed, 0, parent))
                return row | {"partner_hash": partner.content_hash}
            self.counts.dropped[reason] += 1
        return None


def recombinations(
    parent: Row, rule: Rule, rules: Sequence[Rule], seed: int
) -> Iterator[tuple[Rule, str]]:
    """Pairs (partner, text): each text asks for an action that no rule of `rules` names.

    `parent`: a request for `rule`'s action.
    """
    action, request_id = rule.action, parent["instruction_id"]
    if not action or action not in parent["text"]:
        return
    stated = {r.action for r in rules}
    partners = [r for r in rules if r.action and r.rule_id != rule.rule_id]
    for partner in sorted(partners, key=lambda r: seed_for(seed, request_id, r.content_hash)):
        rng = random.Random(f"{seed}/{request_id}/{partner.content_hash}")
        changed = _exchanged(action, partner.action or "", rng)
        if changed not in stated:
            yield partner, parent["text"].replace(action, changed)


def _exchanged(action: str, other: str, rng: random.Random) -> str:
    verb, _, obj = action.partition(" ")
    other_verb, _, other_obj = other.partition(" ")
    words = obj.split()
    exchangeable = [i for i, w in enumerate(words) if w not in SMALL_WORDS]
    foreign = [w for w in other_obj.split() if w not in SMALL_WORDS]
    change = rng.choice(("object", "verb", "word"))
    if change == "word" and exchangeable and foreign:
        words[rng.choice(exchangeable)] = rng.choice(foreign)
        return f"{verb} {' '.join(words)}"
    return f"{other_verb} {obj}" if change == "verb" else f"{verb} {other_obj}"
