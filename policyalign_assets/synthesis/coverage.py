"""How well the instructions cover a policy: per rule and overall, from the tables alone.

Diversity is measured on the requests that break a rule, or that call for a duty:

* `distinct_2`: the share of their word pairs that are distinct
* `self_bleu`: how much of each request occurs in the others (BLEU-4 against all others; 1 means
  that all are alike)
* `effective_clusters`: the number of equally large groups of similar requests that would be as
  mixed (exp of the entropy)
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from policyalign_assets.statistics import Interval, wilson
from policyalign_assets.synthesis.firewall import split_words
from policyalign_assets.synthesis.yields import SURPLUS

MAIN = ("violating", "duty")


@dataclass(frozen=True)
class RuleCoverage:
    rule_id: str
    made: int  # requests that break the rule or call for the duty, styled ones included
    twins: int
    neighbours: int
    heldout: int
    clusters: int
    effective_clusters: float
    distinct_2: float | None
    self_bleu: float | None
    empty_cells: int | None  # cells asked for that have no request; None without a grid
    refused: int  # drafts that the generator refused at least once
    drafted: int
    starved: bool
    firewall_hits: int
    wanted: int = 0  # main requests without attack style
    wanted_twins: int = 0
    wanted_neighbours: int = 0
    surplus: int = 0  # good drafts whose place was already filled
    selected: int | None = None
    selected_twins: int | None = None
    flips: Interval | None = None  # answered without the policy and refused with it
    flips_unscored: int = 0  # requests whose flip no judge could tell


@dataclass(frozen=True)
class Coverage:
    rules: tuple[RuleCoverage, ...]
    # Rule -> the scores that ranked its requests.
    scores: dict[str, list[float]] = field(default_factory=dict)

    @property
    def minimum(self) -> int:
        return min((r.made if r.selected is None else r.selected for r in self.rules), default=0)

    @property
    def uneven(self) -> float:
        """Gini coefficient of the rules' requests: 0 is even.

        Once instructions are selected, it counts the selected ones.
        """
        return gini([r.made if r.selected is None else r.selected for r in self.rules])

    @property
    def starved(self) -> list[str]:
        return [r.rule_id for r in self.rules if r.starved]

    @property
    def twin_ratio(self) -> float | None:
        """Twins selected per violating request selected."""
        chosen = sum(r.selected or 0 for r in self.rules)
        return sum(r.selected_twins or 0 for r in self.rules) / chosen if chosen else None


FIREWALL_REASONS = ("evaluation_copy", "near_evaluation", "contains_evaluation")


def coverage(
    instructions: pa.Table,
    yields: Mapping[str, Mapping],
    filtered: pa.Table | None = None,
    scores: pa.Table | None = None,
) -> Coverage:
    """instructions: INSTRUCTIONS. yields: per rule, the fields of a RuleYield.

    filtered (FILTERED) and scores (SENSITIVITY) add what was selected, and how often the policy
    turns an answer into a refusal.
    """
    rows = _by_rule(instructions)
    chosen = _by_rule(filtered) if filtered is not None else {}
    judged = _by_rule(scores) if scores is not None else {}
    made = tuple(
        _of_rule(
            rule_id,
            rows.get(rule_id, []),
            counted,
            chosen.get(rule_id, []) if filtered is not None else None,
            judged.get(rule_id),
        )
        for rule_id, counted in yields.items()
    )
    ranked = {
        rule: [r["score"] for r in rs if r["rank_in_rule"] is not None]
        for rule, rs in chosen.items()
    }
    return Coverage(made, ranked)


def _of_rule(
    rule_id: str,
    rows: list[dict],
    counted: Mapping,
    chosen: list[dict] | None,
    judged: list[dict] | None,
) -> RuleCoverage:
    main = [r for r in rows if r["kind"] in MAIN]
    plain = [r for r in main if r["parent_id"] is None]
    sizes = Counter(r["cluster"] for r in plain)
    texts = [split_words(r["text"]) for r in plain]
    cells = {
        (r["intent"], r["persona"], r["format"], r["difficulty"]) for r in plain if r["intent"]
    }
    flips, unscored = None, 0
    if judged is not None:
        found = [r["flip"] for r in judged if r["kind"] in MAIN]
        known = [flip for flip in found if flip is not None]
        flips, unscored = wilson(sum(known), len(known)), len(found) - len(known)
    return RuleCoverage(
        rule_id=rule_id,
        made=len(main),
        twins=counted["twins"],
        neighbours=counted["neighbours"],
        heldout=counted["heldout"],
        clusters=len(sizes),
        effective_clusters=effective_number(sizes.values()),
        distinct_2=distinct(texts, 2),
        self_bleu=self_bleu(texts),
        empty_cells=_asked_cells(counted["wanted"], main) - len(cells) if cells else None,
        refused=counted["refused"].get("plain", 0),
        drafted=counted["drafted"],
        starved=counted["violating"] < counted["wanted"],
        firewall_hits=sum(counted["dropped"].get(reason, 0) for reason in FIREWALL_REASONS),
        wanted=counted["wanted"],
        wanted_twins=counted.get("wanted_twins", 0),
        wanted_neighbours=counted.get("wanted_neighbours", 0),
        surplus=counted["dropped"].get(SURPLUS, 0),
        selected=_selected(chosen, MAIN),
        selected_twins=_selected(chosen, ("twin",)),
        flips=flips,
        flips_unscored=unscored,
    )


def _selected(chosen: list[dict] | None, kinds: Sequence[str]) -> int | None:
    return None if chosen is None else sum(r["selected"] for r in chosen if r["kind"] in kinds)


def _asked_cells(wanted: int, main: Sequence[dict]) -> int:
    from policyalign_assets.synthesis.grid import cells

    return min(wanted, len(cells(main[0]["kind"])))


def _by_rule(table: pa.Table) -> dict[str, list[dict]]:
    rules: dict[str, list[dict]] = defaultdict(list)
    for row in table.to_pylist():
        rules[row["rule_id"]].append(row)
    return rules


def gini(counts: Sequence[float]) -> float:
    """Half the mean absolute difference over the mean.

    It is 0 where all counts are equal, and near 1 where one rule has them all.
    """
    counts, n = sorted(counts), len(counts)
    total = sum(counts)
    return sum((2 * i - n + 1) * c for i, c in enumerate(counts)) / (n * total) if total else 0.0


def effective_number(sizes: Collection[int]) -> float:
    total = sum(sizes)
    return math.exp(-sum(s / total * math.log(s / total) for s in sizes)) if total else 0.0


def distinct(texts: Sequence[list[str]], n: int) -> float | None:
    """Share of the word n-grams that are distinct."""
    found = [gram for text in texts for gram in _grams(text, n)]
    return len(set(found)) / len(found) if found else None


def self_bleu(texts: Sequence[list[str]], order: int = 4) -> float | None:
    """Mean BLEU of each text against all the others.

    It takes 1- to `order`-grams, add-one smoothing above 1, and the brevity penalty. Libraries
    compare each pair, which is quadratic. A clipped count needs only the two largest counts of an
    n-gram over all texts: where the largest count is the text's own, the second one clips it.
    """
    texts = [t for t in texts if t]
    if len(texts) < 2:
        return None
    counts = [[Counter(_grams(t, n)) for t in texts] for n in range(1, order + 1)]
    largest = [_two_largest(c) for c in counts]
    lengths = sorted(len(t) for t in texts)
    return sum(_bleu(i, counts, largest, lengths) for i in range(len(texts))) / len(texts)


def _bleu(i: int, counts: list[list[Counter]], largest: list[dict], lengths: list[int]) -> float:
    length = sum(counts[0][i].values())
    logs = 0.0
    for n, (per_text, most) in enumerate(zip(counts, largest), 1):
        own = per_text[i]
        shared = sum(min(c, most[g][1] if c == most[g][0] else most[g][0]) for g, c in own.items())
        total, extra = sum(own.values()), 0 if n == 1 else 1
        if shared + extra == 0:
            return 0.0
        logs += math.log((shared + extra) / (total + extra))
    others = lengths.copy()
    others.remove(length)
    closest = min(others, key=lambda other: (abs(other - length), other))
    return math.exp(logs / len(counts) + min(0.0, 1 - closest / length))


def _two_largest(per_text: list[Counter]) -> dict:
    most: dict = {}
    for counted in per_text:
        for gram, c in counted.items():
            first, second = most.get(gram, (0, 0))
            most[gram] = (c, first) if c > first else (first, max(second, c))
    return most


def _grams(text: list[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(text[i : i + n]) for i in range(len(text) - n + 1)]
