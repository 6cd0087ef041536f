"""What is out of date, stage by stage, and why. It starts nothing, where the sensor would."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import dagster as dg

from policyalign_assets.orchestration.found_policies import find_policies
from policyalign_assets.orchestration.partitions import PARTITION_TAG
from policyalign_assets.orchestration.realign import (
    Made,
    desired_of,
    latest_made,
    live_runs,
)
from policyalign_assets.settings import Settings
from policyalign_assets.stages import fingerprints
from policyalign_assets.stages.reasons import changes
from policyalign_assets.stages.registry import STAGES

State = Literal["up to date", "out of date", "never made"]


@dataclass(frozen=True)
class StageStatus:
    """`why` is empty where the stage is up to date."""

    stage: str
    state: State
    why: str


@dataclass(frozen=True)
class PartitionStatus:
    """`running`: the id of a run of this partition that is not over, or None."""

    partition: str
    stages: tuple[StageStatus, ...]
    running: str | None

    @property
    def up_to_date(self) -> bool:
        return all(stage.state == "up to date" for stage in self.stages)


@dataclass(frozen=True)
class Status:
    """`broken`: policies that cannot be read, each with its mistake. `unknown`: partitions that
    were asked for and that no policy makes."""

    partitions: tuple[PartitionStatus, ...]
    broken: Mapping[str, str]
    unknown: tuple[str, ...]

    @property
    def up_to_date(self) -> bool:
        """Whether there is anything, and all of it is as the policies and settings want it."""
        good = all(partition.up_to_date for partition in self.partitions)
        return bool(self.partitions) and good and not self.broken and not self.unknown


def find_status(
    instance: dg.DagsterInstance,
    policies_dir: Path,
    settings: Settings,
    only: Sequence[str] = (),
) -> Status:
    """The status of all partitions, or of those in `only`.

    Raises PolicyError where there is no policies folder.
    """
    policies = find_policies(policies_dir)
    wanted = desired_of(policies, settings)
    running = {run.tags.get(PARTITION_TAG): run.run_id for run in live_runs(instance)}
    made = {stage: latest_made(instance, stage) for stage in STAGES}
    recipes = {stage: fingerprints.recipe(stage, settings) for stage in STAGES}
    found = [
        PartitionStatus(
            partition,
            _stages(stages, {s: made[s].get(partition, Made()) for s in stages}, recipes),
            running.get(partition),
        )
        for partition, stages in sorted(wanted.items())
        if not only or partition in only
    ]
    return Status(tuple(found), policies.broken, tuple(p for p in only if p not in wanted))


def _stages(
    wanted: Mapping[str, str],
    made: Mapping[str, Made],
    recipes: Mapping[str, fingerprints.Recipe],
) -> tuple[StageStatus, ...]:
    stale = {stage for stage, value in wanted.items() if made[stage].fingerprint != value}
    return tuple(
        StageStatus(stage, "up to date", "")
        if stage not in stale
        else StageStatus(
            stage,
            "out of date" if made[stage].storage_id else "never made",
            _why(stage, made[stage], recipes[stage], stale),
        )
        for stage in wanted
    )


def _why(stage: str, made: Made, recipe: fingerprints.Recipe, stale: set[str]) -> str:
    """Its own recipe, the stages that it reads, or both."""
    if not made.storage_id:
        return "it was never made"
    reads = [upstream for upstream in STAGES[stage].upstream if upstream in stale]
    parts = []
    if made.recipe is None:
        parts.append("it was made before recipes were recorded, so its change is not known")
    elif made.recipe != recipe or not reads:
        parts.append(changes(stage, made.recipe, recipe).removeprefix(f"{stage}: "))
    if reads:
        parts.append(f"it reads {', '.join(reads)}")
    return "; ".join(parts)
