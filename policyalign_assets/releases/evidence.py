"""Gathers what a bundle is made from. The gates decide anew: nothing is read from a summary."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from policyalign_assets.files import Location, sha256_files
from policyalign_assets.policy import PolicyDocument
from policyalign_assets.records import Checkpoint
from policyalign_assets.releases.answers import Answers
from policyalign_assets.releases.bundle import BaseModel, Evidence
from policyalign_assets.releases.errors import ReleaseError
from policyalign_assets.report.chain import Chain
from policyalign_assets.report.context import code_version
from policyalign_assets.report.folders import current_report
from policyalign_assets.report.release import Decision, decide
from policyalign_assets.runtime.results import split_partition, stored_record, stored_table
from policyalign_assets.settings import Settings


def gather(partition: str, data: Location, settings: Settings, base: Path | None) -> Evidence:
    """The evidence for the current checkpoint of a partition.

    base: the folder of the base model, whose digest then enters the bundle. Raises NoResult if a
    stage has no result yet, and ReleaseError if the gates or the chain of hashes do not hold.
    """
    if not isinstance(data, Path):
        raise ReleaseError(
            f"{data} is an object store, and bundles are made from a local folder. "
            "Fix: copy the data folder to this machine."
        )
    domain, policy_id = split_partition(partition)
    chain = Chain(
        stored_record(data, "policy_document", partition, PolicyDocument),
        stored_table(data, "violating_instructions", partition),
        stored_table(data, "filtered_instructions", partition),
        stored_record(data, "distilled_checkpoint", partition, Checkpoint),
        stored_table(data, "generations", partition),
        stored_table(data, "judgements", partition),
    )
    decision = decide(data, chain, settings.gates)
    if not decision.verdict.releasable:
        raise ReleaseError(" ".join([decision.verdict.line + ".", *decision.verdict.remedies]))
    report = current_report(data, domain, policy_id)
    checkpoint = chain.checkpoint
    return Evidence(
        target=partition,
        checkpoint=checkpoint,
        checkpoint_folder=data / checkpoint.path,
        base=BaseModel(
            checkpoint.model_id,
            checkpoint.model_revision,
            sha256_files(base) if base is not None else None,
        ),
        policy=chain.policy,
        report_folder=Path(str(report)),
        answers=Answers(chain.generations, chain.judgements, data / "calibrations"),
        gates=[asdict(result) for result in decision.gates],
        waivers=_waivers(decision),
        settings=settings.model_dump(mode="json"),
        code_version=code_version(),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _waivers(decision: Decision) -> dict[str, dict[str, str]]:
    """Who waived which gate, and why, as the settings say."""
    people = [(a.who, a.why) for a in decision.verdict.allowances]
    who, why = people[0] if people else ("", "")
    return {
        result.gate: {"by": who, "why": why}
        for result in decision.gates
        if not result.blocking and result.passed is not True
    }
