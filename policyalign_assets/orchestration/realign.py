"""Re-alignment on change: a sensor and a nightly schedule that start what is out of date, and nothing else.

Both compare desired state (policy files and settings of now) with the fingerprints on the latest materializations. The
sensor keeps no cursor, so downtime loses nothing; a run key names the wanted state and the last materialization, so a
failed attempt is not repeated for ever, a run that got further is, and a reverted edit is not mistaken for an old run.
"""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg

from policyalign_assets.orchestration import assets
from policyalign_assets.orchestration.dead_runs import bury_dead_runs
from policyalign_assets.orchestration.partitions import partitions, policy_dimension
from policyalign_assets.orchestration.resources import Pipeline
from policyalign_assets.policy import PolicyError, applicable_domains, list_policies, parse_policy
from policyalign_assets.settings import BUNDLED, Settings
from policyalign_assets.stages import fingerprints
from policyalign_assets.stages.registry import STAGES

BUSY = [
    s
    for s in dg.DagsterRunStatus
    if s
    not in (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)
]

alignment_job = dg.define_asset_job(
    "alignment",
    selection=dg.AssetSelection.assets(*STAGES),
    partitions_def=partitions,
    description="Aligns one partition: the stages of the chain that are out of date.",
)


def desired_states(
    policies_dir: Path, settings: Settings, log=lambda _: None
) -> dict[str, dict[str, str]]:
    """{partition key: {stage: fingerprint}} for every pair of policy and domain that applies.

    A policy with a mistake in it is left as it is (its last good state stays) and the mistake is logged.
    """
    wanted = {}
    versions = fingerprints.own_versions(settings)
    for policy_id in list_policies(policies_dir):
        try:
            for domain in applicable_domains(policies_dir, policy_id):
                policy = parse_policy(policies_dir, policy_id, domain)
                wanted[f"{domain}|{policy_id}"] = fingerprints.desired(
                    policy.content_hash, settings, versions
                )
        except PolicyError as error:
            log(f"skipped: {error}")
    return wanted


def out_of_date(
    instance: dg.DagsterInstance, wanted: dict[str, dict[str, str]], salt: str = ""
) -> Iterator[dg.RunRequest]:
    """One run request per partition that is not as wanted, for the stages that are not. Partitions with a live run wait."""
    # before the state is read: a run that ends in between is then seen as busy, and its result on the next tick
    busy = {run.tags.get("dagster/partition") for run in live_runs(instance)}
    latest = {stage: _latest(instance, stage) for stage in STAGES}
    for partition, stages in wanted.items():
        if partition in busy:
            continue
        made = {
            s: latest[s].get(partition, (None, 0)) for s in stages
        }  # fingerprint and storage id
        todo = [s for s, fingerprint in stages.items() if made[s][0] != fingerprint]
        if todo and (salt or not _stopped_by_hand(instance, partition, stages["benchmark_report"])):
            last = max(storage_id for _, storage_id in made.values())
            yield dg.RunRequest(
                run_key=f"{partition}@{stages['benchmark_report']}#{last}{salt}",
                partition_key=partition,
                asset_selection=[dg.AssetKey(s) for s in todo],
                tags={fingerprints.TAG: stages["benchmark_report"]},
            )


def live_runs(instance: dg.DagsterInstance) -> list[dg.DagsterRun]:
    """Runs that are not over, with those that Dagster is about to try again."""
    failed = instance.get_runs(
        dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE], tags={"dagster/will_retry": "true"})
    )
    return [
        *instance.get_runs(dg.RunsFilter(statuses=BUSY)),
        *(r for r in failed if "dagster/auto_retry_run_id" not in r.tags),
    ]


def _stopped_by_hand(instance: dg.DagsterInstance, partition: str, fingerprint: str) -> bool:
    """Whether somebody terminated the last run of the partition, and nothing that it was to make has changed since."""
    last = instance.get_runs(dg.RunsFilter(tags={"dagster/partition": partition}), limit=1)
    return (
        bool(last)
        and last[0].status == dg.DagsterRunStatus.CANCELED
        and last[0].tags.get(fingerprints.TAG) == fingerprint
    )


def _latest(instance: dg.DagsterInstance, stage: str) -> dict[str, tuple[str | None, int]]:
    """{partition: (fingerprint, storage id)} of the latest materializations, in two queries however many partitions there are."""
    key = dg.AssetKey(stage)
    ids = instance.event_log_storage.get_latest_storage_id_by_partition(
        key, dg.DagsterEventType.ASSET_MATERIALIZATION
    )
    if not ids:
        return {}
    records = instance.fetch_materializations(
        dg.AssetRecordsFilter(key, storage_ids=list(ids.values())), limit=len(ids)
    ).records
    return {
        r.partition_key: (r.asset_materialization.tags.get(fingerprints.TAG), r.storage_id)
        for r in records
    }


AUTOMATION = assets.DEPLOYED.automation
ON = AUTOMATION.enabled if AUTOMATION.enabled is not None else assets.DEPLOYED.profile == BUNDLED


@dg.sensor(
    job=alignment_job,
    minimum_interval_seconds=AUTOMATION.sensor_seconds,
    default_status=dg.DefaultSensorStatus.RUNNING if ON else dg.DefaultSensorStatus.STOPPED,
)
def policy_changes(
    context: dg.SensorEvaluationContext, pipeline: Pipeline
) -> dg.SensorResult | dg.SkipReason:
    """Watches `policies/` and the settings: an edit of a shared file re-aligns all domains of that policy, of an addendum one."""
    for run_id in bury_dead_runs(context.instance):
        context.log.warning(f"run {run_id} had no process any more and is marked as failed")
    policies_dir = pipeline.policies
    wanted = desired_states(policies_dir, assets.DEPLOYED, context.log.warning)
    known, present = (
        set(context.instance.get_dynamic_partitions(policy_dimension.name)),
        set(list_policies(policies_dir)),
    )
    live = {run.tags.get("dagster/partition/policy") for run in live_runs(context.instance)}
    changes = []
    if new := sorted(present - known):
        changes.append(policy_dimension.build_add_request(new))
    if gone := sorted(
        known - present - live
    ):  # never under a live run, which would fail at its end
        changes.append(policy_dimension.build_delete_request(gone))
    requests = list(out_of_date(context.instance, wanted))
    if not requests and not changes:
        return dg.SkipReason(f"all {len(wanted)} partitions are as wanted, or have a run already")
    return dg.SensorResult(run_requests=requests, dynamic_partitions_requests=changes)


@dg.schedule(
    job=alignment_job,
    cron_schedule=AUTOMATION.nightly,
    default_status=dg.DefaultScheduleStatus.RUNNING if ON else dg.DefaultScheduleStatus.STOPPED,
)
def nightly_realignment(context: dg.ScheduleEvaluationContext, pipeline: Pipeline):
    """What the sensor does, once a night, and once more for what failed during the day."""
    day = context.scheduled_execution_time.date().isoformat()
    wanted = desired_states(pipeline.policies, assets.DEPLOYED, context.log.warning)
    registered = set(context.instance.get_dynamic_partitions(policy_dimension.name))
    yield from out_of_date(
        context.instance,
        {k: v for k, v in wanted.items() if k.split("|")[1] in registered},
        salt=f"!{day}",
    )
