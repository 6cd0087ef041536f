"""Deployments as assets: one model under several policies, remade when one of them changes.

A deployment is a partition of its own (see `policy.deployments`). It reads the tables that the
partitions of its policies made, so it is remade after them. Dagster cannot express which of those
partitions a deployment reads, so its graph shows all; the sensor here decides exactly.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import click
import dagster as dg
import pyarrow as pa

from policyalign_assets.orchestration.assets import (
    DEPLOYED,
    fingerprint_of,
    recorded,
    refuse_after_failed_checks,
    stage_asset,
)
from policyalign_assets.orchestration.found_policies import FoundPolicies, find_policies
from policyalign_assets.orchestration.launchers import Launcher
from policyalign_assets.orchestration.partitions import CATALOG, PARTITION_TAG
from policyalign_assets.orchestration.realign import (
    AUTOMATION,
    SWITCH_ON,
    WHY,
    Made,
    desired_of,
    latest_made,
    live_runs,
    parents_of,
)
from policyalign_assets.orchestration.resources import Pipeline
from policyalign_assets.policy.deployments import Deployment, find_deployments
from policyalign_assets.runtime.results import NoResult, stored_record, stored_table
from policyalign_assets.settings import Settings
from policyalign_assets.stages import fingerprints
from policyalign_assets.stages.interface import StageInput
from policyalign_assets.stages.reasons import changes
from policyalign_assets.stages.registry import DEPLOYMENT_STAGES, EVERY_STAGE, Stage

NAME = "deployments"  # under which Dagster keeps the keys


class Deployments(dg.DynamicPartitionsDefinition):
    """Says what is wrong with a name, where Dagster's command line only says that it is unknown."""

    def validate_partition_key(self, partition_key: str, context: Any) -> None:
        try:
            super().validate_partition_key(partition_key, context)
        except dg.DagsterUnknownPartitionError:
            raise click.ClickException(
                f"{partition_key!r} is no registered deployment. Fix: write the name of a domain "
                f"or of a file in {DEPLOYMENTS_DIR}/, then run `{CATALOG}`."
            ) from None


deployments = Deployments(name=NAME)
DEPLOYMENTS_DIR = os.environ.get("POLICYALIGN_DEPLOYMENTS_DIR", "deployments")
AFTER_PARTITIONS = {"dagster/priority": "-1"}  # in the queue
MEMBER_STAGES = tuple(dict.fromkeys(m for s in DEPLOYMENT_STAGES.values() for m in s.members))


def _run(
    stage: Stage,
    context: dg.AssetExecutionContext,
    pipeline: Pipeline,
    launcher: Launcher,
    inputs: dict[str, StageInput],
) -> dg.MaterializeResult[Any]:
    begun = time.monotonic()
    deployment = _deployment(context.partition_key, pipeline)
    if stage.needs_passed_checks:
        refuse_after_failed_checks(context, deployment.partitions)
    given = {
        m: {key: _stored(pipeline, m, key) for key in deployment.partitions} for m in stage.members
    }
    read: dict[str, StageInput] = {**given, **inputs}
    made = launcher.make(context, pipeline, stage.name, read)
    upstream = {
        name: fingerprints.of_members(name, {k: fingerprint_of(v) for k, v in value.items()})
        if isinstance(value, dict)
        else fingerprint_of(value)
        for name, value in read.items()
    }
    fingerprint = fingerprints.consumed(stage.name, pipeline.settings, upstream)
    return recorded(stage, pipeline, made, fingerprint, {"seconds": time.monotonic() - begun})


def _deployment(name: str, pipeline: Pipeline) -> Deployment:
    found, broken = find_deployments(find_policies(pipeline.policies).keys, Path(DEPLOYMENTS_DIR))
    if name not in found:
        raise dg.Failure(
            broken.get(name, f"there is no deployment {name!r}. Fix: one of {', '.join(found)}."),
            allow_retries=False,
        )
    return found[name]


def _stored(pipeline: Pipeline, stage: str, partition: str) -> Any:
    kind = EVERY_STAGE[stage].result
    try:
        if kind is pa.Table:
            return stored_table(pipeline.data, stage, partition)
        return stored_record(pipeline.data, stage, partition, kind)
    except NoResult as error:
        raise dg.Failure(f"the deployment reads it: {error}", allow_retries=False) from None


deployment_assets = [
    stage_asset(
        stage,
        _run,
        deps=[dg.AssetDep(m, partition_mapping=dg.AllPartitionMapping()) for m in stage.members],
        partitions_def=deployments,
    )
    for stage in DEPLOYMENT_STAGES.values()
]
deployment_job = dg.define_asset_job(
    "deployment_alignment",
    selection=dg.AssetSelection.assets(*DEPLOYMENT_STAGES),
    description="Trains and measures one deployment: its stages that are out of date.",
)


def desired_deployments(
    found: FoundPolicies,
    settings: Settings,
    log: Callable[[str], None] = lambda _: None,
    parents: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, tuple[Deployment, dict[str, str]]]:
    """Each deployment with the fingerprint that each of its stages should have.

    `parents`: what `parents_of_deployments` says.
    """
    by_partition = desired_of(found, settings)
    versions = fingerprints.own_versions(settings)
    deployments_found, broken = find_deployments(found.keys, Path(DEPLOYMENTS_DIR))
    for name, why in broken.items():
        log(f"skipped: deployment {name}: {why}")
    return {
        name: (
            deployment,
            fingerprints.desired_of_deployment(
                {key: by_partition[key] for key in deployment.partitions},
                settings,
                versions,
                parents.get(name),
            ),
        )
        for name, deployment in deployments_found.items()
    }


def parents_of_deployments(instance: dg.DagsterInstance) -> dict[str, str]:
    """As `realign.parents_of`, by deployment."""
    return parents_of(instance, *DEPLOYMENT_STAGES)


def out_of_date_deployments(
    instance: dg.DagsterInstance,
    found: FoundPolicies,
    settings: Settings,
    left: Callable[[str, str], None] = lambda name, why: None,
    log: Callable[[str], None] = lambda _: None,
) -> Iterator[dg.RunRequest]:
    """One run request for each deployment that is not as wanted and whose tables are."""
    by_partition = desired_of(found, settings)
    busy = {run.tags.get(PARTITION_TAG) for run in live_runs(instance)}
    tables = {stage: latest_made(instance, stage) for stage in MEMBER_STAGES}
    latest = {stage: latest_made(instance, stage) for stage in DEPLOYMENT_STAGES}
    parents = parents_of_deployments(instance)
    for name, (deployment, stages) in desired_deployments(found, settings, log, parents).items():
        made = {s: latest[s].get(name, Made()) for s in stages}
        todo = [s for s, fingerprint in stages.items() if made[s].fingerprint != fingerprint]
        if not todo:
            continue
        waiting = [
            key
            for key in deployment.partitions
            if any(
                tables[s].get(key, Made()).fingerprint != by_partition[key][s]
                for s in MEMBER_STAGES
            )
        ]
        if waiting:
            left(name, f"the tables of {', '.join(waiting)} are not as wanted yet")
        elif name in busy:
            left(name, "it has a run already")
        else:
            last = max(m.storage_id for m in made.values())
            recipe = fingerprints.recipe(todo[0], settings)
            why = changes(todo[0], made[todo[0]].recipe, recipe)
            yield dg.RunRequest(
                run_key=f"{name}@{stages['deployment_report']}#{last}",
                partition_key=name,
                asset_selection=[dg.AssetKey(s) for s in todo],
                tags={fingerprints.TAG: stages["deployment_report"], WHY: why, **AFTER_PARTITIONS},
            )


@dg.sensor(
    job=deployment_job,
    minimum_interval_seconds=AUTOMATION.sensor_seconds,
    default_status=dg.DefaultSensorStatus.RUNNING
    if AUTOMATION.enabled
    else dg.DefaultSensorStatus.STOPPED,
    description="Watches the deployments: trains one again when the tables of its policies, its "
    "file or the settings have changed. "
    + ("" if AUTOMATION.enabled else SWITCH_ON.replace("policy_changes", "deployment_changes")),
)
def deployment_changes(
    context: dg.SensorEvaluationContext, policies: dg.ResourceParam[Path]
) -> dg.SensorResult | dg.SkipReason:
    found = find_policies(policies, context.log.warning)
    known = set(context.instance.get_dynamic_partitions(NAME))
    wanted, broken = find_deployments(found.keys, Path(DEPLOYMENTS_DIR))
    live = {run.tags.get(PARTITION_TAG) for run in live_runs(context.instance)}
    requests: list[Any] = []
    if new := sorted(set(wanted) - known):
        requests.append(deployments.build_add_request(new))
    if gone := sorted(known - set(wanted) - set(broken) - live):
        requests.append(deployments.build_delete_request(gone))
    left: dict[str, str] = {}
    runs = list(
        out_of_date_deployments(
            context.instance, found, DEPLOYED, left.__setitem__, context.log.warning
        )
    )
    if not runs and not requests:
        parts = [f"{len(wanted) - len(left)} of {len(wanted)} deployments are as wanted"]
        return dg.SkipReason("; ".join(parts + [f"{n} waits: {w}" for n, w in left.items()]))
    return dg.SensorResult(run_requests=runs, dynamic_partitions_requests=requests)
