"""Where reports lie: one folder per report that is never changed, and one pointer to the current.

    reports/<policy>/<domain>/<report id>/   the files of one report, with their release, if any
    reports/<policy>/<domain>/current.json   names the current one
    reports/<policy>/<domain>/index.html     all reports of the partition, newest first

A report id is the checkpoint's id and a hash of all that the report is made from. A folder appears
whole or not at all, so that pages and figures of two runs never mix.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from policyalign_assets.files import Location, new_directory, upload, write_whole

POINTER = "current.json"
RELEASE = "release.json"
LAST_FILE = "report.json"  # a store's folder without it is unfinished


def partition_folder(data: Location, domain: str, policy: str) -> Location:
    return data / "reports" / policy / domain


def report_id(checkpoint_id: str, made_from: object) -> str:
    """`made_from`: anything that JSON can hold, of which the report is a function."""
    text = json.dumps(made_from, sort_keys=True, default=str)
    return f"{checkpoint_id[:16]}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def publish(partition: Location, name: str, write: Callable[[Path], Any]) -> Location:
    """Lets `write` fill a folder, gives it its `name`, and makes it the current report.

    A finished folder of this name stays as it is: it was made from the same inputs.
    """
    folder = partition / name
    if not (folder / LAST_FILE).exists():
        if isinstance(folder, Path):
            with new_directory(folder) as aside:
                write(aside)
        else:
            with tempfile.TemporaryDirectory(prefix="policyalign.") as aside_name:
                write(Path(aside_name))
                upload(Path(aside_name), folder, last=LAST_FILE)
    write_whole(partition / POINTER, (json.dumps({"report": name}, indent=1) + "\n").encode())
    return folder


def current_report(data: Location, domain: str, policy: str) -> Location:
    """The folder of the current report.

    Raises FileNotFoundError, which names the missing file, where there is none.
    """
    partition = partition_folder(data, domain, policy)
    pointer = partition / POINTER
    try:
        name = json.loads(pointer.read_text(encoding="utf-8"))["report"]
    except FileNotFoundError:
        raise FileNotFoundError(2, "No such file or directory", str(pointer)) from None
    except (ValueError, KeyError, TypeError):
        name = ""
    if not isinstance(name, str) or not name or "/" in name or name.startswith("."):
        raise FileNotFoundError(2, "names no report", str(pointer))
    folder = partition / name
    if not (folder / LAST_FILE).exists():
        raise FileNotFoundError(2, "No such file or directory", str(folder / LAST_FILE))
    return folder


def all_reports(partition: Location) -> Iterator[Location]:
    """The folders of all finished reports of a partition, by name."""
    if not partition.is_dir():
        return
    folders: list[Location] = list(partition.iterdir())
    for folder in sorted(folders, key=str):
        if not folder.name.startswith(".") and (folder / LAST_FILE).exists():
            yield folder


def reported_partitions(data: Location) -> Iterator[tuple[str, str]]:
    """(domain, policy) of everything that has a folder of reports below `data`."""
    for policy in _folders(data / "reports"):
        for domain in _folders(policy):
            yield domain.name, policy.name


def _folders(above: Location) -> list[Location]:
    found: list[Location] = list(above.iterdir()) if above.is_dir() else []
    return sorted((f for f in found if f.is_dir() and not f.name.startswith(".")), key=str)


def withdraw_release(data: Location, domain: str, policy: str) -> None:
    """Deletes the partition's release. What lies beside each report stays, as evidence."""
    (partition_folder(data, domain, policy) / RELEASE).unlink(missing_ok=True)


def remove_release(data: Location, domain: str, policy: str) -> None:
    """Deletes the partition's release and that of its current report, whatever they say."""
    withdraw_release(data, domain, policy)
    try:
        (current_report(data, domain, policy) / RELEASE).unlink(missing_ok=True)
    except FileNotFoundError:
        return
