"""Finds the report that a new one is compared with: the last released one of its partition.

`released.json` beside the reports names the report of the bundle that the ledger calls current. A
partition without bundles has the report that passed the release checks last. The last report itself
remembers which one that was, since a new report withdraws the release of the one before.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from policyalign_assets.files import Location, write_whole
from policyalign_assets.report.folders import (
    LAST_FILE,
    RELEASE,
    current_report,
    partition_folder,
)

POINTER = "released.json"


def last_released(
    data: Location, domain: str, policy: str, bundles: Location | None = None
) -> tuple[Location, str] | None:
    """The folder of the report, and its name relative to `data`; None if there is none.

    bundles: the folder above `releases/`, if it is another one, as for a deployment.
    Call it before the partition's release is removed.
    """
    for name in _names(data, domain, policy):
        if _is_safe(name):
            above = (bundles or data) if name.startswith("releases/") else data
            if (above / name / LAST_FILE).exists():
                return above / name, name
    return None


def point_to(data: Location, domain: str, policy: str, report: str | None) -> None:
    """Says which report is the released one, by its name relative to `data`; None for no one."""
    partition = partition_folder(data, domain, policy)
    if partition.is_dir():
        text = json.dumps({"report": report}, indent=1) + "\n"
        write_whole(partition / POINTER, text.encode())


def _names(data: Location, domain: str, policy: str) -> Iterator[str]:
    partition = partition_folder(data, domain, policy)
    reports = f"reports/{policy}/{domain}"
    pointed = _json(partition / POINTER).get("report")
    if isinstance(pointed, str):
        yield pointed
    passed = _json(partition / RELEASE).get("report")
    if isinstance(passed, str):
        yield f"{reports}/{passed}"
    try:
        last = _json(current_report(data, domain, policy) / LAST_FILE)
    except FileNotFoundError:
        return
    difference = last.get("difference")
    if isinstance(difference, dict) and isinstance(difference.get("before"), str):
        yield difference["before"]


def _is_safe(name: str) -> bool:
    path = PurePosixPath(name)
    return (
        not path.is_absolute()
        and ".." not in path.parts
        and path.parts[:1]
        in (
            ("reports",),
            ("releases",),
        )
    )


def _json(file: Location) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
