"""Removes what is left of policies whose folder is gone: `python -m policyalign_assets.orchestration.prune [--caches] [--yes]`.

A deleted folder only retires a policy: its results, checkpoints and history stay, for whoever has to show what was deployed.
With --caches, what only saves time goes too, of all policies: drafted rows, generated answers, unfinished work. They have
no owner (policies that share a rule share its rows), so they go all together, and not while a run is live. Without --yes this
command says what it would remove, and removes nothing. Run it in the project's folder, or with DAGSTER_HOME
set.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import dagster as dg

from policyalign_assets.files import Location, location, remove, scratch_folder
from policyalign_assets.orchestration.partitions import policy_dimension
from policyalign_assets.orchestration.realign import live_runs
from policyalign_assets.policy import PolicyError, list_policies

POLICY = "dagster/partition/policy"
CACHES = ("synthesis", "generations", "unfinished")


@dataclass(frozen=True)
class Leftovers:
    policies: list[str]
    files: list[Location]
    runs: list[str]

    def __str__(self) -> str:
        if not self.policies and not self.files:
            return "Nothing is left of any retired policy."
        return "\n".join(
            [
                f"retired: {', '.join(self.policies) or 'none'}",
                *(f"  {f}" for f in self.files),
                f"  {len(self.runs)} runs and their history",
            ]
        )


def find_leftovers(instance: dg.DagsterInstance, policies_dir: Path, data: Location) -> Leftovers:
    """What belongs to policies without a folder. Those with a live run are left out: the run still writes."""
    present = set(list_policies(policies_dir))
    live = {run.tags.get(POLICY) for run in live_runs(instance)}
    owned = [(policy, path) for policy, path in _files(data) if policy not in present | live]
    known = {
        *instance.get_dynamic_partitions(policy_dimension.name),
        *(v for _, values in instance.get_run_tags([POLICY]) for v in values),
    }
    retired = sorted({policy for policy, _ in owned} | known - present - live)
    runs = [
        run.run_id
        for policy in retired
        for run in instance.get_runs(dg.RunsFilter(tags={POLICY: policy}))
    ]
    return Leftovers(retired, [path for _, path in owned], runs)


def find_caches(instance: dg.DagsterInstance, data: Location) -> list[Location]:
    """Folders of what can be made again, for time alone. None while a run is live: it may be using them."""
    return (
        []
        if live_runs(instance)
        else [folder for name in CACHES if (folder := scratch_folder(data) / name).is_dir()]
    )


def prune(instance: dg.DagsterInstance, leftovers: Leftovers) -> None:
    for path in leftovers.files:
        remove(path)
    for run_id in leftovers.runs:
        instance.delete_run(run_id)
    for policy in set(leftovers.policies) & set(
        instance.get_dynamic_partitions(policy_dimension.name)
    ):
        instance.delete_dynamic_partition(policy_dimension.name, policy)


def _files(data: Location) -> Iterator[tuple[str, Location]]:
    """(policy, path) of every result: tables and records, report folders, checkpoints."""
    for stage in _below(data / "assets"):
        for domain in _below(stage):
            yield from ((file.stem, file) for file in _below(domain))
    yield from ((folder.name, folder) for folder in _below(data / "reports"))
    for checkpoint in _below(data / "checkpoints"):
        card = checkpoint / "checkpoint.json"
        if card.exists():
            yield json.loads(card.read_bytes())["provenance"].get("policy_id", ""), checkpoint


def _below(folder: Location) -> list[Location]:
    return (
        sorted((p for p in folder.iterdir() if not p.name.startswith(".")), key=str)
        if folder.is_dir()
        else []
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--yes", action="store_true", help="remove it; without this, only say what would be removed"
    )
    parser.add_argument(
        "--caches", action="store_true", help="also what only saves time, of all policies"
    )
    asked = parser.parse_args()
    data = location(os.environ.get("POLICYALIGN_DATA_DIR", "data"))
    with dg.DagsterInstance.from_config(os.environ.get("DAGSTER_HOME", ".")) as instance:
        try:
            leftovers = find_leftovers(
                instance, Path(os.environ.get("POLICYALIGN_POLICIES_DIR", "policies")), data
            )
        except PolicyError as error:  # no policies folder: every policy would look retired
            sys.exit(str(error))
        if asked.caches:
            leftovers = replace(leftovers, files=[*leftovers.files, *find_caches(instance, data)])
        print(leftovers)
        if asked.yes:
            prune(instance, leftovers)
        if leftovers.policies or leftovers.files:
            print("Removed." if asked.yes else "Nothing was removed. Add --yes to remove this.")


if __name__ == "__main__":
    main()
