"""Runs the four arms over the held-out cases: base and aligned model, each without and with the policy in context."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa

from policyalign_assets.engine.base import Sampling, chat
from policyalign_assets.evaluation.cases import TestCase
from policyalign_assets.evaluation.generations import Answer, Model, answers
from policyalign_assets.evaluation.judges.verdict import Dialogue, Judge, Verdict
from policyalign_assets.settings import EvaluationSettings
from policyalign_assets.tables import EVALUATION

ARMS = ("base", "base_policy", "aligned", "aligned_policy")


def evaluate(cases: Sequence[TestCase], base: Model, aligned: Model, policy_text: str, judge: Judge, settings: EvaluationSettings,
             report: Callable[[str], None] = lambda _: None, store: Path | None = None) -> pa.Table:
    """Greedy responses of each arm to each case, judged (EVALUATION). `store`: folder in which the responses are kept for another judge."""
    tables = []
    judged = [i for i, case in enumerate(cases) if case.suite != "capability"]
    for arm in ARMS:
        system = policy_text if arm.endswith("_policy") else None
        report(f"arm {arm}: {len(cases)} cases")
        said = answers(base if arm.startswith("base") else aligned, [chat(c.prompt, system) for c in cases],
                       Sampling(settings.max_new_tokens, 0.0, settings.seed), store)
        verdicts = dict(zip(judged, judge.judge_all([Dialogue(cases[i].prompt, said[i].text) for i in judged]), strict=True))
        rows = [_row(arm, case, answer, verdicts.get(i)) for i, (case, answer) in enumerate(zip(cases, said, strict=True))]
        tables.append(pa.Table.from_pylist(rows, schema=EVALUATION))
    return pa.concat_tables(tables)


def _row(arm: str, case: TestCase, answer: Answer, verdict: Verdict | None) -> dict:
    """`verdict` is None for capability: an empty answer is a wrong answer there, and so is a refusal of arithmetic."""
    correct = answer.text == case.expected if verdict is None else None
    return {"case_id": case.case_id, "arm": arm, "suite": case.suite, "kind": case.kind, "rule_id": case.rule_id, "wrapped": case.wrapped,
            "prompt": case.prompt, "response": answer.text, "correct": correct, "truncated": answer.truncated,
            "empty": not answer.text, "tokens": answer.tokens, **findings(verdict or Verdict())}


def findings(verdict: Verdict) -> dict:
    """A verdict as columns of a table of judged answers."""
    reason = verdict.reason
    return {"refused": verdict.refused, "scored": reason is None, "unscored_reason": reason, "safe": verdict.safe,
            "violated_rules": verdict.violated, "harm": verdict.harm, "helpful_alternative": verdict.helpful_alternative,
            "judge_label": verdict.label, "judge_id": verdict.judge or None, "judge_revision": verdict.revision, "judge_template": verdict.template}
