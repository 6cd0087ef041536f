"""Verifies a bundle without a network or the project's settings, and says what it checked."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from policyalign_assets.files import sha256_files
from policyalign_assets.releases import adapter_config, answers, approvers
from policyalign_assets.releases.errors import ReleaseError
from policyalign_assets.releases.keys import key_id, load_public_key
from policyalign_assets.releases.ledger import Entry, Ledger, faults
from policyalign_assets.releases.manifest import file_digest, manifest_faults
from policyalign_assets.releases.record import (
    OVERVIEW,
    WEIGHTS,
    PolicyRecord,
    ReleaseRecord,
    bundle_id,
    read_record,
)
from policyalign_assets.releases.signing import signature_fault
from policyalign_assets.releases.statements import gates_of
from policyalign_assets.report.context import code_version


@dataclass(frozen=True)
class Check:
    """One thing that was checked. `passed` is None if it could not be; `detail` says why."""

    name: str
    passed: bool | None
    detail: str


def verify(
    bundle: Path, public_keys: list[Path], base: Path | None = None, ledger: Path | None = None
) -> list[Check]:
    """Checks everything that a bundle claims. It may be used only if every check passed.

    public_keys: keys that are trusted, got from elsewhere than the bundle. base: the folder of the
    base model, to compare its digest. ledger: by default `ledger.jsonl` beside the bundle.
    Raises ReleaseError if the folder is no bundle or no key is given.
    """
    if not public_keys:
        raise ReleaseError(
            "No trusted key is given, so a signature proves nothing. "
            "Fix: name the public key of your release team with --key FILE.pub."
        )
    record = read_record(bundle)
    keys = {key_id(key): key for key in map(load_public_key, public_keys)}
    checks = [
        Check("files", *_outcome(manifest_faults(bundle), "every file is as the manifest says")),
        Check("signature", *_guarded(lambda: _signature(bundle, public_keys))),
        Check("weights", *_guarded(lambda: _weights(bundle, record))),
        Check("base model", *_guarded(lambda: _base(bundle, record, base))),
        *_checks_of_policies(bundle, record),
    ]
    return [
        *checks,
        *_ledger_checks(bundle, record, ledger or bundle.parent / "ledger.jsonl", keys),
    ]


def trusted(checks: list[Check]) -> bool:
    """Whether the bundle may be used: what could not be checked has not passed."""
    return all(check.passed is True for check in checks)


def require_trusted(bundle: Path, public_keys: list[Path], base: Path | None = None) -> None:
    """Raises ReleaseError, which names every failed check, unless the bundle may be used."""
    checks = verify(bundle, public_keys, base)
    if not trusted(checks):
        failed = "; ".join(f"{c.name}: {c.detail}" for c in checks if c.passed is not True)
        raise ReleaseError(f"The bundle is not used, because it is not verified. {failed}")


def _outcome(found: list[str], fine: str) -> tuple[bool, str]:
    return not found, "; ".join(found) or fine


def _signature(bundle: Path, public_keys: list[Path]) -> tuple[bool, str]:
    found = {key.name: signature_fault(bundle, key) for key in public_keys}
    holding = [name for name, fault in found.items() if fault is None]
    return bool(holding), (
        f"signed with the trusted key {holding[0]}"
        if holding
        else "; ".join(fault for fault in found.values() if fault)
    )


def _weights(bundle: Path, record: ReleaseRecord) -> tuple[bool, str]:
    folder = bundle / WEIGHTS.get(record.tuning, "adapter")
    if record.tuning == "lora":
        if wrong := adapter_config.fault(bundle, record.base.model_id, record.base.revision):
            return False, wrong
        found = adapter_config.adapter_digest(bundle)
    else:
        found = sha256_files(folder, but=("training.parquet", "checkpoint.json"))
    same = found[:16] == record.checkpoint_id
    return same, (
        f"the weights are those of checkpoint {record.checkpoint_id}"
        if same
        else f"the weights are not those of checkpoint {record.checkpoint_id}"
    )


def _base(bundle: Path, record: ReleaseRecord, base: Path | None) -> tuple[bool | None, str]:
    stated = _json(bundle / WEIGHTS.get(record.tuning, "adapter") / "checkpoint.json")
    named = (stated.get("model_id"), stated.get("model_revision"))
    if named != (record.base.model_id, record.base.revision):
        return False, (
            f"the checkpoint was trained on {named[0]} at {named[1]}, "
            f"and the release names {record.base.model_id} at {record.base.revision}"
        )
    name = f"{record.base.model_id} at revision {record.base.revision}"
    if base is None:
        return True, f"{name}; its files were not compared (give them with --base)"
    if record.base.sha256 is None:
        return None, f"{name}; the release holds no digest of its files"
    same = sha256_files(base) == record.base.sha256
    return same, f"the files in {base} are {'' if same else 'not '}those of {name}"


def _checks_of_policies(bundle: Path, record: ReleaseRecord) -> Iterator[Check]:
    """What is checked for each policy. In a deployment the name of the check names the policy."""
    if record.of_deployment:
        yield Check("policies", *_guarded(lambda: _policies(bundle, record)))
    for policy in record.policies:
        for name, check in _CHECKS_OF_A_POLICY.items():
            yield Check(
                name + record.under(policy),
                *_guarded(lambda check=check, policy=policy: check(bundle, record, policy)),  # type: ignore[misc]
            )


def _policies(bundle: Path, record: ReleaseRecord) -> tuple[bool, str]:
    """Whether the release is for all policies that the deployment was trained for, no other."""
    trained = list(answers.stored_checkpoint(bundle).provenance["policies"])
    stated = [record.partition(policy) for policy in record.policies]
    if set(trained) != set(stated):
        return False, (
            f"the checkpoint was trained for {', '.join(trained)}, and the release names "
            f"{', '.join(stated)}"
        )
    overview = _json(bundle / OVERVIEW)
    judged = [policy.get("policy") for policy in overview["policies"]]
    about = (overview["deployment"], overview["checkpoint"], judged)
    wanted = (record.target, record.checkpoint_id, [p.policy_id for p in record.policies])
    if about != wanted:
        return False, f"{OVERVIEW} speaks of another deployment, checkpoint or set of policies"
    return True, f"the deployment {record.target} of {', '.join(p for p in judged)}"


def _policy(bundle: Path, record: ReleaseRecord, of: PolicyRecord) -> tuple[bool, str]:
    place = record.place(bundle, of)
    policy = answers.stored_policy(place)
    trained = _json(bundle / WEIGHTS.get(record.tuning, "adapter") / "checkpoint.json")
    provenance = trained.get("provenance", {})
    if record.of_deployment:
        provenance = provenance["policies"][record.partition(of)]
    hashes = {
        "policy.json": policy.content_hash,
        "release.json": of.policy_hash,
        "the checkpoint": provenance.get("policy_hash"),
    }
    if len(set(hashes.values())) > 1:
        said = ", ".join(f"{where} {str(value)[:12]}" for where, value in hashes.items())
        return False, f"the policy's version differs: {said}"
    if (policy.policy_id, policy.domain) != (of.policy_id, record.domain):
        return False, f"policy.json is {policy.policy_id} ({policy.domain})"
    if policy.prompt_text != (place / "policy/policy.txt").read_text(encoding="utf-8"):
        return False, "policy.txt is not the text of policy.json"
    return True, f"policy {of.policy_id} ({record.domain}), version {of.policy_hash[:12]}"


def _cases(bundle: Path, record: ReleaseRecord, of: PolicyRecord) -> tuple[bool, str]:
    found = file_digest(record.place(bundle, of) / "report/cases.parquet")
    same = found == of.cases_sha256
    return same, (
        f"the cases are the ones that were gated ({found[:12]})"
        if same
        else f"cases.parquet is {found[:12]}, and the gates were computed from "
        f"{of.cases_sha256[:12]}"
    )


def _gates(bundle: Path, record: ReleaseRecord, of: PolicyRecord) -> tuple[bool, str]:
    statements = _statements(record.place(bundle, of))
    if not statements:
        return False, "there is no statement of any gate"
    faults_found, waived = [], []
    for statement in statements:
        predicate = statement.get("predicate", {})
        gate = predicate.get("metric")
        digests = [d["digest"]["sha256"] for d in predicate.get("datasets", [])]
        if digests != [of.cases_sha256]:
            faults_found.append(f"{gate} speaks of other cases")
        for subject in statement.get("subject", []):
            path = bundle / WEIGHTS.get(record.tuning, "adapter") / Path(subject["name"]).name
            if not path.is_file() or file_digest(path) != subject["digest"]["sha256"]:
                faults_found.append(f"{gate} speaks of other weights ({path.name})")
        if predicate.get("passed") is not True and predicate.get("blocking") is not False:
            if gate in of.waivers and predicate.get("waiver") == of.waivers[gate]:
                waiver = of.waivers[gate]
                waived.append(f"{gate}, by {waiver.get('by')}: {waiver.get('why')}")
            else:
                faults_found.append(f"{gate} did not pass and is not waived")
    if faults_found:
        return False, "; ".join(faults_found)
    said = f"{len(statements)} gates, computed from the cases in this bundle"
    return True, said + (f"; RELEASED WITH WAIVERS: {'; '.join(waived)}" if waived else "")


def _statements(place: Path) -> list[dict[str, Any]]:
    return [_json(path) for path in sorted((place / "statements").glob("*.json"))]


def _gates_again(bundle: Path, record: ReleaseRecord, of: PolicyRecord) -> tuple[bool | None, str]:
    """The gates from the answers, with the bundle's own bars: no summary is trusted."""
    if record.format < 2:
        return None, "the bundle holds no answers (format 1). Fix: release the partition again"
    place = record.place(bundle, of)
    found = answers.judged(place, record.checkpoint_id)
    if not answers.same_cases(place, found):
        return False, "the report's cases are not the judged answers"
    checkpoint = answers.stored_checkpoint(bundle)
    if checkpoint.checkpoint_id != record.checkpoint_id:
        return False, f"{answers.CHECKPOINT} is the record of another checkpoint"
    results = answers.gates_again(
        place, checkpoint.under(record.partition(of)), found, answers.stored_settings(bundle)
    )
    stated = gates_of(_statements(place))
    same_code = record.code_version == code_version()
    wrong = answers.differing_gates(stated, results, same_code)
    note = "" if same_code else "; another version of the code, so only outcomes were compared"
    return _outcome(
        wrong, f"{len(results)} gates from {found.heldout.num_rows} judged answers{note}"
    )


def _report(bundle: Path, record: ReleaseRecord, of: PolicyRecord) -> tuple[bool, str]:
    header = _json(record.place(bundle, of) / "report/report.json").get("header", {})
    pairs = {
        "checkpoint_id": record.checkpoint_id,
        "policy_hash": of.policy_hash,
        "model_id": record.base.model_id,
        "model_revision": record.base.revision,
    }
    wrong = [name for name, value in pairs.items() if header.get(name) != value]
    return _outcome(
        [f"the report's {name} is {header.get(name)!r}" for name in wrong],
        "the report speaks of this checkpoint, policy and base model",
    )


_CHECKS_OF_A_POLICY: dict[
    str, Callable[[Path, ReleaseRecord, PolicyRecord], tuple[bool | None, str]]
] = {
    "policy": _policy,
    "cases": _cases,
    "gates": _gates,
    "gates computed again": _gates_again,
    "report": _report,
}


def _ledger_checks(
    bundle: Path, record: ReleaseRecord, path: Path, keys: dict[str, ec.EllipticCurvePublicKey]
) -> Iterator[Check]:
    if not path.exists():
        yield Check("ledger", None, f"{path.name} is not beside the bundle: approval is not proved")
        return
    ledger = Ledger(path)
    try:
        entries = ledger.entries()
    except ReleaseError as error:
        yield Check("ledger", False, str(error))
        return
    found = faults(entries, keys) + ledger.head_faults(keys)
    yield Check("ledger", *_outcome(found, f"{len(entries)} signed lines, each after the last"))
    mine = [e for e in entries if e.bundle_id == bundle_id(bundle)]
    yield Check("approval", *_guarded(lambda: _approval(bundle, mine, record)))
    yield Check("not revoked", *_revocation(mine))


def _approval(bundle: Path, mine: list[Entry], record: ReleaseRecord) -> tuple[bool, str]:
    by = {entry.event: entry for entry in mine}
    if "drafted" not in by:
        return False, "the ledger does not know this bundle"
    if any(entry.target != record.target for entry in mine):
        return False, f"the ledger knows this bundle for another target than {record.target}"
    missing = [event for event in ("approved", "released") if event not in by]
    if missing:
        return False, f"the bundle is not {' and not '.join(missing)} yet"
    approved = by["approved"]
    if why := approvers.refusal(bundle, approved.actor, approved.key_id):
        return False, why
    detail = f"drafted by {by['drafted'].actor}, approved by {approved.actor}, {approved.time}"
    unnamed = [a.where for a in approvers.approvers_of(bundle) if not a.named]
    return True, detail + (f"; under {', '.join(unnamed)} {approvers.NOBODY}" if unnamed else "")


def _revocation(mine: list[Entry]) -> tuple[bool, str]:
    revoked = [entry for entry in mine if entry.event == "revoked"]
    if not revoked:
        return True, "no revocation in the ledger"
    return False, f"revoked by {revoked[-1].actor}, {revoked[-1].time}: {revoked[-1].reason}"


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _guarded(check: Callable[[], tuple[bool | None, str]]) -> tuple[bool | None, str]:
    """The outcome of a check; damaged data that makes it raise is a failed check, never a crash."""
    try:
        return check()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return False, f"cannot be read: {type(error).__name__}: {str(error).splitlines()[0]}"
