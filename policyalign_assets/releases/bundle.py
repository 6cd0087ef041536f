"""Writes a bundle: one folder that holds a checkpoint and everything that speaks for it.

release.json            what it is: target, checkpoint, base model, policies, waivers, parent
adapter/ or model/      the weights, as transformers and PEFT load them
training/               the checkpoint's record, with the repeats of its training
settings.json           the settings of the run
deployment.json         of a deployment: the verdict over its policies, and their conflicts
manifest.json           the SHA-256 of every file
bundle.sig              the signature over all of it

For its policy, and in a deployment for each policy in `policies/<policy>/`:

policy/policy.json      the policy as typed rules; policy/policy.txt, as the model read it
report/                 the report and its tables
answers/                every answer of every arm, and the verdicts: the gates follow from them
statements/<gate>.json  an in-toto statement a gate
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from policyalign_assets.policy import PolicyDocument
from policyalign_assets.records import Checkpoint
from policyalign_assets.releases.adapter_config import complete
from policyalign_assets.releases.answers import CHECKPOINT, POLICY, SETTINGS, Answers, write_answers
from policyalign_assets.releases.errors import ReleaseError
from policyalign_assets.releases.keys import load_private_key
from policyalign_assets.releases.ledger import Ledger
from policyalign_assets.releases.manifest import describe, file_digest, write_manifest
from policyalign_assets.releases.record import (
    OVERVIEW,
    RECORD,
    WEIGHTS,
    BaseModel,
    PolicyRecord,
    ReleaseRecord,
    is_deployment,
    policy_folder,
)
from policyalign_assets.releases.signing import sign_bundle
from policyalign_assets.releases.statements import gate_statement


@dataclass(frozen=True)
class PolicyEvidence:
    """What speaks for a checkpoint under one policy.

    gates: the gate results, computed from the cases just now. waivers: who waived which, and why.
    """

    policy: PolicyDocument
    report_folder: Path
    answers: Answers
    gates: Sequence[Mapping[str, Any]]
    waivers: Mapping[str, Mapping[str, str]]

    @property
    def blocking_failures(self) -> list[str]:
        """Gates that block, did not pass (or were not measured) and are not waived."""
        return [
            str(gate["gate"])
            for gate in self.gates
            if gate["blocking"] and gate["passed"] is not True and gate["gate"] not in self.waivers
        ]


@dataclass(frozen=True)
class Evidence:
    """What a bundle is made from. `overview`: of a deployment, what its `deployment.json` says."""

    target: str
    checkpoint: Checkpoint
    checkpoint_folder: Path
    base: BaseModel
    policies: Sequence[PolicyEvidence]
    settings: Mapping[str, Any]
    code_version: str
    created_at: str
    overview: Mapping[str, Any] | None = None


def write_bundle(evidence: Evidence, releases: Path, private_key: Path, author: str) -> Path:
    """Writes and signs a bundle below `releases`, and drafts it in the ledger. Returns its folder.

    Raises ReleaseError if a blocking gate failed without a waiver, a waiver names nobody or no
    reason, or the evidence does not belong together.
    """
    _refuse(evidence)
    key = load_private_key(private_key)
    ledger = Ledger(releases / "ledger.jsonl")
    parent = ledger.current(evidence.target)
    releases.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=releases, prefix=".unfinished.") as name:
        folder = Path(name) / "bundle"
        folder.mkdir()
        _fill(evidence, folder, parent)
        bundle_id = write_manifest(folder)
        sign_bundle(folder, private_key)
        final = releases / bundle_id[:16]
        if final.exists():
            raise ReleaseError(f"{final} holds this bundle already. Nothing was written.")
        folder.rename(final)
    ledger.append("drafted", bundle_id, evidence.target, author, key)
    return final


def _refuse(evidence: Evidence) -> None:
    if is_deployment(evidence.target) != (evidence.overview is not None):
        raise ReleaseError(
            f"{evidence.target} has {'a' if evidence.overview else 'no'} {OVERVIEW}. "
            "Fix: materialize deployment_report."
        )
    for one in evidence.policies:
        _refuse_policy(evidence, one)
    trained = evidence.checkpoint.provenance.get("policies")
    released = {f"{one.policy.domain}|{one.policy.policy_id}" for one in evidence.policies}
    if trained is not None and set(trained) != released:
        raise ReleaseError(
            f"The checkpoint was trained for {', '.join(sorted(trained))}, and the release is for "
            f"{', '.join(sorted(released))}. Fix: release all of its policies."
        )


def _refuse_policy(evidence: Evidence, one: PolicyEvidence) -> None:
    under = f" under {one.policy.policy_id}" if is_deployment(evidence.target) else ""
    if failed := one.blocking_failures:
        sentences = [str(g["sentence"]) for g in one.gates if g["gate"] in failed]
        raise ReleaseError(
            f"{evidence.target} is not releasable{under}: {', '.join(failed)}. "
            f"{' '.join(sentences)} "
            "Fix: what the report says of these gates, or waive one with a name and a reason."
        )
    if not one.gates:
        raise ReleaseError(
            f"{evidence.target} has no gate results{under}. Fix: materialize the report again."
        )
    known = {g["gate"] for g in one.gates}
    for gate, waiver in one.waivers.items():
        if gate not in known:
            raise ReleaseError(f"{gate!r} is no gate. Fix: one of {', '.join(sorted(known))}.")
        if not waiver.get("by", "").strip() or not waiver.get("why", "").strip():
            raise ReleaseError(f"The waiver of {gate!r} needs a name and a reason.")
    try:
        trained = evidence.checkpoint.under(f"{one.policy.domain}|{one.policy.policy_id}")
    except KeyError:
        raise ReleaseError(
            f"The checkpoint was not trained for {one.policy.policy_id}. "
            "Fix: materialize the deployment again."
        ) from None
    stated = trained.provenance.get("policy_hash")
    if stated != one.policy.content_hash:
        raise ReleaseError(
            f"The checkpoint was trained for policy version {str(stated)[:12]}{under}, and the "
            f"policy is at {one.policy.content_hash[:12]}. Fix: materialize it again."
        )


def _fill(evidence: Evidence, folder: Path, parent: str | None) -> None:
    checkpoint = evidence.checkpoint
    weights = folder / WEIGHTS[checkpoint.tuning]
    shutil.copytree(evidence.checkpoint_folder, weights, copy_function=shutil.copyfile)
    if checkpoint.tuning == "lora":
        complete(folder, checkpoint.model_id, checkpoint.model_revision)
    (folder / CHECKPOINT).parent.mkdir(exist_ok=True)
    _write_json(folder / CHECKPOINT, asdict(checkpoint))
    _write_json(folder / SETTINGS, evidence.settings)
    if evidence.overview is not None:
        _write_json(folder / OVERVIEW, evidence.overview)
    subjects = {
        f"{weights.name}/{name}": str(entry["sha256"]) for name, entry in describe(weights).items()
    }
    record = ReleaseRecord(
        target=evidence.target,
        checkpoint_id=checkpoint.checkpoint_id,
        tuning=checkpoint.tuning,
        base=evidence.base,
        domain=evidence.policies[0].policy.domain,
        policies=tuple(
            _fill_policy(
                one, folder / policy_folder(evidence.target, one.policy.policy_id), subjects
            )
            for one in evidence.policies
        ),
        code_version=evidence.code_version,
        created_at=evidence.created_at,
        parent=parent,
    )
    _write_json(folder / RECORD, asdict(record))
    for path in folder.rglob("*"):  # the server's user must be able to read an adapter
        path.chmod(0o755 if path.is_dir() else 0o644)


def _fill_policy(one: PolicyEvidence, folder: Path, subjects: Mapping[str, str]) -> PolicyRecord:
    """subjects: the SHA-256 of each file of the weights, which the statements speak of."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(one.report_folder, folder / "report", copy_function=shutil.copyfile)
    write_answers(one.answers, folder)
    (folder / POLICY).parent.mkdir()
    (folder / POLICY).write_bytes(TypeAdapter(PolicyDocument).dump_json(one.policy, indent=1))
    (folder / "policy/policy.txt").write_text(one.policy.prompt_text, encoding="utf-8")
    cases = file_digest(folder / "report/cases.parquet")
    (folder / "statements").mkdir()
    for gate in one.gates:
        statement = gate_statement(
            gate, subjects, {"cases.parquet": cases}, one.waivers.get(gate["gate"])
        )
        _write_json(folder / f"statements/{gate['gate']}.json", statement)
    waivers = {gate: dict(waiver) for gate, waiver in one.waivers.items()}
    return PolicyRecord(one.policy.policy_id, one.policy.content_hash, cases, waivers)


def _write_json(path: Path, value: object) -> None:
    text = json.dumps(value, indent=1, sort_keys=True, allow_nan=False, default=str)
    path.write_text(text + "\n", encoding="utf-8")
