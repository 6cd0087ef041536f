"""Unfinished work of a stage, which a later run on the same inputs goes on with.

Each folder notes the partition or deployment that it is for, and the process that works in it. So
it can be removed once its stage is done, or once the stage starts on other inputs, as after an
edit. Without this, every edit would leave the weights and the optimizer state of a training run.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from policyalign_assets.files import Location, has_ended, process_name, scratch_folder, write_whole
from policyalign_assets.policy import PolicyDocument

NOTE = "owner.json"
Owner: TypeAlias = PolicyDocument | str  # the policy of a partition, or the name of a deployment


def work_folder(data: Location, stage: str, made_from: Mapping[str, Any]) -> Path:
    """Return the folder for unfinished work of `stage` on exactly these inputs."""
    digest = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
    return _stage_folder(data, stage) / digest[:16]


def claim(folder: Path, owner: Owner) -> None:
    """Note that this process works in `folder`, for `owner`.

    Work of ended processes for the same owner on other inputs is removed: a newer
    policy or newer settings have replaced it.
    """
    for other in _abandoned(folder.parent, owner):
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)
    note = {"owner": _name(owner), "process": process_name(os.getpid())}
    write_whole(folder / NOTE, json.dumps(note).encode())


def remove_done(data: Location, stage: str, owner: Owner) -> None:
    """Remove unfinished work of `stage`, whose result is now in a report.

    Neither the stage nor the next one does this itself. `policyalign align` makes all stages in one
    run: if that is stopped before the report is there, the next one goes through all of them again,
    and finds what each has done.
    """
    for folder in _abandoned(_stage_folder(data, stage), owner):
        shutil.rmtree(folder, ignore_errors=True)


def _stage_folder(data: Location, stage: str) -> Path:
    return scratch_folder(data) / "unfinished" / stage


def _name(owner: Owner) -> str:
    if isinstance(owner, PolicyDocument):
        return f"{owner.domain}|{owner.policy_id}"
    return f"deployment {owner}"


def _abandoned(stage_folder: Path, owner: Owner) -> Iterator[Path]:
    """Folders for this owner in which no process works any more."""
    for note in sorted(stage_folder.glob(f"*/{NOTE}")):
        try:
            noted = json.loads(note.read_text())
            if noted["owner"] == _name(owner) and has_ended(noted["process"]):
                yield note.parent
        except (OSError, ValueError, TypeError, KeyError):
            continue  # it has just been removed, or somebody else wrote it
