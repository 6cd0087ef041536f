"""How far the policy shifts the model on each instruction."""

from __future__ import annotations

import pyarrow as pa

from policyalign_assets.engine.loading import load_model
from policyalign_assets.engine.transformers_engine import TransformersEngine
from policyalign_assets.evaluation.judge import judge_for
from policyalign_assets.files import sha256_table
from policyalign_assets.policy import PolicyDocument
from policyalign_assets.sensitivity.score import score_instructions
from policyalign_assets.stages import Made, Work
from policyalign_assets.stages.facts import preview


def make(work: Work, policy_document: PolicyDocument, violating_instructions: pa.Table) -> Made:
    settings = work.settings
    loaded = load_model(settings.model)
    table = score_instructions(policy_document, violating_instructions, loaded, TransformersEngine(loaded, settings.model.batch_tokens),
                               judge_for(settings.model.id), settings.sensitivity, settings.model.batch_tokens,
                               lambda done, total: work.report(f"scored {done}/{total}"))
    violating = [r for r in table.to_pylist() if r["kind"] == "violating"]
    flips = [r["flip"] for r in violating if r["flip"] is not None]
    kls = [r["reverse_kl"] for r in violating if r["reverse_kl"] is not None]
    return Made(table, sha256_table(table), {
        "dagster/partition_row_count": table.num_rows, "flip rate": sum(flips) / len(flips) if flips else None,
        "mean reverse KL": sum(kls) / len(kls) if kls else None,
        "preview": preview(table, ("rule_id", "kind", "text", "teacher_response", "reverse_kl", "flip"))})
