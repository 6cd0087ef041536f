"""Finds the adapter from which training may go on after an edit: that of the last release.

Every "no" is a sentence, which the training's log, the checkpoint's provenance and the report say.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter, ValidationError

from policyalign_assets.distillation.warm_start import REQUESTS
from policyalign_assets.files import Location, sha256_table, write_whole
from policyalign_assets.policy import PolicyDocument
from policyalign_assets.records import Checkpoint
from policyalign_assets.report.changes import read_report
from policyalign_assets.report.folders import current_report
from policyalign_assets.settings import NO_EFFECT, DistillationSettings, Settings
from policyalign_assets.stages.interface import StageContext
from policyalign_assets.stages.last_release import last_release

OFF = "warm_start.enabled is off"
REQUESTS_FOLDER = "training_requests"
DEPLOYMENT_FILE = "deployment.json"
_ID = re.compile(r"[0-9a-f]{16}")
# Differences in these leave an adapter fit to go on from: those, and what has no effect on results.
_MAY_DIFFER = {"steps", "seed"} | {
    name
    for name, field in DistillationSettings.model_fields.items()
    if field.json_schema_extra == NO_EFFECT
}


class NoParent(Exception):
    """Training must start from the base model. The message says why, without a full stop."""


@dataclass(frozen=True)
class Parent:
    """The checkpoint to go on from, and the REQUESTS that it was trained on."""

    checkpoint: Checkpoint
    requests: pa.Table

    @property
    def ancestors(self) -> int:
        """Adapters that the checkpoint itself descends from."""
        return int((self.checkpoint.provenance.get("lineage") or {}).get("ancestors", 0))


def no_lineage(why: str) -> dict[str, Any]:
    """What the provenance of a checkpoint that was trained from the base model says of it."""
    return {"parent": None, "ancestors": 0, "why": why}


def started_from(checkpoint: Checkpoint) -> str:
    """In words: the parent and how training went on from it, or why it began with the base."""
    lineage = checkpoint.provenance.get("lineage") or {}
    why = str(lineage.get("why", "its record says nothing of a warm start"))
    if not lineage.get("parent"):
        return f"the base model: {why}"
    return f"checkpoint {lineage['parent']}: {why}"


def refuse_by_settings(settings: Settings) -> None:
    """Raises NoParent where the settings alone rule out a warm start."""
    distillation = settings.distillation
    if not settings.warm_start.enabled:
        raise NoParent(OFF)
    for bad, why in (
        (distillation.tuning != "lora", "distillation.tuning is not 'lora'"),
        (
            distillation.teacher != "frozen",
            "distillation.teacher is not 'frozen', so the teacher would start with the old rules",
        ),
        (distillation.seeds > 1, "distillation.seeds measures trainings from the base model"),
        (distillation.processes > 1, "distillation.processes is above 1"),
        (settings.model.engine != "transformers", "model.engine is not 'transformers'"),
    ):
        if bad:
            raise NoParent(why)


def parent_of_partition(
    context: StageContext, policy: PolicyDocument, made_from: Mapping[str, Any]
) -> Parent:
    """The last released checkpoint of the partition.

    made_from: the provenance of the checkpoint that is to be made. Raises NoParent.
    """
    refuse_by_settings(context.settings)
    _refuse_what_failed(context.results, policy)
    found = last_release(context, policy)
    report = read_report(found[0]) if found else None
    if report is None:
        raise NoParent("nothing was released yet")
    if report["header"].get("policy_hash") == policy.content_hash:
        raise NoParent("the last release has the same policy")
    return _usable(context, report["header"].get("checkpoint_id"), made_from)


def _refuse_what_failed(results: Location, policy: PolicyDocument) -> None:
    """Raises NoParent where the last report is on a warm start of this policy, and not releasable.

    A warm start that fails its gates is not tried again.
    """
    try:
        last = read_report(current_report(results, policy.domain, policy.policy_id))
    except FileNotFoundError:
        return
    if last is None or last["header"].get("policy_hash") != policy.content_hash:
        return
    parent = (last["header"].get("lineage") or {}).get("parent")
    if parent and not (last.get("verdict") or {}).get("releasable"):
        raise NoParent(f"the warm start from {parent} did not pass the release gates")


def parent_of_deployment(context: StageContext, made_from: Mapping[str, Any]) -> Parent:
    """The last checkpoint of the deployment that was releasable under each of its policies.

    Raises NoParent.
    """
    refuse_by_settings(context.settings)
    last = deployment_record(context.results)
    hashes = {key: about["policy_hash"] for key, about in made_from["policies"].items()}
    parent = (last.get("lineage") or {}).get("parent")
    if parent and not last.get("releasable") and last.get("policy_hashes") == hashes:
        raise NoParent(f"the warm start from {parent} did not pass the release gates")
    accepted = last.get("accepted")
    if not isinstance(accepted, dict):
        raise NoParent("no checkpoint of this deployment was releasable yet")
    if accepted.get("policy_hashes") == hashes:
        raise NoParent("the last releasable checkpoint has the same policies")
    return _usable(context, accepted.get("checkpoint"), made_from)


def deployment_record(folder: Location) -> dict[str, Any]:
    """What the last report of a deployment says; empty where there is none that can be read."""
    try:
        record = json.loads((folder / DEPLOYMENT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _usable(context: StageContext, checkpoint_id: object, made_from: Mapping[str, Any]) -> Parent:
    if not isinstance(checkpoint_id, str) or not _ID.fullmatch(checkpoint_id):
        raise NoParent("the last report names no checkpoint")
    said = f"checkpoint {checkpoint_id}, the last released one,"
    card = context.data / "checkpoints" / checkpoint_id / "checkpoint.json"
    try:
        checkpoint = TypeAdapter(Checkpoint).validate_json(card.read_bytes())
    except (OSError, ValidationError):
        raise NoParent(f"{said} is not in {context.data / 'checkpoints'} any more") from None
    made = checkpoint.provenance
    for name in ("model_id", "model_revision", "dtype"):
        if made.get(name) != made_from.get(name):
            raise NoParent(f"{said} was trained with another {name}")
    settings = [_lasting(provenance.get("settings", {})) for provenance in (made, made_from)]
    teachers = {_teacher(made), _teacher(made_from)} - {None}
    if settings[0] != settings[1] or len(teachers) > 1:
        raise NoParent(f"{said} was trained with other settings of distillation or deployment")
    parent = Parent(checkpoint, _requests(context.data, checkpoint, said))
    longest = context.settings.warm_start.longest_chain
    if parent.ancestors + 1 > longest:
        raise NoParent(
            f"{said} descends from {parent.ancestors} others, and warm_start.longest_chain is "
            f"{longest}"
        )
    return parent


def _teacher(provenance: Mapping[str, Any]) -> object:
    """Who taught several policies; None for one policy, which all kinds of teachers teach alike.

    A deployment of one policy can have the very checkpoint of that policy's partition. Its card
    then says what the first of the two wrote.
    """
    return provenance.get("teacher") if len(provenance.get("policies", ())) > 1 else None


def _lasting(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in _MAY_DIFFER}


def _requests(data: Location, checkpoint: Checkpoint, said: str) -> pa.Table:
    file = data / REQUESTS_FOLDER / f"{checkpoint.checkpoint_id}.parquet"
    try:
        table = pq.read_table(pa.BufferReader(file.read_bytes()), schema=REQUESTS)
    except (OSError, pa.ArrowException):
        raise NoParent(f"the requests that {said} was trained on were not kept") from None
    if sha256_table(table) != checkpoint.provenance.get("training_requests"):
        raise NoParent(f"the kept requests are not those that {said} was trained on")
    return table


def keep_requests(data: Location, checkpoint: Checkpoint, requests: pa.Table) -> None:
    """Keeps what a checkpoint was trained on, for those that go on from it.

    It does not lie in the checkpoint's folder, which is handed out: requests may be harmful.
    """
    sink = pa.BufferOutputStream()
    pq.write_table(requests, sink, compression="zstd")
    file = data / REQUESTS_FOLDER / f"{checkpoint.checkpoint_id}.parquet"
    write_whole(file, sink.getvalue().to_pybytes())
