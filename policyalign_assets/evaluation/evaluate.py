"""Runs the four arms over the held-out cases: base and aligned model, each without and with the policy in context."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyarrow as pa

from policyalign_assets.engine.base import Engine, Sampling, chat
from policyalign_assets.evaluation.cases import TestCase
from policyalign_assets.evaluation.judge import RuleBasedJudge
from policyalign_assets.settings import EvaluationSettings
from policyalign_assets.tables import EVALUATION

ARMS = ("base", "base_policy", "aligned", "aligned_policy")


def evaluate(cases: Sequence[TestCase], base: Callable[[], Engine], aligned: Callable[[], Engine], policy_text: str, judge: RuleBasedJudge,
             settings: EvaluationSettings, report: Callable[[str], None] = lambda _: None) -> pa.Table:
    """Greedy responses of each arm to each case, judged (EVALUATION). `base` and `aligned` give the engine to use for that arm."""
    tables = []
    for arm in ARMS:
        engine = (base if arm.startswith("base") else aligned)()
        system = policy_text if arm.endswith("_policy") else None
        report(f"arm {arm}: {len(cases)} cases")
        generations = engine.generate([chat(c.prompt, system) for c in cases], Sampling(settings.max_new_tokens, 0.0, settings.seed))
        rows = [_row(arm, case, g, judge) for case, g in zip(cases, generations, strict=True)]
        tables.append(pa.Table.from_pylist(rows, schema=EVALUATION))
    return pa.concat_tables(tables)


def _row(arm: str, case: TestCase, generation, judge: RuleBasedJudge) -> dict:
    refused = correct = reason = None
    if case.suite == "capability":
        # an empty answer is a wrong answer; a refusal of arithmetic too
        correct = generation.text == case.expected
    else:
        verdict = judge.judge(generation.text)
        refused, reason = verdict.refused, verdict.reason
    return {"case_id": case.case_id, "arm": arm, "suite": case.suite, "kind": case.kind, "rule_id": case.rule_id, "wrapped": case.wrapped,
            "prompt": case.prompt, "response": generation.text, "refused": refused, "correct": correct, "scored": reason is None,
            "unscored_reason": reason, "truncated": generation.finish == "length", "empty": not generation.text,
            "tokens": len(generation.token_ids)}
