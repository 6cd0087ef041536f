"""What follows from the ledger: which report the next one is compared with."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from policyalign_assets.releases.ledger import Ledger
from policyalign_assets.releases.manifest import MANIFEST
from policyalign_assets.releases.record import (
    bundle_id,
    is_deployment,
    policy_folder,
    read_record,
)
from policyalign_assets.report.folders import reported_partitions
from policyalign_assets.report.last_released import point_to
from policyalign_assets.runtime.results import deployment_folder, split_partition


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
    """Lets the next report on each policy be compared with that of the target's current bundle.

    Where the releases do not lie in a data folder with reports, as on a server, nothing is written.
    """
    data, bundle = releases.parent, current_bundle(releases, target)
    held = {}
    if bundle is not None:
        record = read_record(bundle)
        for policy in record.policies:
            place = f"{releases.name}/{bundle.name}/{policy_folder(target, policy.policy_id)}"
            held[record.domain, policy.policy_id] = str(PurePosixPath(place) / "report")
    if not is_deployment(target):
        domain, policy_id = split_partition(target)
        point_to(data, domain, policy_id, held.get((domain, policy_id)))
        return
    results = deployment_folder(data, target)
    for domain, policy_id in reported_partitions(results):
        point_to(results, domain, policy_id, held.get((domain, policy_id)))
