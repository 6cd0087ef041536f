"""Writes a bundle: one folder that holds a checkpoint and everything that speaks for it.

release.json            what it is: target, checkpoint, base model, policy, waivers, parent
adapter/ or model/      the weights, as transformers and PEFT load them
training/               the checkpoint's record, with the repeats of its training
policy/policy.json      the policy as typed rules; policy/policy.txt, as the model read it
report/                 the report and its tables
answers/                every answer of every arm, and the verdicts: the gates follow from them
settings.json           the settings of the run
statements/<gate>.json  an in-toto statement a gate
manifest.json           the SHA-256 of every file
bundle.sig              the signature over all of it
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from policyalign_assets.policy import PolicyDocument
from policyalign_assets.records import Checkpoint
from policyalign_assets.releases.adapter_config import complete
from policyalign_assets.releases.answers import CHECKPOINT, Answers, write_answers
from policyalign_assets.releases.errors import ReleaseError
from policyalign_assets.releases.keys import load_private_key
from policyalign_assets.releases.ledger import Ledger
from policyalign_assets.releases.manifest import MANIFEST, describe, file_digest, write_manifest
from policyalign_assets.releases.signing import sign_bundle
from policyalign_assets.releases.statements import gate_statement

FORMAT = 2  # 1 held no answers, so that its gates cannot be computed again
RECORD, POLICY, SETTINGS = "release.json", "policy/policy.json", "settings.json"
WEIGHTS = {"lora": "adapter", "full": "model"}


@dataclass(frozen=True)
class BaseModel:
    """The model below an adapter. `sha256`: of its files, or None if they were not hashed."""

    model_id: str
    revision: str
    sha256: str | None


@dataclass(frozen=True)
class ReleaseRecord:
    """What a bundle says of itself. `waivers`: {gate: {"by": who, "why": reason}}."""

    target: str
    checkpoint_id: str
    tuning: str
    base: BaseModel
    policy_id: str
    domain: str
    policy_hash: str
    cases_sha256: str
    code_version: str
    created_at: str
    waivers: dict[str, dict[str, str]] = field(default_factory=dict)
    parent: str | None = None
    format: int = FORMAT


@dataclass(frozen=True)
class Evidence:
    """What a bundle is made from. `gates`: the gate results, computed from the cases just now."""

    target: str
    checkpoint: Checkpoint
    checkpoint_folder: Path
    base: BaseModel
    policy: PolicyDocument
    report_folder: Path
    answers: Answers
    gates: Sequence[Mapping[str, Any]]
    waivers: Mapping[str, Mapping[str, str]]
    settings: Mapping[str, Any]
    code_version: str
    created_at: str


def blocking_failures(evidence: Evidence) -> list[str]:
    """Gates that block, did not pass and are not waived. What was not measured has not passed."""
    return [
        str(gate["gate"])
        for gate in evidence.gates
        if gate["blocking"] and gate["passed"] is not True and gate["gate"] not in evidence.waivers
    ]


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


def read_record(folder: Path) -> ReleaseRecord:
    """Raises ReleaseError if `folder` holds no readable `release.json`."""
    try:
        return TypeAdapter(ReleaseRecord).validate_json((folder / RECORD).read_bytes())
    except (OSError, ValueError) as error:
        raise ReleaseError(
            f"{folder} is no bundle: {RECORD} cannot be read ({str(error).splitlines()[0]}). "
            "Fix: name the folder that `policyalign release` wrote."
        ) from None


def bundle_id(folder: Path) -> str:
    """The SHA-256 of the bundle's manifest."""
    return file_digest(folder / MANIFEST)


def _refuse(evidence: Evidence) -> None:
    if failed := blocking_failures(evidence):
        sentences = [str(g["sentence"]) for g in evidence.gates if g["gate"] in failed]
        raise ReleaseError(
            f"{evidence.target} is not releasable: {', '.join(failed)}. {' '.join(sentences)} "
            "Fix: what the report says of these gates, or waive one with a name and a reason."
        )
    if not evidence.gates:
        raise ReleaseError(
            f"{evidence.target} has no gate results. Fix: materialize benchmark_report."
        )
    known = {g["gate"] for g in evidence.gates}
    for gate, waiver in evidence.waivers.items():
        if gate not in known:
            raise ReleaseError(f"{gate!r} is no gate. Fix: one of {', '.join(sorted(known))}.")
        if not waiver.get("by", "").strip() or not waiver.get("why", "").strip():
            raise ReleaseError(f"The waiver of {gate!r} needs a name and a reason.")
    stated = evidence.checkpoint.provenance.get("policy_hash")
    if stated != evidence.policy.content_hash:
        raise ReleaseError(
            f"The checkpoint was trained for policy version {str(stated)[:12]}, and the policy is "
            f"at {evidence.policy.content_hash[:12]}. Fix: materialize the partition again."
        )


def _fill(evidence: Evidence, folder: Path, parent: str | None) -> None:
    checkpoint = evidence.checkpoint
    weights = folder / WEIGHTS[checkpoint.tuning]
    shutil.copytree(evidence.checkpoint_folder, weights, copy_function=shutil.copyfile)
    if checkpoint.tuning == "lora":
        complete(folder, checkpoint.model_id, checkpoint.model_revision)
    shutil.copytree(evidence.report_folder, folder / "report", copy_function=shutil.copyfile)
    write_answers(evidence.answers, folder)
    (folder / CHECKPOINT).parent.mkdir(exist_ok=True)
    _write_json(folder / CHECKPOINT, asdict(checkpoint))
    (folder / "policy").mkdir()
    (folder / POLICY).write_bytes(TypeAdapter(PolicyDocument).dump_json(evidence.policy, indent=1))
    (folder / "policy/policy.txt").write_text(evidence.policy.prompt_text, encoding="utf-8")
    _write_json(folder / SETTINGS, evidence.settings)
    cases = file_digest(folder / "report/cases.parquet")
    record = ReleaseRecord(
        target=evidence.target,
        checkpoint_id=checkpoint.checkpoint_id,
        tuning=checkpoint.tuning,
        base=evidence.base,
        policy_id=evidence.policy.policy_id,
        domain=evidence.policy.domain,
        policy_hash=evidence.policy.content_hash,
        cases_sha256=cases,
        code_version=evidence.code_version,
        created_at=evidence.created_at,
        waivers={gate: dict(waiver) for gate, waiver in evidence.waivers.items()},
        parent=parent,
    )
    _write_json(folder / RECORD, asdict(record))
    subjects = {
        f"{weights.name}/{name}": str(entry["sha256"]) for name, entry in describe(weights).items()
    }
    datasets = {"cases.parquet": cases}
    (folder / "statements").mkdir()
    for gate in evidence.gates:
        statement = gate_statement(gate, subjects, datasets, evidence.waivers.get(gate["gate"]))
        _write_json(folder / f"statements/{gate['gate']}.json", statement)
    for path in folder.rglob("*"):  # the server's user must be able to read an adapter
        path.chmod(0o755 if path.is_dir() else 0o644)


def _write_json(path: Path, value: object) -> None:
    text = json.dumps(value, indent=1, sort_keys=True, allow_nan=False, default=str)
    path.write_text(text + "\n", encoding="utf-8")
