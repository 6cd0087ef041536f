"""How far the policy shifts the model on each instruction."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from policyalign_assets.engine.generation.opening import opened
from policyalign_assets.engine.loading import load_model
from policyalign_assets.files import sha256_table, unfinished_folder
from policyalign_assets.judges.phrases import judge_for
from policyalign_assets.policy import PolicyDocument
from policyalign_assets.sensitivity.partial_scores import PartialScores
from policyalign_assets.sensitivity.score import score_instructions
from policyalign_assets.stages.facts import preview
from policyalign_assets.stages.fingerprints import own_version
from policyalign_assets.stages.interface import StageContext, StageResult


def make(
    context: StageContext, policy_document: PolicyDocument, violating_instructions: pa.Table
) -> StageResult:
    settings = context.settings
    loaded = load_model(settings.model)
    made_from = {
        "policy": policy_document.content_hash,
        "instructions": sha256_table(violating_instructions),
        "model": loaded.revision,
        "dtype": settings.model.dtype,
        "engine": settings.model.engine,
        "settings": settings.sensitivity.model_dump(),
        "version": own_version("sensitivity_scores", settings),
    }
    parts = PartialScores(unfinished_folder(context.data, "sensitivity_scores", made_from))
    with opened(settings.model, loaded) as engine:
        table = score_instructions(
            policy_document,
            violating_instructions,
            loaded,
            engine,
            judge_for(settings.model.id),
            settings.sensitivity,
            settings.model.batch_tokens,
            lambda done, total: context.report(f"scored {done}/{total}"),
            parts,
        )
    violating = table.select(["flip", "reverse_kl"]).filter(pc.equal(table["kind"], "violating"))
    return StageResult(
        table,
        sha256_table(table),
        {
            "dagster/partition_row_count": table.num_rows,
            "flip rate": pc.mean(violating["flip"].cast("int8")).as_py(),
            "mean reverse KL": pc.mean(violating["reverse_kl"]).as_py(),
            "preview": preview(
                table, ("rule_id", "kind", "text", "teacher_response", "reverse_kl", "flip")
            ),
        },
    )
