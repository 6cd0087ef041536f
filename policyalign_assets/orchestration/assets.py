"""The stages as assets, each thin: take the inputs, let the stage's module work on them, say what the result was made from.

The four that load a model run where the resource `launcher` puts them, by default in a process of their own, and share the
pool `gpu`; the others run in the process of the run.
"""

import time
from dataclasses import replace
from pathlib import Path

import dagster as dg
import pyarrow as pa

from policyalign_assets.files import sha256_table
from policyalign_assets.orchestration.data_checks import failed_checks
from policyalign_assets.orchestration.dead_runs import bury_dead_runs
from policyalign_assets.orchestration.launchers import Launcher
from policyalign_assets.orchestration.metadata import POLICY_VERSION_TAG, shown, table_schema
from policyalign_assets.orchestration.owners import asset_owners
from policyalign_assets.orchestration.partitions import (
    domain_and_policy,
    partitions,
    policy_dimension,
)
from policyalign_assets.orchestration.resources import POLICIES_DIR, Pipeline, deployed_settings
from policyalign_assets.policy import PolicyDocument, PolicyError, list_policies, parse_policy
from policyalign_assets.records import Checkpoint, ReportRecord
from policyalign_assets.stages import fingerprints
from policyalign_assets.stages.coverage_facts import selection_coverage, yields_of
from policyalign_assets.stages.facts import markdown_table, preview
from policyalign_assets.stages.interface import MODEL_STAGES, StageData
from policyalign_assets.tables import FILTERED, GENERATIONS, INSTRUCTIONS, JUDGEMENTS, SENSITIVITY

FINGERPRINT = b"policyalign.fingerprint"  # Parquet schema metadata, see `fingerprints`
DEPLOYED = deployed_settings()
OWNERS = asset_owners(Path(POLICIES_DIR))


def _stage(
    name: str, group: str, kinds: set[str], storage: str, schema: pa.Schema | None = None, **extra
):
    """What all stages share: the partitions, and a code version by which Dagster's UI shows a changed setting as stale."""
    return dg.asset(
        partitions_def=partitions,
        group_name=group,
        kinds=kinds,
        owners=OWNERS,
        io_manager_key=storage,
        code_version=fingerprints.own_version(name, DEPLOYED),
        metadata={"dagster/column_schema": table_schema(schema)} if schema else None,
        **extra,
    )


@dg.asset(group_name="policy", kinds={"markdown"})
def policy_catalog(context: dg.AssetExecutionContext, pipeline: Pipeline) -> dg.MaterializeResult:
    """Registers every folder of `policies/` as a partition. Materialize this first on a fresh clone."""
    bury_dead_runs(context.instance)
    policies = list_policies(pipeline.policies)
    known = set(context.instance.get_dynamic_partitions(policy_dimension.name))
    context.instance.add_dynamic_partitions(
        policy_dimension.name, [p for p in policies if p not in known]
    )
    context.log.info(f"policies: {', '.join(policies)}")
    return dg.MaterializeResult(metadata={"policies": policies, "dagster/row_count": len(policies)})


@_stage("policy_document", "policy", {"markdown"}, "records", deps=[policy_catalog])
def policy_document(
    context: dg.AssetExecutionContext, pipeline: Pipeline
) -> dg.MaterializeResult[PolicyDocument]:
    """The policy text as typed rules: the shared rules of the policy, then those of the domain.

    Its data version is the hash of the normalized text and rules: owner, dates, comments and white space do not count.
    """
    domain, policy_id = domain_and_policy(context)
    try:
        policy = parse_policy(pipeline.policies, policy_id, domain)
    except PolicyError as error:
        raise dg.Failure(str(error), allow_retries=False) from None
    return dg.MaterializeResult(
        value=policy,
        data_version=dg.DataVersion(policy.content_hash),
        tags=_tags(fingerprints.of_policy(policy.content_hash), policy.content_hash),
        metadata=shown(
            {
                "rules": len(policy.rules),
                "prohibitions": len(policy.prohibitions),
                "duties": len(policy.duties),
                "owner": policy.owner,
                "effective": str(policy.effective_date or "not stated"),
                "version": policy.content_hash[:12],
                "rule list": markdown_table(
                    ("id", "kind", "rule"), [(r.rule_id, r.kind, r.text) for r in policy.rules]
                ),
            }
        ),
    )


@_stage(
    "violating_instructions",
    "data",
    {"parquet", "huggingface"},
    "tables",
    INSTRUCTIONS,
    pool="gpu",
    deps=["base_model"],
)
def violating_instructions(
    context: dg.AssetExecutionContext,
    pipeline: Pipeline,
    launcher: dg.ResourceParam[Launcher],
    policy_document: PolicyDocument,
) -> dg.MaterializeResult[pa.Table]:
    """Requests that would break each rule, and requests just beyond it (twins, neighbours), written by the model itself."""
    return _launched(
        context, pipeline, launcher, "violating_instructions", policy_document=policy_document
    )


@_stage(
    "sensitivity_scores",
    "data",
    {"parquet", "pytorch"},
    "tables",
    SENSITIVITY,
    pool="gpu",
    deps=["base_model"],
)
def sensitivity_scores(
    context: dg.AssetExecutionContext,
    pipeline: Pipeline,
    launcher: dg.ResourceParam[Launcher],
    policy_document: PolicyDocument,
    violating_instructions: pa.Table,
) -> dg.MaterializeResult[pa.Table]:
    """How far the policy shifts the model on each instruction: answers with and without the policy, and their divergences."""
    return _launched(
        context,
        pipeline,
        launcher,
        "sensitivity_scores",
        policy_document=policy_document,
        violating_instructions=violating_instructions,
    )


@_stage("filtered_instructions", "data", {"parquet", "duckdb"}, "tables", FILTERED)
def filtered_instructions(
    pipeline: Pipeline, violating_instructions: pa.Table, sensitivity_scores: pa.Table
) -> dg.MaterializeResult[pa.Table]:
    """The most sensitive instructions of each rule, and the twins and neighbours that the teacher answers; dropped rows keep their reason."""
    from policyalign_assets.filtering.select import NothingSelected, select_instructions

    try:
        table = select_instructions(
            violating_instructions, sensitivity_scores, pipeline.settings.filtering
        )
    except NothingSelected as error:
        raise dg.Failure(str(error), allow_retries=False) from None
    inputs = {
        "violating_instructions": violating_instructions,
        "sensitivity_scores": sensitivity_scores,
    }
    fingerprint = _made_from("filtered_instructions", pipeline, inputs)
    counts = {c["values"]: c["counts"] for c in table["reason"].value_counts().to_pylist()}
    return dg.MaterializeResult(
        value=_stamped(table, fingerprint),
        data_version=dg.DataVersion(sha256_table(table)),
        tags=_tags(fingerprint, _policy_hash(inputs)),
        metadata=shown(
            {
                "dagster/partition_row_count": table.num_rows,
                "selected": sum(table["selected"].to_pylist()),
                "reasons": markdown_table(("reason", "rows"), sorted(counts.items())),
                **selection_coverage(
                    violating_instructions,
                    yields_of(violating_instructions),
                    table,
                    sensitivity_scores,
                    pipeline.settings.filtering.score,
                ),
                "preview": preview(
                    table.filter(table["selected"]),
                    ("rule_id", "kind", "text", "score", "rank_in_rule"),
                ),
            }
        ),
    )


@_stage(
    "distilled_checkpoint",
    "model",
    {"pytorch", "safetensors"},
    "records",
    pool="gpu",
    deps=["base_model"],
)
def distilled_checkpoint(
    context: dg.AssetExecutionContext,
    pipeline: Pipeline,
    launcher: dg.ResourceParam[Launcher],
    policy_document: PolicyDocument,
    filtered_instructions: pa.Table,
) -> dg.MaterializeResult[Checkpoint]:
    """A LoRA adapter, or a whole model, that makes the model follow the policy without seeing it (on-policy self-distillation).

    A killed run continues from its last saved step. Refused while a blocking check of its data stands failed.
    """
    if failed := failed_checks(context.instance, context.partition_key):
        raise dg.Failure(
            f"training is blocked for {context.partition_key}: {', '.join(failed)} failed. Mend: what the check says in the UI, then "
            "materialize the data or run the check again.",
            allow_retries=False,
        )
    return _launched(
        context,
        pipeline,
        launcher,
        "distilled_checkpoint",
        policy_document=policy_document,
        filtered_instructions=filtered_instructions,
    )


@_stage(
    "generations",
    "evidence",
    {"parquet", "huggingface"},
    "tables",
    GENERATIONS,
    pool="gpu",
    deps=["base_model", "public_benchmarks"],
)
def generations(
    context: dg.AssetExecutionContext,
    pipeline: Pipeline,
    launcher: dg.ResourceParam[Launcher],
    policy_document: PolicyDocument,
    violating_instructions: pa.Table,
    distilled_checkpoint: Checkpoint,
) -> dg.MaterializeResult[pa.Table]:
    """What base and aligned model answer to the same requests, each without and with the policy in its prompt: four arms.

    The requests are held-out cases that the policy's rules give rise to, and the public benchmarks of the domain. Nothing is
    judged yet. The base model with the policy in its prompt is the teacher that the aligned model is measured against.
    """
    return _launched(
        context,
        pipeline,
        launcher,
        "generations",
        policy_document=policy_document,
        violating_instructions=violating_instructions,
        distilled_checkpoint=distilled_checkpoint,
    )


@_stage("judgements", "evidence", {"parquet"}, "tables", JUDGEMENTS, deps=["judge"])
def judgements(
    context: dg.AssetExecutionContext,
    pipeline: Pipeline,
    launcher: dg.ResourceParam[Launcher],
    policy_document: PolicyDocument,
    generations: pa.Table,
) -> dg.MaterializeResult[pa.Table]:
    """One verdict per answer: refused or not, safe or not, right or wrong. Another judge redoes this and the report, no answer.

    What the judge could not say is *unscored*, with the reason: never safe, never unsafe.
    """
    return _launched(
        context,
        pipeline,
        launcher,
        "judgements",
        policy_document=policy_document,
        generations=generations,
    )


@_stage("benchmark_report", "evidence", {"parquet", "html"}, "records")
def benchmark_report(
    context: dg.AssetExecutionContext,
    pipeline: Pipeline,
    launcher: dg.ResourceParam[Launcher],
    policy_document: PolicyDocument,
    violating_instructions: pa.Table,
    filtered_instructions: pa.Table,
    distilled_checkpoint: Checkpoint,
    generations: pa.Table,
    judgements: pa.Table,
) -> dg.MaterializeResult[ReportRecord]:
    """The evidence on one page: safety, over-refusal and capability of the four arms, with intervals, by rule and by benchmark.

    The same figures as JSON and Parquet. Its checks are the release gates: the checkpoint is releasable while the blocking ones pass.
    """
    return _launched(
        context,
        pipeline,
        launcher,
        "benchmark_report",
        policy_document=policy_document,
        violating_instructions=violating_instructions,
        filtered_instructions=filtered_instructions,
        distilled_checkpoint=distilled_checkpoint,
        generations=generations,
        judgements=judgements,
    )


def _launched(
    context: dg.AssetExecutionContext,
    pipeline: Pipeline,
    launcher: Launcher,
    stage: str,
    **inputs: StageData,
) -> dg.MaterializeResult:
    begun = time.monotonic()
    made = (launcher.make if stage in MODEL_STAGES else launcher.make_here)(
        context, pipeline, stage, inputs
    )
    told = {"owner": inputs["policy_document"].owner, "seconds": time.monotonic() - begun}
    fingerprint = _made_from(stage, pipeline, inputs)
    return dg.MaterializeResult(
        value=_stamped(made.value, fingerprint),
        data_version=dg.DataVersion(made.version),
        metadata=shown({**made.facts, **told}),
        tags=_tags(fingerprint, _policy_hash(inputs)),
    )


def _made_from(stage: str, pipeline: Pipeline, inputs: dict[str, StageData]) -> str:
    """The fingerprint of what `stage` makes from the data that it really read, which need not be what is on disk by now."""
    return fingerprints.consumed(
        stage, pipeline.settings, {name: _fingerprint(data) for name, data in inputs.items()}
    )


def _fingerprint(data: StageData) -> str:
    if isinstance(data, PolicyDocument):
        return fingerprints.of_policy(data.content_hash)
    return (
        data.schema.metadata[FINGERPRINT].decode()
        if isinstance(data, pa.Table)
        else data.provenance["fingerprint"]
    )


def _stamped(value: StageData, fingerprint: str) -> StageData:
    """`value` with its fingerprint, where it has a place for it: a report is read by no other stage."""
    if isinstance(value, pa.Table):
        return value.replace_schema_metadata(
            {**(value.schema.metadata or {}), FINGERPRINT: fingerprint}
        )
    return (
        replace(value, provenance={**value.provenance, "fingerprint": fingerprint})
        if isinstance(value, Checkpoint)
        else value
    )


def _policy_hash(inputs: dict[str, StageData]) -> str:
    """Of the policy's text that the data was made from: tables carry it through the chain."""
    tables = [data for data in inputs.values() if isinstance(data, pa.Table)]
    return (
        tables[-1]["policy_hash"][0].as_py() if tables else inputs["policy_document"].content_hash
    )


def _tags(fingerprint: str, policy_hash: str) -> dict[str, str]:
    return {fingerprints.TAG: fingerprint, POLICY_VERSION_TAG: policy_hash[:40]}
