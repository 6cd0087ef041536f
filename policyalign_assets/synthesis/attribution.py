"""Decides without a judge whether a draft belongs to its rule.

A draft is dropped for the first of these reasons:

* `gibberish`: it repeats itself, is no language, or is less fluent to the model than real requests
* `off_rule`: a request that should break (or call for) the rule is not more likely after the rule
  than after none
* `other_rule`: other rules of the policy explain the request better than its own rule does

The likelihoods are the model's own (see `likelihood`): log p(request | a prompt that names a rule).
The score against the other rules is own - log(mean(exp(others))), in nats per request. Bars are
calibrated on the model, with rules and requests from attribution.yaml. A model that cannot find the
right one of four rules there is too weak; then words decide: a request must share a content word
with its rule, its examples or its definitions, and share no more with another rule.

Likelihoods tell the topic of a request. They do not tell whether a request breaks the rule or only
comes close to it: small models find both equally likely (docs/method.md). So twins and neighbours
have signs of their own: a twin must keep words of the request that it was made from, or be
explained by the rule; a neighbour need not belong to the rule, and only has to be a fluent request.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple, Protocol

from policyalign_assets.judges.degenerate import EMPTY, degenerate
from policyalign_assets.policy import PolicyDocument, Rule
from policyalign_assets.statistics import wilson
from policyalign_assets.synthesis.lexical import content_words, word_weights
from policyalign_assets.synthesis.texts import load_yaml

GIBBERISH, OFF_RULE, OTHER_RULE = "gibberish", "off_rule", "other_rule"
REASONS = (GIBBERISH, OFF_RULE, OTHER_RULE)
# A generator that mostly writes noise is no source of requests, although some noise passes. Of real
# requests about two thirds pass, of a raw small model's drafts a third (docs/method.md).
UNRELIABLE = "unreliable_generator"
MIN_PASSED, FEWEST_TRIED = 0.5, 20

Method = Literal["likelihood", "lexical"]

# Rules that a request is compared with: the most similar ones, and others picked by a hash.
SIMILAR, PICKED = 3, 3
# The share of right requests that each bar lets pass on the calibration set.
KEPT_BY_MARGIN, KEPT_BY_GAIN, KEPT_BY_FLUENCY = 0.8, 0.9, 0.97
MIN_RIGHT = 0.4  # share of right rules of four, below which a model is too weak (chance: 0.25)
TWIN_OVERLAP = 0.25  # share of the parent's content words


class LogProb(NamedTuple):
    """log p of a request in nats, and its tokens."""

    nats: float
    tokens: int

    @property
    def per_token(self) -> float:
        return self.nats / self.tokens if self.tokens else -math.inf


class Scorer(Protocol):
    """`id` names the model, with its revision."""

    id: str

    def log_probs(self, context: str, requests: Sequence[str]) -> list[LogProb]: ...


@dataclass(frozen=True)
class Calibration:
    """Bars in nats, from requests whose rule is known.

    right, total: how often the request was likelier after its own rule than after three others.
    """

    right: int
    total: int
    margin: float  # least own - log(mean(exp(others)))
    gain: float  # least own - none
    fluency: float  # least log-probability per token without a rule

    @property
    def usable(self) -> bool:
        return self.right >= MIN_RIGHT * self.total


class Attribution:
    """For all rules of one policy. `scorer`: None where no likelihoods can be had."""

    def __init__(self, policy: PolicyDocument, scorer: Scorer | None):
        self.policy, self.scorer = policy, scorer
        self.rules = tuple(r for r in policy.rules if r.kind not in ("permit", "define"))

    def of_rule(self, rule: Rule) -> RuleAttribution:
        return RuleAttribution(self, rule)

    @cached_property
    def calibration(self) -> Calibration | None:
        return calibrate(self.scorer) if self.scorer else None

    @property
    def method(self) -> Method:
        return "likelihood" if self.calibration and self.calibration.usable else "lexical"

    @property
    def note(self) -> str:
        """How requests were tied to their rules, in one sentence."""
        found = self.calibration
        if found is None:
            return "words alone tied requests to rules: the generator gives no likelihoods"
        right = f"{found.right} of {found.total} calibration requests (chance: {found.total // 4})"
        if not found.usable:
            return f"words alone tied requests to rules: the model found the right rule for {right}"
        return (
            f"the model's likelihoods tied requests to rules: it found the right rule for {right}; "
            f"bars: margin {found.margin:.2f} nats, gain {found.gain:.2f} nats, "
            f"fluency {found.fluency:.2f} nats a token"
        )


class RuleAttribution:
    """Whether drafts belong to one rule. `id`: of everything that the decision follows from."""

    def __init__(self, attribution: Attribution, rule: Rule):
        self._all, self.rule = attribution, rule
        self.contrasts = contrast_rules(rule, attribution.rules)
        profiles = [_profile(r, attribution.policy) for r in (rule, *self.contrasts)]
        scorer = attribution.scorer.id if attribution.scorer else None
        content = [scorer, [sorted(profile) for profile in profiles], self._texts()]
        self.id = hashlib.sha256(json.dumps(content).encode()).hexdigest()
        self._own_words, *self._other_words = profiles

    def unreliable(self, passed: int, tried: int) -> bool:
        """Whether surely fewer than `MIN_PASSED` of the rule's own drafts belong to it (Wilson)."""
        if self._all.method != "likelihood" or tried < FEWEST_TRIED:
            return False
        highest = wilson(passed, tried).high
        return highest is not None and highest < MIN_PASSED

    def faults(
        self, kind: str, drafts: Sequence[str], parents: Sequence[str] | None = None
    ) -> list[str | None]:
        """For each draft the reason why it cannot be used, or None.

        kind: violating, duty, twin or neighbour. parents: of twins, the requests they come from.
        """
        faults = [GIBBERISH if degenerate(d) not in (None, EMPTY) else None for d in drafts]
        todo = [i for i, fault in enumerate(faults) if fault is None]
        texts = [drafts[i] for i in todo]
        sources = [parents[i] for i in todo] if parents else None
        judge = self._by_likelihood if self._all.method == "likelihood" else self._by_words
        for i, fault in zip(todo, judge(kind, texts, sources), strict=True):
            faults[i] = fault
        return faults

    def _by_likelihood(
        self, kind: str, texts: list[str], parents: list[str] | None
    ) -> list[str | None]:
        scorer, bars = self._all.scorer, self._all.calibration
        if scorer is None or bars is None or not texts:
            return [None] * len(texts)
        none = scorer.log_probs(context(None, kind), texts)
        fluent = [base.per_token >= bars.fluency for base in none]
        if kind == "neighbour":
            return [None if ok else GIBBERISH for ok in fluent]
        own = scorer.log_probs(context(self.rule, kind), texts)
        others = [scorer.log_probs(context(rule, kind), texts) for rule in self.contrasts]
        faults: list[str | None] = []
        for i, (alone, with_rule) in enumerate(zip(none, own, strict=True)):
            margin = contrast(with_rule.nats, [other[i].nats for other in others])
            if not fluent[i]:
                faults.append(GIBBERISH)
            elif kind == "twin" and parents and overlap(texts[i], parents[i]) >= TWIN_OVERLAP:
                faults.append(None)
            elif with_rule.nats - alone.nats < bars.gain:
                faults.append(OFF_RULE)
            else:
                faults.append(OTHER_RULE if margin < bars.margin else None)
        return faults

    def _by_words(self, kind: str, texts: list[str], parents: list[str] | None) -> list[str | None]:
        if kind == "neighbour":
            return [None] * len(texts)
        weights = word_weights([self._own_words, *self._other_words])
        faults: list[str | None] = []
        for i, text in enumerate(texts):
            words = content_words(text)
            own = _weight(words & self._own_words, weights)
            other = max((_weight(words & w, weights) for w in self._other_words), default=0.0)
            if kind == "twin" and parents and overlap(text, parents[i]) >= TWIN_OVERLAP:
                faults.append(None)
            elif not own:
                faults.append(OFF_RULE)
            else:
                faults.append(OTHER_RULE if other > own else None)
        return faults

    def _texts(self) -> list[str]:
        """The contexts that the likelihoods are computed after."""
        return [context(rule, "violating") for rule in (None, self.rule, *self.contrasts)]


def context(rule: Rule | None, kind: str) -> str:
    """What stands before a request of `kind`. A twin is compared by its topic, as a violation."""
    contexts = load_yaml("attribution.yaml")["contexts"]
    if rule is None:
        return contexts["none"]
    before, after = contexts["duty" if kind == "duty" else "violating"].split("{rule}")
    return f"{before}{rule.text}{after}"


def contrast(own: float, others: Sequence[float]) -> float:
    """own - log(mean(exp(others))), in nats. Infinite where there is no other rule."""
    if not others:
        return math.inf
    top = max(others)
    return own - top - math.log(sum(math.exp(o - top) for o in others) / len(others))


def contrast_rules(rule: Rule, rules: Sequence[Rule]) -> tuple[Rule, ...]:
    """The rules that `rule` is compared with, so that long policies cost no more than short ones.

    The most similar rules, and others that a hash of the pair picks: an edit of one rule changes
    the comparison of the rules that rank it first, and of no others.
    """
    others = [r for r in rules if r.rule_id != rule.rule_id and r.text != rule.text]
    words = content_words(rule.text)

    def likeness(other: Rule) -> tuple[float, str]:
        theirs = content_words(other.text)
        return len(words & theirs) / (len(words | theirs) or 1), other.rule_id

    def pick(other: Rule) -> str:
        return hashlib.sha256(f"{rule.content_hash}/{other.content_hash}".encode()).hexdigest()

    similar = sorted(others, key=likeness, reverse=True)[:SIMILAR]
    picked = sorted((r for r in others if r not in similar), key=pick)[:PICKED]
    return tuple(similar + picked)


def calibrate(scorer: Scorer) -> Calibration:
    """Bars for one model, from the groups of four rules in attribution.yaml."""
    margins, gains, fluencies, right = [], [], [], 0
    contexts = load_yaml("attribution.yaml")["contexts"]
    for group in load_yaml("attribution.yaml")["calibration"]:
        requests = [request for _, request in group]
        none = scorer.log_probs(contexts["none"], requests)
        by_rule = [
            scorer.log_probs(contexts["violating"].replace("{rule}", text), requests)
            for text, _ in group
        ]
        for i, alone in enumerate(none):
            own = by_rule[i][i].nats
            others = [scores[i].nats for k, scores in enumerate(by_rule) if k != i]
            right += own > max(others)
            margins.append(contrast(own, others))
            gains.append(own - alone.nats)
            fluencies.append(alone.per_token)
    return Calibration(
        right,
        len(margins),
        _quantile(margins, 1 - KEPT_BY_MARGIN),
        _quantile(gains, 1 - KEPT_BY_GAIN),
        _quantile(fluencies, 1 - KEPT_BY_FLUENCY),
    )


def _quantile(values: list[float], share: float) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[max(0, round(100 * share) - 1)]


def overlap(text: str, source: str) -> float:
    """Share of the source's content words that `text` keeps; 0 where it has none."""
    words = content_words(source)
    return len(words & content_words(text)) / len(words) if words else 0.0


def _profile(rule: Rule, policy: PolicyDocument) -> frozenset[str]:
    """Content words of a rule, of its examples, and of the definitions that it uses.

    Requests that the author wrote are left out: some of them are held-out test cases.
    """
    own = content_words(rule.text)
    added = " ".join((*rule.examples, *rule.permitted))
    definitions = [d.text for d in policy.definitions if content_words(d.text[:60]) & own]
    return own | content_words(" ".join((added, *definitions)))


def _weight(words: frozenset[str], weights: dict[str, float]) -> float:
    return sum(weights.get(word, 0.0) for word in words)
