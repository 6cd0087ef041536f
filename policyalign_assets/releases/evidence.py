"""Gathers what a bundle is made from. The gates decide anew: nothing is read from a summary."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from policyalign_assets.files import Location, sha256_files
from policyalign_assets.policy import PolicyDocument, parse_policy
from policyalign_assets.records import Checkpoint
from policyalign_assets.releases.answers import Answers
from policyalign_assets.releases.bundle import Evidence, PolicyEvidence
from policyalign_assets.releases.errors import ReleaseError
from policyalign_assets.releases.record import OVERVIEW, BaseModel, is_deployment
from policyalign_assets.report.chain import Chain
from policyalign_assets.report.context import code_version
from policyalign_assets.report.folders import current_report
from policyalign_assets.report.release import Decision, decide
from policyalign_assets.runtime.results import (
    NoResult,
    deployment_folder,
    stored_of_deployment,
    stored_record,
    stored_table,
)
from policyalign_assets.settings import Settings


def checkpoint_of(target: str, data: Location) -> Checkpoint:
    """The current checkpoint of a partition or deployment. Raises NoResult."""
    if is_deployment(target):
        return stored_of_deployment(data, "deployed_checkpoint", target, Checkpoint)
    return stored_record(data, "distilled_checkpoint", target, Checkpoint)


def gather(
    target: str,
    data: Location,
    settings: Settings,
    base: Path | None,
    policies_dir: Path | None = None,
) -> Evidence:
    """The evidence for the current checkpoint of a partition or deployment.

    base: the folder of the base model, whose digest then enters the bundle. policies_dir: the
    policies' files, which say who may approve now. Raises NoResult if a stage has no result yet,
    and ReleaseError if the gates or the chain of hashes do not hold.
    """
    if not isinstance(data, Path):
        raise ReleaseError(
            f"{data} is an object store, and bundles are made from a local folder. "
            "Fix: copy the data folder to this machine."
        )
    checkpoint = checkpoint_of(target, data)
    results, partitions, overview = data, [target], None
    if is_deployment(target):
        results = Path(str(deployment_folder(data, target)))
        partitions = list(checkpoint.provenance["policies"])
        overview = _overview(results, target, checkpoint)
    return Evidence(
        target=target,
        checkpoint=checkpoint,
        checkpoint_folder=data / checkpoint.path,
        base=BaseModel(
            checkpoint.model_id,
            checkpoint.model_revision,
            sha256_files(base) if base is not None else None,
        ),
        policies=[
            _with_approvers(_policy(p, target, data, results, checkpoint, settings), policies_dir)
            for p in partitions
        ],
        settings=settings.model_dump(mode="json"),
        code_version=code_version(),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        overview=overview,
    )


def _policy(
    partition: str,
    target: str,
    data: Path,
    results: Path,
    checkpoint: Checkpoint,
    settings: Settings,
) -> PolicyEvidence:
    """results: the folder with the answers and the report; of a deployment it is its own."""
    try:
        chain = Chain(
            stored_record(data, "policy_document", partition, PolicyDocument),
            stored_table(data, "violating_instructions", partition),
            stored_table(data, "filtered_instructions", partition),
            checkpoint.under(partition),
            stored_table(results, "generations", partition),
            stored_table(results, "judgements", partition),
        )
    except NoResult as error:
        if not is_deployment(target):
            raise
        what, _, _ = str(error).partition(" Fix: ")
        raise NoResult(
            f"{what} Fix: materialize deployment_report of the deployment {target!r} again."
        ) from None
    decision = decide(results, chain, settings.gates, data)
    if not decision.verdict.releasable:
        under = f"Under {chain.policy.policy_id}: " if is_deployment(target) else ""
        raise ReleaseError(
            under + " ".join([decision.verdict.line + ".", *decision.verdict.remedies])
        )
    report = current_report(results, chain.policy.domain, chain.policy.policy_id)
    return PolicyEvidence(
        policy=chain.policy,
        report_folder=Path(str(report)),
        answers=Answers(chain.generations, chain.judgements, data / "calibrations"),
        gates=[asdict(result) for result in decision.gates],
        waivers=_waivers(decision),
    )


def _with_approvers(evidence: PolicyEvidence, policies_dir: Path | None) -> PolicyEvidence:
    """With the approvers that the policy's file names now. Whether they are edited changes nothing
    that is trained, so no stage is made again for it. Raises PolicyError for a file with a mistake.
    """
    policy = evidence.policy
    if policies_dir is None or not (policies_dir / policy.policy_id).is_dir():
        return evidence
    named = parse_policy(policies_dir, policy.policy_id, policy.domain).approvers
    return replace(evidence, policy=replace(policy, approvers=named))


def _overview(folder: Path, target: str, checkpoint: Checkpoint) -> Mapping[str, Any]:
    """What the deployment's report says of all its policies. Raises ReleaseError."""
    file = folder / OVERVIEW
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        about = (found["deployment"], found["checkpoint"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ReleaseError(
            f"{file} is missing or cannot be read. Fix: materialize deployment_report of the "
            f"deployment {target!r} again."
        ) from None
    if about != (target, checkpoint.checkpoint_id):
        raise ReleaseError(
            f"{file} speaks of {about[0]}, checkpoint {about[1]}, and the current checkpoint is "
            f"{checkpoint.checkpoint_id}. Fix: materialize deployment_report of {target!r} again."
        )
    result: Mapping[str, Any] = found
    return result


def _waivers(decision: Decision) -> dict[str, dict[str, str]]:
    """Who waived which gate, and why, as the settings say."""
    people = [(a.who, a.why) for a in decision.verdict.allowances]
    who, why = people[0] if people else ("", "")
    return {
        result.gate: {"by": who, "why": why}
        for result in decision.gates
        if not result.blocking and result.passed is not True
    }
