"""Estimates what a run will cost before it starts: rows, tokens and steps.

The figures follow from the rules and the settings alone, so they cost nothing to compute. Tokens
that are written are upper bounds: every answer counts with its full length. Evaluation is not
included; its size follows from `evaluation`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from policyalign_assets.policy import PolicyDocument, Rule
from policyalign_assets.settings import Settings
from policyalign_assets.synthesis.attribution import PICKED, SIMILAR
from policyalign_assets.synthesis.drafting import main_kind
from policyalign_assets.synthesis.synthesize import covered_rules

CHARACTERS_PER_TOKEN = 4  # of English prose, where no tokenizer is at hand


@dataclass(frozen=True)
class Estimate:
    """drafts: of the first round, and of all rounds. rows: where no rule is starved.

    policy_tokens: of the prompt; `exact` if a tokenizer counted them. scored_rows: requests that
    attribution scores, each after one context. written_tokens: at most, per stage. steps: of the
    distillation; passes: how often each selected row is then trained on, on average.
    """

    rules: int
    skipped: int
    policy_tokens: int
    exact: bool
    rows: int
    drafts: int
    most_drafts: int
    scored_rows: int
    written_tokens: dict[str, int]
    steps: int
    passes: float

    @property
    def sentence(self) -> str:
        tokens = ", ".join(f"{stage} {n:,}" for stage, n in self.written_tokens.items())
        about = "" if self.exact else "about "
        return (
            f"{self.rules} of {self.rules + self.skipped} rules get training requests; the policy "
            f"has {about}{self.policy_tokens:,} tokens. Expected: {self.rows:,} rows from "
            f"{self.drafts:,} to {self.most_drafts:,} drafts, {self.steps:,} training steps "
            f"({self.passes:.1f} passes over the selected rows); tokens written at most: {tokens}."
        )


def estimate(
    policy: PolicyDocument, settings: Settings, count: Callable[[str], int] | None = None
) -> Estimate:
    """count: the tokens of a text under the model's tokenizer; without it, a rule of thumb."""
    rules, skipped = covered_rules(policy, settings.synthesis)
    text = policy.prompt_text
    tokens = count(text) if count else math.ceil(len(text) / CHARACTERS_PER_TOKEN)
    rows = sum(_rows(rule, settings) for rule in rules)
    first = sum(_drafts(rule, settings) for rule in rules)
    most = first * settings.synthesis.rounds
    contexts = 2 + min(SIMILAR + PICKED, max(0, len(rules) - 1))
    steps = settings.distillation.planned_steps(len(rules))
    trained = steps * settings.distillation.batch_size
    selected = max(1, sum(_selected(rule, settings) for rule in rules))
    return Estimate(
        rules=len(rules),
        skipped=len(skipped),
        policy_tokens=tokens,
        exact=count is not None,
        rows=rows,
        drafts=first,
        most_drafts=most,
        scored_rows=first * contexts if settings.attributes_drafts else 0,
        written_tokens={
            "synthesis": most * settings.synthesis.max_new_tokens,
            "scoring": 2 * rows * settings.sensitivity.max_new_tokens,
            "distillation": trained * settings.distillation.max_new_tokens,
        },
        steps=steps,
        passes=trained / selected,
    )


def _rows(rule: Rule, settings: Settings) -> int:
    s = settings.synthesis
    if main_kind(rule) == "duty":
        return s.per_rule
    styled = s.style_share if s.grid == "full" else 0.0
    recombined = s.recombined_ratio if rule.action else 0.0
    return round(s.per_rule * (1 + s.twin_ratio + s.neighbour_ratio + styled + recombined))


def _drafts(rule: Rule, settings: Settings) -> int:
    """Of the first round, as `drafting` asks for them."""
    s = settings.synthesis
    main = math.ceil(s.per_rule * s.oversample)
    if main_kind(rule) == "duty":
        return main
    neighbours = math.ceil(round(s.per_rule * s.neighbour_ratio) * s.oversample)
    return main + round(s.per_rule * s.twin_ratio) + neighbours


def _selected(rule: Rule, settings: Settings) -> float:
    """Rows of the rule that filtering keeps, about: the top of the rule, twins and neighbours."""
    s, f = settings.synthesis, settings.filtering
    top = min(f.per_rule, max(f.at_least, math.ceil(f.share * s.per_rule)))
    benign = _rows(rule, settings) - s.per_rule if main_kind(rule) == "violating" else 0
    return top + max(0, benign)
