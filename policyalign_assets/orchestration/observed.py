"""The policies' files and the deployed settings, as assets that Dagster observes and never makes.

Each run, and a sensor that starts no runs, reports an observation wherever a version has changed.
Stages depend on these assets, so Dagster's UI shows which partitions are out of date, and the
observation says what changed.
"""

from __future__ import annotations

from pathlib import Path

import dagster as dg

from policyalign_assets.orchestration.found_policies import find_policies
from policyalign_assets.orchestration.partitions import partitions
from policyalign_assets.orchestration.resources import deployed_settings
from policyalign_assets.orchestration.source_versions import (
    POLICY_FILES,
    SETTINGS,
    WHAT_CHANGED,
    new_observations,
)
from policyalign_assets.stages.registry import STAGES

DEPLOYED = deployed_settings()
_BY_STAGE = dg.StaticPartitionsDefinition([name for name, s in STAGES.items() if s.settings])

observed_assets = [
    dg.AssetSpec(
        POLICY_FILES,
        group_name="policy",
        kinds={"markdown"},
        partitions_def=partitions,
        description="The files of a policy, as its authors last left them. The data version is the "
        "hash of what its rules say, so an edit shows here at once and makes policy_document "
        "out of date.",
    ),
    dg.AssetSpec(
        SETTINGS,
        group_name="external",
        kinds={"python"},
        partitions_def=_BY_STAGE,
        description="What decides the result of each stage beside its inputs: settings, code "
        "versions, texts and weights. One partition per stage. An observation says what changed.",
    ),
]


def depends_on_sources(stage: str) -> list[dg.AssetDep]:
    """The dependencies of a stage on what is observed here."""
    if stage == "policy_document":
        return [dg.AssetDep(POLICY_FILES)]
    mapping = dg.SpecificPartitionsPartitionMapping([stage])
    return [dg.AssetDep(SETTINGS, partition_mapping=mapping)] if STAGES[stage].settings else []


@dg.sensor(
    # For people who look at the UI, so never more often than they would notice.
    minimum_interval_seconds=max(30, DEPLOYED.automation.sensor_seconds),
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Notes changed policies and settings, so that the UI shows what is out of date. "
    "It starts no runs: that is the work of policy_changes.",
)
def source_changes(
    context: dg.SensorEvaluationContext, policies: dg.ResourceParam[Path]
) -> dg.SensorResult | dg.SkipReason:
    found = find_policies(policies)  # policy_changes and the catalog log the mistakes
    events = new_observations(context.instance, found.documents, DEPLOYED)
    for event in events:
        context.log.info(f"{event.partition}: {event.metadata[WHAT_CHANGED].value}")
    if not events:
        return dg.SkipReason("no policy and no setting has changed since the last look")
    return dg.SensorResult(asset_events=events)
