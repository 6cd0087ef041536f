"""Re-alignment on change: a sensor and a nightly schedule that start what is out of date.

Both compare the desired state (the current policy files and settings) with the fingerprints on the
latest materializations. The sensor keeps no cursor, so downtime loses nothing. A run key names the
wanted state and the last materialization: a failed attempt is not repeated for ever, a run that got
further is, and a reverted edit is not mistaken for an old run.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import dagster as dg

from policyalign_assets.orchestration import assets
from policyalign_assets.orchestration.dead_runs import bury_dead_runs
from policyalign_assets.orchestration.found_policies import FoundPolicies, find_policies
from policyalign_assets.orchestration.latest import latest_materializations
from policyalign_assets.orchestration.metadata import RECIPE
from policyalign_assets.orchestration.partitions import (
    NAME,
    PARTITION_TAG,
    domain_and_policy,
    partitions,
    policy_of,
)
from policyalign_assets.orchestration.resources import EXPERIMENT
from policyalign_assets.settings import Settings
from policyalign_assets.stages import fingerprints
from policyalign_assets.stages.reasons import changes
from policyalign_assets.stages.registry import STAGES

WHY = "policyalign/why"  # tag of a run: what had changed
BUSY = [
    s
    for s in dg.DagsterRunStatus
    if s
    not in (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)
]
RETRY_SECONDS = 600.0  # Dagster starts a failed run again within some seconds, or never
WAITING = (dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.NOT_STARTED)

alignment_job = dg.define_asset_job(
    "alignment",
    selection=dg.AssetSelection.assets(*STAGES),
    description="Aligns one partition: the stages of the chain that are out of date.",
)


def desired_states(
    policies_dir: Path,
    settings: Settings,
    log: Callable[[str], None] = lambda _: None,
    parents: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, dict[str, str]]:
    """{partition key: {stage: fingerprint}} for every pair of policy and domain that applies.

    A policy with a mistake in it is left as it is, and the mistake is logged. `parents`: what
    `parents_of` says.
    """
    return desired_of(find_policies(policies_dir, log), settings, parents)


def desired_of(
    found: FoundPolicies, settings: Settings, parents: Mapping[str, str] = MappingProxyType({})
) -> dict[str, dict[str, str]]:
    """As `desired_states`, of policies that were read already."""
    versions = fingerprints.own_versions(settings)
    return {
        key: fingerprints.desired(policy.content_hash, settings, versions, parents.get(key))
        for key, policy in found.documents.items()
    }


@dataclass(frozen=True)
class Made:
    """The latest materialization of a stage, as far as re-alignment reads it.

    `parent`: of a checkpoint that went on from another one, that one's id. `accepted` is false of
    a report on such a checkpoint that is not releasable.
    """

    fingerprint: str | None = None
    storage_id: int = 0
    recipe: Mapping[str, Any] | None = None
    parent: str | None = None
    accepted: bool = True


def parents_of(
    instance: dg.DagsterInstance,
    checkpoint: str = "distilled_checkpoint",
    report: str = "benchmark_report",
) -> dict[str, str]:
    """{partition: id of the checkpoint that its present one went on from}.

    A partition whose warm start was not accepted is left out, so that it counts as out of date
    until it is trained from the base model.
    """
    reports = latest_made(instance, report)
    return {
        key: made.parent
        for key, made in latest_made(instance, checkpoint).items()
        if made.parent and reports.get(key, Made()).accepted
    }


def out_of_date(
    instance: dg.DagsterInstance,
    wanted: dict[str, dict[str, str]],
    salt: str = "",
    settings: Settings | None = None,
    left: Callable[[str, str], None] = lambda partition, why: None,
) -> Iterator[dg.RunRequest]:
    """One run request per partition that is not as wanted, for the stages that are not.

    `left` is told of each partition that is out of date and gets no run, and why. `settings` are
    those that `wanted` was made from; with them, a request's tags say what had changed.
    """
    # before the state is read: a run that ends in between is then seen as busy, and its result on
    # the next look
    busy = {run.tags.get(PARTITION_TAG) for run in live_runs(instance)}
    latest = {stage: latest_made(instance, stage) for stage in STAGES}
    recipes = {s: fingerprints.recipe(s, settings) for s in STAGES} if settings else {}
    for partition, stages in wanted.items():
        made = {s: latest[s].get(partition, Made()) for s in stages}
        todo = [s for s, fingerprint in stages.items() if made[s].fingerprint != fingerprint]
        if not todo:
            continue
        if partition in busy:
            left(partition, "it has a run already")
        elif not salt and _stopped_by_hand(instance, partition, stages["benchmark_report"]):
            left(partition, "somebody stopped its run, and nothing has changed since")
        else:
            last = max(m.storage_id for m in made.values())
            why = changes(todo[0], made[todo[0]].recipe, recipes.get(todo[0]))
            yield dg.RunRequest(
                run_key=f"{partition}@{stages['benchmark_report']}#{last}{salt}",
                partition_key=partition,
                asset_selection=[dg.AssetKey(s) for s in todo],
                tags={fingerprints.TAG: stages["benchmark_report"], WHY: why},
            )


def live_runs(instance: dg.DagsterInstance) -> list[dg.DagsterRun]:
    """Runs that are not over, with those that Dagster is about to try again."""
    failed = instance.get_run_records(
        dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE], tags={"dagster/will_retry": "true"})
    )
    now = time.time()
    return [
        *instance.get_runs(dg.RunsFilter(statuses=BUSY)),
        *(r.dagster_run for r in failed if _is_tried_again(r, now)),
    ]


def _is_tried_again(record: dg.RunRecord, now: float) -> bool:
    """Whether Dagster will start a failed run again, as its tag says.

    The tag stays where Dagster cannot do so: nobody can start again what somebody started by hand,
    since it has no code location. Such a run would keep its partition for ever.
    """
    run = record.dagster_run
    ended = record.end_time or record.update_timestamp.timestamp()
    return (
        run.remote_job_origin is not None
        and "dagster/auto_retry_run_id" not in run.tags
        and now - ended < RETRY_SECONDS
    )


def _stopped_by_hand(instance: dg.DagsterInstance, partition: str, fingerprint: str) -> bool:
    """Whether somebody terminated the last run, and nothing that it was to make has changed."""
    last = instance.get_runs(dg.RunsFilter(tags={PARTITION_TAG: partition}), limit=1)
    return (
        bool(last)
        and last[0].status == dg.DagsterRunStatus.CANCELED
        and last[0].tags.get(fingerprints.TAG) == fingerprint
    )


def latest_made(instance: dg.DagsterInstance, stage: str) -> dict[str, Made]:
    """The latest materialization of each partition that is not an experiment's."""
    key = dg.AssetKey(stage)
    latest: dict[str, Made] = {}
    for newest in latest_materializations(instance, key):
        partition, made = newest.partition_key, _last_of_production(instance, key, newest)
        if partition is not None and made is not None:
            event = made.asset_materialization
            recipe = event.metadata.get(RECIPE) if event else None
            written = recipe.value if isinstance(recipe, dg.JsonMetadataValue) else None
            latest[partition] = Made(
                _tags(made).get(fingerprints.TAG),
                made.storage_id,
                written if isinstance(written, Mapping) else None,
                _tags(made).get(fingerprints.PARENT_TAG),
                assets.NOT_ACCEPTED not in _tags(made),
            )
    return latest


def _tags(record: dg.EventLogRecord) -> Mapping[str, str]:
    return record.asset_materialization.tags or {} if record.asset_materialization else {}


def _last_of_production(
    instance: dg.DagsterInstance, key: dg.AssetKey, newest: dg.EventLogRecord
) -> dg.EventLogRecord | None:
    """The newest materialization that is not an experiment's, among the last thousand."""
    if EXPERIMENT not in _tags(newest) or newest.partition_key is None:
        return newest
    records = instance.fetch_materializations(
        dg.AssetRecordsFilter(key, asset_partitions=[newest.partition_key]), limit=1000
    ).records
    return next((r for r in records if EXPERIMENT not in _tags(r)), None)


AUTOMATION = assets.DEPLOYED.automation
SWITCH_ON = (
    "Switched off until you say so: switch it on here, run `dagster sensor start policy_changes`, "
    "or set POLICYALIGN_AUTOMATION__ENABLED=true."
)


def _stop_what_nobody_wants(
    instance: dg.DagsterInstance, present: set[str], log: Callable[[str], None]
) -> None:
    """Cancels waiting runs of policies whose folder is gone: they could only fail."""
    for run in instance.get_runs(dg.RunsFilter(statuses=list(WAITING))):
        policy = policy_of(run)
        if policy and policy not in present:
            instance.report_run_canceling(run, f"policy {policy} was deleted")
            instance.report_run_canceled(run)
            log(f"run {run.run_id} is canceled: its policy {policy} was deleted")


@dg.sensor(
    job=alignment_job,
    minimum_interval_seconds=AUTOMATION.sensor_seconds,
    default_status=dg.DefaultSensorStatus.RUNNING
    if AUTOMATION.enabled
    else dg.DefaultSensorStatus.STOPPED,
    description="Watches the policies and the settings, and re-aligns what is out of date. An edit "
    "of a shared file re-aligns every domain of that policy, an edit of an addendum one. "
    + ("" if AUTOMATION.enabled else SWITCH_ON),
)
def policy_changes(
    context: dg.SensorEvaluationContext, policies: dg.ResourceParam[Path]
) -> dg.SensorResult | dg.SkipReason:
    for run_id in bury_dead_runs(context.instance):
        context.log.warning(f"run {run_id} had no process any more and is marked as failed")
    found = find_policies(policies, context.log.warning)
    present = {*found.policies, *found.broken}
    _stop_what_nobody_wants(context.instance, present, context.log.warning)
    known = set(context.instance.get_dynamic_partitions(NAME))
    live = {run.tags.get(PARTITION_TAG) for run in live_runs(context.instance)}
    # a broken policy keeps its partitions; a live run would fail at its end without its own
    gone = {
        key
        for key in known - set(found.keys) - live
        if domain_and_policy(key)[1] not in found.broken
    }
    requests: list[Any] = []
    if new := sorted(set(found.keys) - known):
        requests.append(partitions.build_add_request(new))
    if gone:
        requests.append(partitions.build_delete_request(sorted(gone)))
    left: dict[str, str] = {}
    wanted = desired_of(found, assets.DEPLOYED, parents_of(context.instance))
    runs = list(
        out_of_date(context.instance, wanted, settings=assets.DEPLOYED, left=left.__setitem__)
    )
    for request in runs:
        context.log.info(f"{request.partition_key}: {request.tags[WHY]}")
    for partition, why in left.items():
        context.log.info(f"{partition} is out of date, but {why}")
    if not runs and not requests:
        return dg.SkipReason(_idle(len(wanted), left, found.broken))
    return dg.SensorResult(run_requests=runs, dynamic_partitions_requests=requests)


def _idle(partitions_found: int, left: Mapping[str, str], broken: Mapping[str, str]) -> str:
    """Why a look starts nothing."""
    parts = [f"{partitions_found - len(left)} of {partitions_found} partitions are as wanted"]
    parts += [f"{partition} waits: {why}" for partition, why in list(left.items())[:5]]
    parts += [f"policy {policy} cannot be read: {why}" for policy, why in list(broken.items())[:5]]
    return "; ".join(parts)


@dg.schedule(
    job=alignment_job,
    cron_schedule=AUTOMATION.nightly,
    default_status=dg.DefaultScheduleStatus.RUNNING
    if AUTOMATION.enabled
    else dg.DefaultScheduleStatus.STOPPED,
    description="Once a night, does what the sensor does, and tries again what failed during the "
    "day. "
    + (
        ""
        if AUTOMATION.enabled
        else SWITCH_ON.replace("sensor start", "schedule start").replace(
            "policy_changes", "nightly_realignment"
        )
    ),
)
def nightly_realignment(
    context: dg.ScheduleEvaluationContext, policies: dg.ResourceParam[Path]
) -> Iterator[dg.RunRequest]:
    day = context.scheduled_execution_time.date().isoformat()
    wanted = desired_states(
        policies, assets.DEPLOYED, context.log.warning, parents_of(context.instance)
    )
    registered = set(context.instance.get_dynamic_partitions(NAME))
    yield from out_of_date(
        context.instance,
        {key: stages for key, stages in wanted.items() if key in registered},
        salt=f"!{day}",
        settings=assets.DEPLOYED,
    )
