"""Finds the reports that somebody names: of a partition, a deployment, their past, or a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from policyalign_assets.files import Location
from policyalign_assets.releases.errors import ReleaseError
from policyalign_assets.releases.record import RECORD, is_deployment, policy_folder, read_record
from policyalign_assets.report.difference import Difference, Reported, compare, read_reported
from policyalign_assets.report.folders import (
    all_reports,
    current_report,
    partition_folder,
    reported_partitions,
)
from policyalign_assets.report.last_released import last_released
from policyalign_assets.runtime.results import deployment_folder, split_partition

RELEASED = "released"


@dataclass(frozen=True)
class Compared:
    """What differs under each policy. `left`, `joined`: policies of one side alone.

    A policy that left is a regression, as is anything that was measured and no longer is.
    """

    by_policy: Mapping[str, Difference]
    left: tuple[str, ...]
    joined: tuple[str, ...]

    @property
    def regression(self) -> bool:
        return bool(self.left) or any(d.regressions for d in self.by_policy.values())


def find_reports(name: str, data: Location) -> dict[str, Reported]:
    """The reports that `name` means, by policy.

    name: a folder (a bundle or a report), `domain|policy` or a deployment's name (their current
    reports), the same with `@released` (the last released ones), or with `@ID`, where ID begins the
    name of a report in its history or of a bundle.
    Raises ReleaseError, NoResult or NotAReport; each says what to do.
    """
    folder = Path(name)
    if (folder / RECORD).is_file() and (folder / "manifest.json").is_file():
        return _of_bundle(folder)
    if (folder / "report.json").is_file():
        found = read_reported(folder, f"report {folder.name}")
        return {str(found.header.get("policy_id", "")): found}
    target, _, which = name.partition("@")
    if not is_deployment(target):
        _, policy = split_partition(target)
        return {policy: read_reported(_of_partition(data, data, target, which, target), name)}
    if "/" in name or folder.exists():
        raise ReleaseError(
            f"{name!r} is neither a bundle nor the folder of a report. Fix: name one, a partition "
            "such as 'medical|general-conduct', or a deployment. @released and @ID name older ones."
        )
    return _of_deployment(target, which, data, name)


def compare_all(
    before: Mapping[str, Reported], now: Mapping[str, Reported], show_harmful: bool
) -> Compared:
    """Compares policy by policy. Two single reports are compared, whatever their policies are."""
    if len(before) == len(now) == 1:
        (old,), ((policy, new),) = before.values(), now.items()
        return Compared({policy: compare(old, new, show_harmful)}, (), ())
    both = [policy for policy in before if policy in now]
    if not both:
        raise ReleaseError(
            f"The two have no policy in common: {', '.join(before)} and {', '.join(now)}. "
            "Fix: name two reports of one deployment, or of a deployment and one of its policies."
        )
    return Compared(
        {policy: compare(before[policy], now[policy], show_harmful) for policy in both},
        tuple(policy for policy in before if policy not in now),
        tuple(policy for policy in now if policy not in before),
    )


def _of_bundle(bundle: Path) -> dict[str, Reported]:
    record = read_record(bundle)
    return {
        policy.policy_id: read_reported(
            record.place(bundle, policy) / "report", f"bundle {bundle.name}{record.under(policy)}"
        )
        for policy in record.policies
    }


def _of_deployment(name: str, which: str, data: Location, said: str) -> dict[str, Reported]:
    results = deployment_folder(data, name)
    partitions = list(reported_partitions(results))
    if not partitions:
        raise ReleaseError(
            f"There is no report of the deployment {name!r} ({results / 'reports'} does not "
            f"exist). Fix: policyalign align {name}, or name a bundle, a report or a partition."
        )
    found = {}
    for domain, policy in partitions:
        folder = _of_partition(results, data, f"{domain}|{policy}", which, name)
        found[policy] = read_reported(folder, f"{said} under {policy}")
    return found


def _of_partition(
    results: Location, data: Location, partition: str, which: str, target: str
) -> Location:
    """results: the folder of the reports. data: that of the bundles."""
    domain, policy = split_partition(partition)
    reports = list(all_reports(partition_folder(results, domain, policy)))
    if not which:
        try:
            return current_report(results, domain, policy)
        except FileNotFoundError as error:
            raise ReleaseError(
                f"There is no report of '{partition}' ({error.filename} is missing). "
                f"Fix: policyalign align '{target}'."
            ) from None
    if which == RELEASED:
        released = last_released(results, domain, policy, data)
        if released is None:
            raise ReleaseError(
                f"Nothing of '{target}' was released yet. "
                "Fix: compare with another report of its history, as @ID."
            )
        return released[0]
    found = [r for r in reports if r.name.startswith(which)]
    found += _bundles(data, which, policy_folder(target, policy))
    if len(found) != 1:
        known = ", ".join(sorted(r.name for r in reports)) or "none"
        raise ReleaseError(
            f"{which!r} begins the name of {len(found)} reports of '{partition}'. "
            f"Fix: the reports are {known}."
        )
    return found[0]


def _bundles(data: Location, which: str, place: str) -> list[Location]:
    """Reports in bundles whose name begins with `which`."""
    releases = data / "releases"
    if not releases.is_dir():
        return []
    folders: list[Location] = list(releases.iterdir())
    return [
        b / place / "report"
        for b in sorted(folders, key=str)
        if b.name.startswith(which) and (b / place / "report/report.json").exists()
    ]
