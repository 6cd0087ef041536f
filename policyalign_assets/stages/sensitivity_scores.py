"""How far the policy shifts the model on each instruction."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from policyalign_assets.doctor.examine import examine
from policyalign_assets.engine.generation.opening import opened, opened_servers
from policyalign_assets.engine.loading import describe, load_model
from policyalign_assets.files import sha256_table
from policyalign_assets.judges.choose import described, make_judge
from policyalign_assets.judges.phrases import judge_for
from policyalign_assets.policy import PolicyDocument
from policyalign_assets.sensitivity.flips import with_flips
from policyalign_assets.sensitivity.partial_scores import PartialScores
from policyalign_assets.sensitivity.score import score_instructions
from policyalign_assets.sensitivity.served import score_by_servers
from policyalign_assets.settings import Settings
from policyalign_assets.stages.earlier import earlier_table
from policyalign_assets.stages.facts import preview
from policyalign_assets.stages.fingerprints import recipe
from policyalign_assets.stages.interface import StageContext, StageResult
from policyalign_assets.stages.unfinished import claim, work_folder
from policyalign_assets.tables import SENSITIVITY

# labels in the registry that concern the verdicts alone
VERDICTS = {
    "reading of refusals",
    "refusal phrases",
    "words that tell languages apart",
    "judge of refusals",
}


def scores_version(settings: Settings) -> dict[str, dict[str, object]]:
    """What decides the scores, without what decides the verdicts on them."""
    parts = recipe("sensitivity_scores", settings)
    parts["settings"].pop("sensitivity")
    for part in ("code", "shaped by"):
        kept = {k: v for k, v in parts[part].items() if k not in VERDICTS}
        parts[part] = kept
    return parts


def make(
    context: StageContext, policy_document: PolicyDocument, violating_instructions: pa.Table
) -> StageResult:
    settings = context.settings
    served = settings.model.weights == "servers"
    loaded = None if served else load_model(settings.model)
    revision = loaded.revision if loaded else describe(settings.model).revision
    # Costs nothing if the stage before has examined the model.
    examine(
        settings,
        policy_document,
        context.data,
        loaded,
        context.report,
        measure_effect=settings.synthesis.teacher_check,
    ).require()
    made_from = {
        "policy": policy_document.content_hash,
        "instructions": sha256_table(violating_instructions),
        "model": revision,
        "dtype": settings.model.dtype,
        "engine": settings.model.engine,
        "settings": settings.sensitivity.model_dump(exclude={"judge"}),
        "version": scores_version(settings),
    }
    folder = work_folder(context.data, "sensitivity_scores", made_from)
    claim(folder, policy_document)
    parts = PartialScores(folder)

    def progress(done: int, total: int) -> None:
        context.report(f"scored {done}/{total}")

    if loaded is None:
        with opened_servers(settings.model) as servers:
            table = score_by_servers(
                policy_document,
                violating_instructions,
                servers,
                settings.sensitivity,
                progress,
                parts,
            )
    else:
        with opened(settings.model, loaded) as engine:
            table = score_instructions(
                policy_document,
                violating_instructions,
                loaded,
                engine,
                settings.sensitivity,
                settings.model.batch_tokens,
                progress,
                parts,
                earlier_table(context, "sensitivity_scores", policy_document, SENSITIVITY),
            )
        del loaded, engine  # a judge in this process needs the memory
    judge = (
        make_judge(settings.judge, settings.model.id, policy_document, context.report)
        if settings.sensitivity.judge == "configured"
        else judge_for(settings.model.id)
    )
    context.report(f"judging {2 * table.num_rows} responses: {described(judge)}")
    table = with_flips(table, judge)
    violating = table.select(["flip", "reverse_kl"]).filter(pc.equal(table["kind"], "violating"))
    return StageResult(
        table,
        sha256_table(table),
        {
            "dagster/partition_row_count": table.num_rows,
            "log-probabilities": f"the {settings.sensitivity.top_logprobs} likeliest tokens at the "
            "servers: scores are estimates"
            if served
            else "of the whole vocabulary",
            "judge": described(judge),
            "instructions without a verdict": table["flip"].null_count,
            "flip rate": pc.mean(violating["flip"].cast("int8")).as_py(),
            "mean reverse KL": pc.mean(violating["reverse_kl"]).as_py(),
            "preview": preview(
                table, ("rule_id", "kind", "text", "teacher_response", "reverse_kl", "flip")
            ),
        },
    )
