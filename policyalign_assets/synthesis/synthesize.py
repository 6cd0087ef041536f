"""Instructions that would violate a policy, and requests just beyond its rules, written by the model itself (stage 1).

The paper's release ships no synthesis; this is ours. Beside each rule's violations stand requests that show the student
where the rule ends: `twin`, a benign near-miss of one violation, and `neighbour`, one that sounds risky but that the rule
does not cover. Without them the student learns to refuse whatever resembles a violation (measured: docs/method.md). One
rule at a time, seeded by the rule's own content, so that editing one rule leaves the instructions of the others as they were.

Two grids: `reduced`, the three questions that the bundled model was trained on; `full`, for instruct models: intent x persona x
format x difficulty, duties and conditional rules too, attack styles, and a ladder where the generator refuses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa

from policyalign_assets.engine.base import Engine
from policyalign_assets.judges.verdict import Judge
from policyalign_assets.policy import PolicyDocument, Rule
from policyalign_assets.settings import SynthesisSettings
from policyalign_assets.synthesis.drafting import (
    DraftChecks,
    Drafting,
    RuleYield,
    instruction_id,
    seed_for,
)
from policyalign_assets.synthesis.duplicates import DuplicateFilter
from policyalign_assets.synthesis.entailment import UNJUDGED
from policyalign_assets.synthesis.firewall import Firewall
from policyalign_assets.synthesis.recombine import recombinations
from policyalign_assets.synthesis.split import HELDOUT, assign
from policyalign_assets.synthesis.store import RuleStore
from policyalign_assets.tables import INSTRUCTIONS

CODE_VERSION = 3  # raise it when new code changes how rows are made from drafts

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Synthesis:
    table: pa.Table  # INSTRUCTIONS
    yields: dict[str, RuleYield]
    skipped: dict[str, str]  # rule id -> why nothing was written for it


def synthesize(
    policy: PolicyDocument,
    engine: Engine,
    settings: SynthesisSettings,
    report: Progress = lambda _: None,
    firewall: Firewall | None = None,
    own_cases: Callable[[Rule], Firewall] | None = None,
    store: RuleStore | None = None,
    judge: Callable[[Rule], Judge] | None = None,
) -> Synthesis:
    """Violating instructions, twins and neighbours for each rule that the grid covers.

    firewall, own_cases: evaluation prompts to keep clear of, for all rules and for one. store: where rows of unchanged rules are
    found. judge: of whether a draft fits its rule (see `entailment`). A rule that stays short of `settings.per_rule` is reported as
    starved, never filled from another rule.
    """
    rules, skipped = _covered(policy, settings)
    rows: list[dict] = []
    yields: dict[str, RuleYield] = {}
    for n, rule in enumerate(rules, 1):
        checks = DraftChecks(
            settings.language,
            [w for w in (firewall, own_cases(rule) if own_cases else None) if w is not None],
            judge(rule) if judge else None,
        )
        drafted, out, known = _drafted(rule, engine, settings, checks, store)
        drafted = drafted + _recombined(policy, rule, drafted, settings, checks, out, engine)
        assign(drafted, settings.heldout, settings.seed)
        out.neighbours = sum(r["kind"] == "neighbour" for r in drafted)
        out.heldout = sum(r["split"] == HELDOUT for r in drafted)
        yields[rule.rule_id] = out
        rows += drafted
        report(
            f"rule {n}/{len(rules)} {rule.rule_id}: {out.violating} instructions, {out.twins} twins and {out.neighbours} neighbours "
            f"from {out.drafted} drafts"
            + (" (starved)" if out.starved else "")
            + (" (unchanged, drafted before)" if known else "")
        )
    of_policy = {
        "policy_id": policy.policy_id,
        "domain": policy.domain,
        "policy_hash": policy.content_hash,
    }
    return Synthesis(
        pa.Table.from_pylist([row | of_policy for row in rows], schema=INSTRUCTIONS),
        yields,
        skipped,
    )


def _covered(
    policy: PolicyDocument, settings: SynthesisSettings
) -> tuple[tuple[Rule, ...], dict[str, str]]:
    if settings.grid == "full":
        return policy.rules, {}
    skipped = {
        r.rule_id: "a positive duty: it asks for behaviour that no single request violates"
        for r in policy.duties
    }
    skipped |= {
        r.rule_id: "a conditional rule: the reduced grid asks for plain prohibitions only"
        for r in policy.conditions
    }
    return policy.prohibitions, skipped


def _drafted(
    rule: Rule,
    engine: Engine,
    settings: SynthesisSettings,
    checks: DraftChecks,
    store: RuleStore | None,
) -> tuple[list[dict], RuleYield, bool]:
    name = store.name(rule, engine, settings, checks) if store else ""
    known = store.load(name) if store else None
    if known:
        return *known, True
    rows, out = Drafting(rule, engine, settings, checks).run()
    judge_failed = out.starved and out.dropped[UNJUDGED]  # then the next run asks again
    if store and not judge_failed:
        store.save(name, rows, out)
    return rows, out, False


def _recombined(
    policy: PolicyDocument,
    rule: Rule,
    rows: list[dict],
    settings: SynthesisSettings,
    checks: DraftChecks,
    out: RuleYield,
    engine: Engine,
) -> list[dict]:
    """Each of the first requests that name the action gives one neighbour (several where there are too few), or none."""
    plain = [r for r in rows if r["kind"] == "violating" and r["parent_id"] is None]
    parents = [r for r in plain if rule.action and rule.action in r["text"]]
    seen = DuplicateFilter(settings.near_duplicate)
    for row in rows:
        seen.add(row["text"])
    made: list[dict] = []
    for n in range(
        min(round(len(plain) * settings.recombined_ratio), len(parents) * settings.rounds)
    ):
        parent, seed = (
            parents[n % len(parents)],
            seed_for(settings.seed, rule.content_hash, "recombined", str(n // len(parents))),
        )
        for partner, text in recombinations(parent, rule, policy.prohibitions, seed):
            reason = checks.reason(text) or seen.add(text)
            if reason is None:
                made.append(
                    {
                        "instruction_id": instruction_id(rule, "neighbour", text),
                        "rule_id": rule.rule_id,
                        "rule_hash": rule.content_hash,
                        "kind": "neighbour",
                        "parent_id": parent["instruction_id"],
                        "text": text,
                        "seed": seed,
                        "round": 0,
                        "model_id": engine.model_id,
                        "model_revision": engine.revision,
                        "partner_hash": partner.content_hash,
                    }
                )
                break
            out.dropped[reason] += 1
    return made
