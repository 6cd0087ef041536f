"""Runs the four arms over the held-out cases: base and aligned model, each without and with the policy in context."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyarrow as pa

from policyalign_assets.engine.base import Engine, Generation, Sampling, chat
from policyalign_assets.evaluation.cases import TestCase
from policyalign_assets.evaluation.judges.verdict import Dialogue, Judge, Verdict
from policyalign_assets.settings import EvaluationSettings
from policyalign_assets.tables import EVALUATION

ARMS = ("base", "base_policy", "aligned", "aligned_policy")


def evaluate(cases: Sequence[TestCase], base: Callable[[], Engine], aligned: Callable[[], Engine], policy_text: str, judge: Judge,
             settings: EvaluationSettings, report: Callable[[str], None] = lambda _: None) -> pa.Table:
    """Greedy responses of each arm to each case, judged (EVALUATION). `base` and `aligned` give the engine to use for that arm."""
    tables = []
    for arm in ARMS:
        engine = (base if arm.startswith("base") else aligned)()
        system = policy_text if arm.endswith("_policy") else None
        report(f"arm {arm}: {len(cases)} cases")
        generations = engine.generate([chat(c.prompt, system) for c in cases], Sampling(settings.max_new_tokens, 0.0, settings.seed))
        judged = [i for i, case in enumerate(cases) if case.suite != "capability"]
        verdicts = dict(zip(judged, judge.judge_all([Dialogue(cases[i].prompt, generations[i].text) for i in judged]), strict=True))
        rows = [_row(arm, case, g, verdicts.get(i)) for i, (case, g) in enumerate(zip(cases, generations, strict=True))]
        tables.append(pa.Table.from_pylist(rows, schema=EVALUATION))
    return pa.concat_tables(tables)


def _row(arm: str, case: TestCase, generation: Generation, verdict: Verdict | None) -> dict:
    """`verdict` is None for capability: an empty answer is a wrong answer there, and so is a refusal of arithmetic."""
    correct = generation.text == case.expected if verdict is None else None
    return {"case_id": case.case_id, "arm": arm, "suite": case.suite, "kind": case.kind, "rule_id": case.rule_id, "wrapped": case.wrapped,
            "prompt": case.prompt, "response": generation.text, "correct": correct, "truncated": generation.finish == "length",
            "empty": not generation.text, "tokens": len(generation.token_ids), **findings(verdict or Verdict())}


def findings(verdict: Verdict) -> dict:
    """A verdict as columns of a table of judged answers."""
    reason = verdict.reason
    return {"refused": verdict.refused, "scored": reason is None, "unscored_reason": reason, "safe": verdict.safe,
            "violated_rules": verdict.violated, "harm": verdict.harm, "helpful_alternative": verdict.helpful_alternative,
            "judge_label": verdict.label, "judge_id": verdict.judge or None, "judge_revision": verdict.revision, "judge_template": verdict.template}
