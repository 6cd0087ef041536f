"""Instructions that would violate a policy, and requests just beyond its rules, written by the model itself (stage 1).

The paper's release ships no synthesis; this is ours. Beside each rule's violations stand requests that show the student
where the rule ends: `twin`, a benign near-miss of one violation, and `neighbour`, one that sounds risky but that the rule
does not cover. Without them the student learns to refuse whatever resembles a violation (measured: docs/method.md). One
rule at a time, seeded by the rule's own content, so that editing one rule leaves the instructions of the others as they were.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import pyarrow as pa

from policyalign_assets.engine.base import Engine, Generation, Sampling, chat
from policyalign_assets.evaluation.judge import RuleBasedJudge
from policyalign_assets.policy import PolicyDocument, Rule
from policyalign_assets.settings import SynthesisSettings
from policyalign_assets.synthesis import prompts
from policyalign_assets.synthesis.duplicates import DuplicateFilter
from policyalign_assets.synthesis.recombine import recombined
from policyalign_assets.tables import INSTRUCTIONS

Report = Callable[[str], None]


@dataclass
class RuleYield:
    """What became of the drafts for one rule. `starved`: fewer instructions than wanted after all rounds."""

    wanted: int
    violating: int = 0
    twins: int = 0
    neighbours: int = 0
    drafted: int = 0
    dropped: Counter = field(default_factory=Counter)  # by reason: refused, empty, truncated, duplicate, near_duplicate

    @property
    def starved(self) -> bool:
        return self.violating < self.wanted


@dataclass(frozen=True)
class Synthesis:
    table: pa.Table  # INSTRUCTIONS
    yields: dict[str, RuleYield]
    skipped: dict[str, str]  # rule id -> why nothing was written for it


def seed_for(base: int, *parts: str) -> int:
    """A seed that depends on content, not on position."""
    return int.from_bytes(hashlib.sha256("\0".join((str(base), *parts)).encode()).digest()[:4], "big")


def synthesize(policy: PolicyDocument, engine: Engine, settings: SynthesisSettings, report: Report = lambda _: None) -> Synthesis:
    """Violating instructions, twins and neighbours for each prohibition of `policy`.

    A rule that stays short of `settings.per_rule` is reported as starved, never filled from another rule.
    """
    rows: list[dict] = []
    yields: dict[str, RuleYield] = {}
    skipped = {r.rule_id: "a positive duty: it asks for behaviour that no single request violates" for r in policy.duties}
    for n, rule in enumerate(policy.prohibitions, 1):
        out = yields[rule.rule_id] = RuleYield(wanted=settings.per_rule)
        seen = DuplicateFilter(settings.near_duplicate)
        violating = _from_rule("violating", prompts.VIOLATION, settings.per_rule, policy, rule, engine, settings, seen, out)
        twins = _twins(policy, rule, violating, engine, settings, seen, out)
        wanted = round(len(violating) * settings.neighbour_ratio)
        neighbours = _from_rule("neighbour", prompts.NEIGHBOUR, wanted, policy, rule, engine, settings, seen, out)
        neighbours += _recombined(policy, rule, violating, engine, settings, seen)
        out.violating, out.twins, out.neighbours = len(violating), len(twins), len(neighbours)
        rows += violating + twins + neighbours
        report(f"rule {n}/{len(policy.prohibitions)} {rule.rule_id}: {out.violating} instructions, {out.twins} twins and {out.neighbours} "
               f"neighbours from {out.drafted} drafts" + (" (starved)" if out.starved else ""))
    return Synthesis(pa.Table.from_pylist(rows, schema=INSTRUCTIONS), yields, skipped)


def _from_rule(kind: str, prompt: str, wanted: int, policy, rule: Rule, engine: Engine, settings: SynthesisSettings, seen: DuplicateFilter,
               out: RuleYield) -> list[dict]:
    rows: list[dict] = []
    for round_ in range(settings.rounds):
        missing = wanted - len(rows)
        if missing <= 0:
            break
        seed = seed_for(settings.seed, rule.content_hash, kind, str(round_))
        drafts = [chat(prompt.format(rule=rule.text))] * math.ceil(missing * settings.oversample)
        for text in _usable(engine.generate(drafts, _sampling(settings, seed)), seen, out):
            if len(rows) < wanted:
                rows.append(_row(policy, rule, kind, text, None, seed, round_, engine))
    return rows


def _twins(policy, rule: Rule, parents: list[dict], engine: Engine, settings: SynthesisSettings, seen: DuplicateFilter, out: RuleYield) -> list[dict]:
    wanted = round(len(parents) * settings.twin_ratio)
    rows: list[dict] = []
    for round_ in range(settings.rounds):
        todo = [parents[(round_ + n) % len(parents)] for n in range(wanted - len(rows))]
        if not todo:
            break
        seed = seed_for(settings.seed, rule.content_hash, "twin", str(round_))
        drafts = engine.generate([chat(prompts.TWIN.format(request=p["text"])) for p in todo], _sampling(settings, seed))
        for parent, draft in zip(todo, drafts, strict=True):
            for text in _usable([draft], seen, out):
                rows.append(_row(policy, rule, "twin", text, parent["instruction_id"], seed, round_, engine))
    return rows


def _recombined(policy, rule: Rule, parents: list[dict], engine: Engine, settings: SynthesisSettings, seen: DuplicateFilter) -> list[dict]:
    """These do depend on the other rules of the policy."""
    seed = seed_for(settings.seed, rule.content_hash, "recombined")
    rng = random.Random(seed)
    rows: list[dict] = []
    for parent in parents * settings.rounds:
        if len(rows) >= round(len(parents) * settings.recombined_ratio):
            break
        text = recombined(parent["text"], rule, policy.prohibitions, rng)
        if text and not seen.add(text):
            rows.append(_row(policy, rule, "neighbour", text, parent["instruction_id"], seed, 0, engine))
    return rows


def _sampling(settings: SynthesisSettings, seed: int) -> Sampling:
    return Sampling(settings.max_new_tokens, settings.temperature, seed)


def _usable(drafts: list[Generation], seen: DuplicateFilter, out: RuleYield):
    judge = RuleBasedJudge()
    for draft in drafts:
        out.drafted += 1
        reason = None
        if not draft.text:
            reason = "empty"
        elif draft.finish == "length":
            reason = "truncated"
        elif judge.judge(draft.text).refused:
            reason = "refused"
        else:
            reason = seen.add(draft.text)
        if reason:
            out.dropped[reason] += 1
        else:
            yield draft.text


def _row(policy, rule: Rule, kind: str, text: str, parent: str | None, seed: int, round_: int, engine: Engine) -> dict:
    identity = hashlib.sha256("\0".join((rule.content_hash, kind, text)).encode()).hexdigest()[:16]
    return {"instruction_id": identity, "policy_id": policy.policy_id, "domain": policy.domain, "policy_hash": policy.content_hash,
            "rule_id": rule.rule_id, "rule_hash": rule.content_hash, "kind": kind, "parent_id": parent, "text": text, "seed": seed,
            "round": round_, "model_id": engine.model_id, "model_revision": engine.revision}
