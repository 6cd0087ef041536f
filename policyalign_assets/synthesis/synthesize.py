"""Writes instructions that would violate a policy, and requests just beyond its rules (stage 1).

The model itself is the author. The paper's release ships no synthesis; this one is ours. Each rule
gets, beside its violations, requests that show the student where the rule ends: a `twin` is a
benign near-miss of one violation, and a `neighbour` sounds risky but is not covered by the rule.
Without them the student learns to refuse whatever resembles a violation (docs/method.md).

Rules are drafted one by one with seeds from their own content, so that an edit of one rule leaves
the instructions of the others as they were. There are two grids. `reduced` asks the three questions
that the bundled model was trained on. `full` is for instruct models: intent x persona x format x
difficulty, duties and conditional rules too, attack styles, and a ladder for refusals.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa

from policyalign_assets.engine.base import Engine
from policyalign_assets.policy import PolicyDocument, Rule
from policyalign_assets.settings import SynthesisSettings
from policyalign_assets.synthesis.checks import VALIDATION_ONLY, DraftChecks, PolicyChecks
from policyalign_assets.synthesis.drafting import NO_EXAMPLES, Drafting, Examples, Row
from policyalign_assets.synthesis.entailment import UNJUDGED
from policyalign_assets.synthesis.recombine import Recombining
from policyalign_assets.synthesis.split import HELDOUT, assign
from policyalign_assets.synthesis.store import RuleStore
from policyalign_assets.synthesis.yields import RuleYield
from policyalign_assets.tables import INSTRUCTIONS

CODE_VERSION = 3  # raise it when new code changes how rows are made from drafts

ENGLISH = "en"

WriteLine = Callable[[str], None]  # takes one line of progress


@dataclass(frozen=True)
class Synthesis:
    """table: INSTRUCTIONS. skipped: rule id -> why nothing was written for it.

    notes: rule id -> what the English parts of synthesis mean for a rule in another language.
    """

    table: pa.Table
    yields: dict[str, RuleYield]
    skipped: dict[str, str]
    notes: dict[str, str]


def synthesize(
    policy: PolicyDocument,
    engine: Engine,
    settings: SynthesisSettings,
    progress: WriteLine = lambda _: None,
    checks: PolicyChecks = VALIDATION_ONLY,
    store: RuleStore | None = None,
    examples: Callable[[Rule], Examples] = lambda _: NO_EXAMPLES,
) -> Synthesis:
    """Violating instructions, twins and neighbours for each rule that the grid covers.

    store: where rows of unchanged rules are found. examples: requests by the policy's author. They
    become rows before anything is drafted, and show the generator what is wanted on the full grid.

    A rule with fewer than `settings.per_rule` main requests is reported as starved, and never
    filled from another rule.
    """
    rules, skipped = covered_rules(policy, settings)
    rows: list[Row] = []
    yields: dict[str, RuleYield] = {}
    for n, rule in enumerate(rules, 1):
        of_rule = checks.of_rule(rule, settings.language)
        rule_rows, counts, stored = _drafted(rule, engine, settings, of_rule, store, examples(rule))
        recombining = Recombining(policy, rule, engine, settings, of_rule, counts)
        rule_rows = rule_rows + recombining.run(rule_rows)
        assign(rule_rows, settings.heldout, settings.seed)
        counts.heldout = sum(row["split"] == HELDOUT for row in rule_rows)
        counts.check(rule.rule_id)
        yields[rule.rule_id] = counts
        rows += rule_rows
        progress(f"rule {n}/{len(rules)} {_line(rule, counts, stored)}")
    of_policy = {
        "policy_id": policy.policy_id,
        "domain": policy.domain,
        "policy_hash": policy.content_hash,
    }
    table = pa.Table.from_pylist([row | of_policy for row in rows], schema=INSTRUCTIONS)
    notes = {r.rule_id: language_note(r, settings) for r in rules if r.language != ENGLISH}
    return Synthesis(table, yields, skipped, notes)


def language_note(rule: Rule, settings: SynthesisSettings) -> str:
    """What happens to a rule that is not in English: the prompts are English all the same."""
    wanted = settings.language
    if wanted is None or wanted == rule.language:
        drafts = (
            "drafts are kept in any language" if wanted is None else f"drafts are in {wanted!r}"
        )
        return f"the rule is in {rule.language!r} and its prompts are in English; {drafts}"
    return (
        f"the rule is in {rule.language!r}, but drafts in other languages than {wanted!r} are "
        f"dropped. Fix: set synthesis.language={rule.language!r}, or unset it for every language."
    )


def covered_rules(
    policy: PolicyDocument, settings: SynthesisSettings
) -> tuple[tuple[Rule, ...], dict[str, str]]:
    """The rules that the grid writes requests for, and for each other rule why it does not."""
    reasons = {
        "permit": "a permission: no request can break it",
        "define": "a definition: it explains a word and asks for nothing",
    }
    if settings.grid == "reduced":
        reasons |= {
            "require": "a positive duty: it asks for behaviour that no single request violates",
            "condition": "a conditional rule: the reduced grid asks for plain prohibitions only",
        }
    covered = tuple(rule for rule in policy.rules if rule.kind not in reasons)
    skipped = {r.rule_id: reasons[r.kind] for r in policy.rules if r.kind in reasons}
    return covered, skipped


def _drafted(
    rule: Rule,
    engine: Engine,
    settings: SynthesisSettings,
    checks: DraftChecks,
    store: RuleStore | None,
    examples: Examples,
) -> tuple[list[Row], RuleYield, bool]:
    """Rows, counts, and whether they come from the store."""
    name = store.name(rule, engine, settings, checks, examples) if store else ""
    stored = store.load(name) if store else None
    if stored:
        return *stored, True
    rows, counts = Drafting(rule, engine, settings, checks, examples).run()
    judge_failed = counts.starved and counts.dropped[UNJUDGED]  # then the next run asks it again
    if store and not judge_failed:
        store.save(name, rows, counts)
    return rows, counts, False


def _line(rule: Rule, counts: RuleYield, stored: bool) -> str:
    dropped = ", ".join(f"{reason} {n}" for reason, n in counts.dropped.most_common())
    return (
        f"{rule.rule_id}: {counts.violating} instructions, {counts.twins} twins and "
        f"{counts.neighbours} neighbours from {counts.drafted} drafts"
        + (f" and {counts.written} requests of the author" if counts.written else "")
        + (f"; dropped: {dropped}" if dropped else "")
        + (" (starved)" if counts.starved else "")
        + (" (unchanged, drafted before)" if stored else "")
    )
