"""The stages as Dagster assets, made from the registry.

Each asset takes its inputs, lets the stage's module work on them, and records what the result was
made from. Stages that load a model run where the resource `launcher` puts them, by default in a
process of their own, and share the pool `gpu`. The others run in the process of the run.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import dagster as dg
import pyarrow as pa

from policyalign_assets.orchestration.data_checks import failed_checks
from policyalign_assets.orchestration.doctor_check import report_refusal
from policyalign_assets.orchestration.launchers import Launcher
from policyalign_assets.orchestration.metadata import (
    POLICY_VERSION_TAG,
    RECIPE,
    shown,
    table_schema,
)
from policyalign_assets.orchestration.observed import depends_on_sources
from policyalign_assets.orchestration.owners import asset_owners
from policyalign_assets.orchestration.partitions import partitions
from policyalign_assets.orchestration.resources import (
    EXPERIMENT,
    POLICIES_DIR,
    Pipeline,
    deployed_settings,
)
from policyalign_assets.policy import PolicyDocument
from policyalign_assets.records import Checkpoint, ReportRecord, parent_of
from policyalign_assets.stages import fingerprints
from policyalign_assets.stages.facts import Facts
from policyalign_assets.stages.interface import StageData, StageResult
from policyalign_assets.stages.registry import EVERY_STAGE, STAGES, Stage

# Of a report on a warm start that is not releasable: training must start from the base model.
NOT_ACCEPTED = "policyalign/warm_start_not_accepted"
FINGERPRINT = b"policyalign.fingerprint"  # Parquet schema metadata, see `fingerprints`
DEPLOYED = deployed_settings()
OWNERS = asset_owners(Path(POLICIES_DIR))


def stage_asset(
    stage: Stage, work: Callable[..., dg.MaterializeResult[Any]], **where: Any
) -> dg.AssetsDefinition:
    """The asset of one stage, which `work` makes.

    `where`: what dg.asset needs beside the facts of the registry: partitions, deps, owners. The
    code version changes with the settings, texts and code that the stage reads.
    """

    def run(
        context: dg.AssetExecutionContext,
        pipeline: Pipeline,
        launcher: dg.ResourceParam[Launcher],
        **inputs: Any,
    ) -> dg.MaterializeResult[Any]:
        return work(stage, context, pipeline, launcher, inputs)

    run.__annotations__["return"] = dg.MaterializeResult[stage.result]  # type: ignore[name-defined]
    return dg.asset(
        name=stage.name,
        description=stage.description,
        ins={name: dg.AssetIn(dagster_type=EVERY_STAGE[name].result) for name in stage.upstream},
        group_name=stage.group,
        kinds=set(stage.kinds),
        io_manager_key=stage.storage,
        pool="gpu" if stage.loads_model else None,
        code_version=fingerprints.own_version(stage.name, DEPLOYED),
        metadata={"dagster/column_schema": table_schema(stage.schema)} if stage.schema else None,
        **where,
    )(run)


def _run(
    stage: Stage,
    context: dg.AssetExecutionContext,
    pipeline: Pipeline,
    launcher: Launcher,
    inputs: dict[str, StageData],
) -> dg.MaterializeResult[Any]:
    if stage.needs_passed_checks:
        refuse_after_failed_checks(context, [context.partition_key])
    begun = time.monotonic()
    make = launcher.make if stage.loads_model else launcher.make_here
    try:
        made = make(context, pipeline, stage.name, inputs)
    except dg.Failure:
        report_refusal(context, pipeline)
        raise
    facts: Facts = {"seconds": time.monotonic() - begun}
    policy = made.value if stage.result is PolicyDocument else inputs.get("policy_document")
    if isinstance(policy, PolicyDocument):
        facts["owner"] = policy.owner
    fingerprint = (
        fingerprint_of(made.value)
        if stage.result is PolicyDocument
        else _made_from(stage.name, pipeline, inputs)
    )
    tags = {POLICY_VERSION_TAG: _policy_hash(made.value, inputs)[:40]}
    return recorded(stage, pipeline, made, fingerprint, facts, tags)


def recorded(
    stage: Stage,
    pipeline: Pipeline,
    made: StageResult,
    fingerprint: str,
    facts: Facts,
    tags: Mapping[str, str] = MappingProxyType({}),
) -> dg.MaterializeResult[Any]:
    """What Dagster keeps of a result: the value, what it was made from, and what is shown.

    `facts` and `tags` are added to those that every stage has.
    """
    shown_facts = {**made.facts, **facts}
    all_tags = {fingerprints.TAG: fingerprint, **tags}
    if isinstance(made.value, Checkpoint) and (parent := parent_of(made.value)):
        fingerprint = fingerprints.descended(fingerprint, parent)
        all_tags |= {fingerprints.TAG: fingerprint, fingerprints.PARENT_TAG: parent}
    if isinstance(made.value, ReportRecord) and not made.value.may_stand:
        all_tags[NOT_ACCEPTED] = "yes"
    if pipeline.experiment:
        all_tags[EXPERIMENT] = pipeline.experiment
        shown_facts["experiment"] = (
            f"settings of this run alone; results in {pipeline.results}, not used by the deployment"
        )
    return dg.MaterializeResult(
        value=_stamped(made.value, fingerprint),
        data_version=dg.DataVersion(made.version),
        metadata={
            **shown(shown_facts),
            RECIPE: dg.MetadataValue.json(fingerprints.recipe(stage.name, pipeline.settings)),
        },
        tags=all_tags,
    )


def refuse_after_failed_checks(
    context: dg.AssetExecutionContext, partition_keys: Iterable[str]
) -> None:
    """Raises dg.Failure where a blocking check of a partition's data has failed."""
    for key in partition_keys:
        if failed := failed_checks(context.instance, key):
            raise dg.Failure(
                f"training is blocked for {key}: {', '.join(failed)} failed. "
                "Fix: what the check says in the UI, then materialize the data again.",
                allow_retries=False,
            )


def _made_from(stage: str, pipeline: Pipeline, inputs: dict[str, StageData]) -> str:
    """The fingerprint of what `stage` makes from the data that it read.

    That data need not be what is on disk by now.
    """
    return fingerprints.consumed(
        stage, pipeline.settings, {name: fingerprint_of(data) for name, data in inputs.items()}
    )


def fingerprint_of(data: StageData) -> str:
    if isinstance(data, PolicyDocument):
        return fingerprints.of_policy(data.content_hash)
    if isinstance(data, pa.Table):
        return data.schema.metadata[FINGERPRINT].decode()
    if isinstance(data, Checkpoint):
        return str(data.provenance["fingerprint"])
    raise TypeError(f"a {type(data).__name__} carries no fingerprint: no stage reads one")


def _stamped(value: StageData, fingerprint: str) -> StageData:
    """`value` with its fingerprint, where it has a place for it. No other stage reads a report."""
    if isinstance(value, pa.Table):
        return value.replace_schema_metadata(
            {**(value.schema.metadata or {}), FINGERPRINT: fingerprint}
        )
    if isinstance(value, Checkpoint):
        return replace(value, provenance={**value.provenance, "fingerprint": fingerprint})
    return value


def _policy_hash(value: StageData, inputs: dict[str, StageData]) -> str:
    """Hash of the policy text that the data was made from: tables carry it through the chain."""
    tables = [data for data in inputs.values() if isinstance(data, pa.Table)]
    if tables:
        return str(tables[-1]["policy_hash"][0].as_py())
    policy = inputs.get("policy_document", value)
    assert isinstance(policy, PolicyDocument)  # the first two stages of the chain
    return policy.content_hash


stage_assets = [
    stage_asset(
        stage,
        _run,
        deps=[*stage.external, *depends_on_sources(stage.name)],
        partitions_def=partitions,
        owners=OWNERS,
    )
    for stage in STAGES.values()
]
