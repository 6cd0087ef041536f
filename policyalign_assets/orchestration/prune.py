"""Removes what is left of policies whose folder is gone, and old runs.

    python -m policyalign_assets.orchestration.prune [--caches] [--runs-older-than DAYS] [--yes]

A deleted folder only retires a policy: its results, checkpoints and history stay, for whoever has
to show what was deployed. With --caches, what only saves time goes too, for all policies: drafted
rows, generated answers, experiments and unfinished work. It has no owner, because policies that
share a rule share its rows. So it goes all together, and not while a run is live.

Dagster keeps every run for ever, about 0.3 MiB each. With --runs-older-than, those that ended so
many days ago go with their logs, except the ones that made what is current now.

Without --yes this command says what it would remove, and removes nothing. Run it in the project's
folder or below it, or set DAGSTER_HOME.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg

from policyalign_assets.files import Location, location, remove, scratch_folder
from policyalign_assets.orchestration.instance import enter_project
from policyalign_assets.orchestration.partitions import (
    NAME,
    PARTITION_TAG,
    domain_and_policy,
    policy_of,
)
from policyalign_assets.orchestration.realign import live_runs
from policyalign_assets.orchestration.resources import EXPERIMENTS
from policyalign_assets.policy import PolicyError, list_policies
from policyalign_assets.stages.parents import REQUESTS_FOLDER

CACHES = ("synthesis", "generations", "unfinished", EXPERIMENTS)


@dataclass(frozen=True)
class Leftovers:
    policies: list[str]
    files: list[Location]
    runs: list[str]

    def __str__(self) -> str:
        if not self:
            return "Nothing is left of any retired policy."
        return "\n".join(
            [
                f"retired: {', '.join(self.policies) or 'none'}",
                *(f"  {f}" for f in self.files),
                f"  {len(self.runs)} runs and their history",
            ]
        )

    def __bool__(self) -> bool:
        return bool(self.policies or self.files or self.runs)


def find_leftovers(instance: dg.DagsterInstance, policies_dir: Path, data: Location) -> Leftovers:
    """What belongs to policies without a folder.

    Those with a live run are left out: the run still writes.
    """
    present = set(list_policies(policies_dir))
    live = {policy_of(run) for run in live_runs(instance)}
    # what several policies share, as a deployment does, stays while one of them is there
    owned = [(p, path) for p, path in _files(data) if p and p.isdisjoint(present | live)]
    ran = {value for _, values in instance.get_run_tags([PARTITION_TAG]) for value in values}
    known = {domain_and_policy(key)[1] for key in {*instance.get_dynamic_partitions(NAME), *ran}}
    gone = {policy for policies, _ in owned for policy in policies}
    retired = sorted(gone | known - present - live - {""})
    runs = [
        run.run_id
        for key in sorted(ran)
        if domain_and_policy(key)[1] in retired
        for run in instance.get_runs(dg.RunsFilter(tags={PARTITION_TAG: key}))
    ]
    return Leftovers(retired, [path for _, path in owned], runs)


def find_caches(instance: dg.DagsterInstance, data: Location) -> list[Location]:
    """Folders of what can be made again, for time alone.

    None while a run is live: it may be using them.
    """
    return (
        []
        if live_runs(instance)
        else [folder for name in CACHES if (folder := scratch_folder(data) / name).is_dir()]
    )


def find_old_runs(instance: dg.DagsterInstance, days: float) -> list[str]:
    """Runs that ended more than `days` days ago and made nothing that is current.

    A run is kept while any asset's latest materialization, of any partition, is its own: that is
    where Dagster and the sensors read what exists.
    """
    before = datetime.fromtimestamp(time.time() - days * 86_400, UTC)
    status = dg.DagsterRunStatus
    ended = dg.RunsFilter(
        statuses=[status.SUCCESS, status.FAILURE, status.CANCELED], updated_before=before
    )
    current: set[str] = set()
    for key in instance.get_asset_keys():
        latest = instance.get_latest_storage_id_by_partition(
            key, dg.DagsterEventType.ASSET_MATERIALIZATION
        )
        found = dg.AssetRecordsFilter(key, storage_ids=list(latest.values())) if latest else key
        limit = max(1, len(latest))
        current |= {r.run_id for r in instance.fetch_materializations(found, limit=limit).records}
    return [r.run_id for r in instance.get_runs(ended) if r.run_id not in current]


def prune(instance: dg.DagsterInstance, leftovers: Leftovers) -> None:
    for path in leftovers.files:
        remove(path)
    for run_id in leftovers.runs:
        instance.delete_run(run_id)
        instance.compute_log_manager.delete_logs(prefix=[run_id])
        # SQLite keeps a file for each run, which the deletion empties without making it smaller.
        if file_of := getattr(instance.event_log_storage, "path_for_shard", None):
            for file in Path(file_of(run_id)).parent.glob(f"{run_id}.db*"):
                file.unlink()
    for key in instance.get_dynamic_partitions(NAME):
        if domain_and_policy(key)[1] in leftovers.policies:
            instance.delete_dynamic_partition(NAME, key)


def _files(data: Location) -> Iterator[tuple[frozenset[str], Location]]:
    """(policies, path) of every result: tables and records, report folders, checkpoints.

    What names no policy has no owner, and stays.
    """
    for top in (data, *_below(data / EXPERIMENTS)):
        for stage in _below(top / "assets"):
            for domain in _below(stage):
                yield from ((frozenset({file.stem}), file) for file in _below(domain))
    # beside the policies' folders lie the leaderboard's files, which belong to no policy
    for top in (data / "reports", *(e / "reports" for e in _below(data / EXPERIMENTS))):
        yield from ((frozenset({f.name}), f) for f in _below(top) if f.is_dir())
    for deployment in _below(data / "deployments"):
        yield frozenset(f.name for f in _below(deployment / "reports")), deployment
    for checkpoint in _below(data / "checkpoints"):
        card = checkpoint / "checkpoint.json"
        if card.exists():
            made = json.loads(card.read_bytes())["provenance"]
            owners = [own.get("policy_id") for own in made.get("policies", {}).values()]
            policies = frozenset({made.get("policy_id"), *owners} - {None})
            yield policies, checkpoint
            requests = data / REQUESTS_FOLDER / f"{checkpoint.name}.parquet"
            if requests.exists():
                yield policies, requests


def _below(folder: Location) -> list[Location]:
    return (
        sorted((p for p in folder.iterdir() if not p.name.startswith(".")), key=str)
        if folder.is_dir()
        else []
    )


def _days(text: str) -> float:
    try:
        days = float(text)
    except ValueError:
        days = -1.0
    if not 0 <= days <= 36_500:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of days. Fix: 0 to 36500.")
    return days


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
    parser.add_argument(
        "--runs-older-than",
        type=_days,
        metavar="DAYS",
        help="also runs that ended so many days ago and made nothing that is current",
    )
    asked = parser.parse_args()
    home = enter_project()
    data = location(os.environ.get("POLICYALIGN_DATA_DIR", "data"))
    with dg.DagsterInstance.from_config(str(home)) as instance:
        try:
            leftovers = find_leftovers(
                instance, Path(os.environ.get("POLICYALIGN_POLICIES_DIR", "policies")), data
            )
        except PolicyError as error:  # no policies folder: every policy would look retired
            sys.exit(str(error))
        if asked.caches:
            leftovers = replace(leftovers, files=[*leftovers.files, *find_caches(instance, data)])
        if asked.runs_older_than is not None:
            old = find_old_runs(instance, asked.runs_older_than)
            leftovers = replace(leftovers, runs=sorted({*leftovers.runs, *old}))
        print(leftovers)
        if asked.yes:
            prune(instance, leftovers)
        if leftovers:
            print("Removed." if asked.yes else "Nothing was removed. Add --yes to remove this.")


if __name__ == "__main__":
    main()
