"""What is out of date, stage by stage, and why. It starts nothing, where the sensor would."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import dagster as dg

from policyalign_assets.orchestration.deployments import (
    desired_deployments,
    parents_of_deployments,
)
from policyalign_assets.orchestration.found_policies import FoundPolicies, find_policies
from policyalign_assets.orchestration.partitions import PARTITION_TAG
from policyalign_assets.orchestration.realign import (
    Made,
    desired_of,
    latest_made,
    live_runs,
    parents_of,
)
from policyalign_assets.settings import Settings
from policyalign_assets.stages import fingerprints
from policyalign_assets.stages.reasons import changes
from policyalign_assets.stages.registry import DEPLOYMENT_STAGES, EVERY_STAGE, STAGES

State = Literal["up to date", "out of date", "never made"]


@dataclass(frozen=True)
class StageStatus:
    """`why` is empty where the stage is up to date."""

    stage: str
    state: State
    why: str


@dataclass(frozen=True)
class PartitionStatus:
    """Of a partition, or of a deployment. `running`: the id of a run that is not over, or None.

    `parent`: the checkpoint that its present one went on from; None: it started from the base.
    """

    partition: str
    stages: tuple[StageStatus, ...]
    running: str | None
    parent: str | None = None

    @property
    def up_to_date(self) -> bool:
        return all(stage.state == "up to date" for stage in self.stages)


@dataclass(frozen=True)
class Status:
    """`deployments`: those that were made or asked for. `never_made`: names of the others.

    broken: policies and deployments that cannot be read, each with its mistake.
    unknown: what was asked for and no policy makes.
    """

    partitions: tuple[PartitionStatus, ...]
    deployments: tuple[PartitionStatus, ...]
    never_made: tuple[str, ...]
    broken: Mapping[str, str]
    unknown: tuple[str, ...]

    @property
    def up_to_date(self) -> bool:
        """Whether there is anything, and all of it is as the policies and settings want it."""
        looked_at = (*self.partitions, *self.deployments)
        good = all(one.up_to_date for one in looked_at)
        return bool(looked_at) and good and not self.broken and not self.unknown


def find_status(
    instance: dg.DagsterInstance,
    policies_dir: Path,
    settings: Settings,
    only: Sequence[str] = (),
) -> Status:
    """The status of all partitions and deployments, or of those in `only`.

    Raises PolicyError where there is no policies folder.
    """
    policies = find_policies(policies_dir)
    parents = parents_of(instance)
    wanted = desired_of(policies, settings, parents)
    running = {run.tags.get(PARTITION_TAG): run.run_id for run in live_runs(instance)}
    made = {stage: latest_made(instance, stage) for stage in STAGES}
    recipes = {stage: fingerprints.recipe(stage, settings) for stage in EVERY_STAGE}
    found = [
        PartitionStatus(
            partition,
            _stages(stages, {s: made[s].get(partition, Made()) for s in stages}, recipes),
            running.get(partition),
            parents.get(partition),
        )
        for partition, stages in sorted(wanted.items())
        if not only or partition in only
    ]
    stale = {
        partition
        for partition, stages in wanted.items()
        if any(made[s].get(partition, Made()).fingerprint != f for s, f in stages.items())
    }
    broken = dict(policies.broken)
    deployments, never, names = _deployments(
        instance, policies, settings, only, recipes, running, stale, broken
    )
    known = {*wanted, *names}
    unknown = tuple(asked for asked in only if asked not in known)
    return Status(tuple(found), tuple(deployments), tuple(never), broken, unknown)


def _deployments(
    instance: dg.DagsterInstance,
    policies: FoundPolicies,
    settings: Settings,
    only: Sequence[str],
    recipes: Mapping[str, fingerprints.Recipe],
    running: Mapping[str | None, str],
    stale: set[str],
    broken: dict[str, str],
) -> tuple[list[PartitionStatus], list[str], list[str]]:
    """Those that were made or asked for, the names of the others, and all names.

    stale: partitions that are out of date. Deployments that cannot be read are added to `broken`.
    """

    def note(line: str) -> None:
        name, _, why = line.removeprefix("skipped: deployment ").partition(": ")
        broken[f"deployment {name}"] = why

    parents = parents_of_deployments(instance)
    wanted = desired_deployments(policies, settings, note, parents)
    made = {stage: latest_made(instance, stage) for stage in DEPLOYMENT_STAGES}
    found, never = [], []
    for name, (deployment, stages) in sorted(wanted.items()):
        mine = {s: made[s].get(name, Made()) for s in stages}
        if only and name not in only:
            continue
        if not only and not any(m.storage_id for m in mine.values()):
            never.append(name)
            continue
        members = [key for key in deployment.partitions if key in stale]
        found.append(
            PartitionStatus(
                name,
                _stages(stages, mine, recipes, members),
                running.get(name),
                parents.get(name),
            )
        )
    return found, never, list(wanted)


def _stages(
    wanted: Mapping[str, str],
    made: Mapping[str, Made],
    recipes: Mapping[str, fingerprints.Recipe],
    members: Sequence[str] = (),
) -> tuple[StageStatus, ...]:
    """members: the partitions of a deployment that are out of date."""
    stale = {stage for stage, value in wanted.items() if made[stage].fingerprint != value}
    return tuple(
        StageStatus(stage, "up to date", "")
        if stage not in stale
        else StageStatus(
            stage,
            "out of date" if made[stage].storage_id else "never made",
            _why(stage, made[stage], recipes[stage], stale, members),
        )
        for stage in wanted
    )


def _why(
    stage: str, made: Made, recipe: fingerprints.Recipe, stale: set[str], members: Sequence[str]
) -> str:
    """Its own recipe, the stages and partitions that it reads, or all of them."""
    if not made.storage_id:
        return "it was never made"
    reads = [upstream for upstream in EVERY_STAGE[stage].upstream if upstream in stale]
    if EVERY_STAGE[stage].members:
        reads += members
    parts = []
    if made.recipe is None:
        parts.append("it was made before recipes were recorded, so its change is not known")
    elif made.recipe != recipe or not reads:
        parts.append(changes(stage, made.recipe, recipe).removeprefix(f"{stage}: "))
    if reads:
        parts.append(f"it reads {', '.join(reads)}")
    return "; ".join(parts)
