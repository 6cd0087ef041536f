"""Finds the report that somebody names: of a partition, of its history, or of a bundle."""

from __future__ import annotations

from pathlib import Path

from policyalign_assets.files import Location
from policyalign_assets.releases.errors import ReleaseError
from policyalign_assets.report.difference import Reported, read_reported
from policyalign_assets.report.folders import all_reports, current_report, partition_folder
from policyalign_assets.report.last_released import last_released
from policyalign_assets.runtime.results import split_partition

RELEASED = "released"


def find_report(name: str, data: Location) -> Reported:
    """The report that `name` means.

    name: a folder (a bundle or a report), `domain|policy` (its current report),
    `domain|policy@released` (its last released one), or `domain|policy@ID`, where ID begins the
    name of a report in its history or of a bundle.
    Raises ReleaseError, NoResult or NotAReport; each says what to do.
    """
    folder = Path(name)
    if "|" not in name:
        if (folder / "report" / "report.json").is_file():
            return read_reported(folder / "report", f"bundle {folder.name}")
        if (folder / "report.json").is_file():
            return read_reported(folder, f"report {folder.name}")
        raise ReleaseError(
            f"{name!r} is neither a bundle nor the folder of a report. Fix: name one, or a "
            "partition such as 'medical|general-conduct', with @released or @ID for an older one."
        )
    partition, _, which = name.partition("@")
    domain, policy = split_partition(partition)
    return read_reported(_of_partition(data, domain, policy, which), name)


def _of_partition(data: Location, domain: str, policy: str, which: str) -> Location:
    reports = list(all_reports(partition_folder(data, domain, policy)))
    if not which:
        try:
            return current_report(data, domain, policy)
        except FileNotFoundError as error:
            raise ReleaseError(
                f"There is no report of '{domain}|{policy}' ({error.filename} is missing). "
                f"Fix: policyalign align '{domain}|{policy}'."
            ) from None
    if which == RELEASED:
        released = last_released(data, domain, policy)
        if released is None:
            raise ReleaseError(
                f"Nothing of '{domain}|{policy}' was released yet. "
                "Fix: compare with another report of its history, as @ID."
            )
        return released[0]
    bundles = [b / "report" for b in _bundles(data, which)]
    found = [r for r in reports if r.name.startswith(which)] + bundles
    if len(found) != 1:
        known = ", ".join(sorted(r.name for r in reports)) or "none"
        raise ReleaseError(
            f"{which!r} begins the name of {len(found)} reports of '{domain}|{policy}'. "
            f"Fix: the reports are {known}."
        )
    return found[0]


def _bundles(data: Location, which: str) -> list[Location]:
    releases = data / "releases"
    if not releases.is_dir():
        return []
    folders: list[Location] = list(releases.iterdir())
    return [
        b
        for b in sorted(folders, key=str)
        if b.name.startswith(which) and (b / "report/report.json").exists()
    ]
