"""What follows from the ledger: which report the next one is compared with."""

from __future__ import annotations

from pathlib import Path

from policyalign_assets.releases.bundle import bundle_id
from policyalign_assets.releases.ledger import Ledger
from policyalign_assets.releases.manifest import MANIFEST
from policyalign_assets.report.last_released import point_to
from policyalign_assets.runtime.results import split_partition


def current_bundle(releases: Path, target: str) -> Path | None:
    """The folder of the bundle to serve for a target, or None if nothing is released.

    A bundle that the ledger names and that is not in the folder counts as missing.
    """
    wanted = Ledger(releases / "ledger.jsonl").current(target)
    if wanted is None:
        return None
    folder = releases / wanted[:16]
    if (folder / MANIFEST).is_file() and bundle_id(folder) == wanted:
        return folder
    return None


def remember_released_report(releases: Path, target: str) -> None:
    """Lets the partition's next report be compared with that of its current bundle.

    Where the releases do not lie in a data folder with reports, as on a server, nothing is written.
    """
    domain, policy = split_partition(target)
    bundle = current_bundle(releases, target)
    name = f"{releases.name}/{bundle.name}/report" if bundle else None
    point_to(releases.parent, domain, policy, name)
