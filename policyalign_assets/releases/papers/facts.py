"""What the papers say, read from a bundle once."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from policyalign_assets.policy import PolicyDocument
from policyalign_assets.releases import answers as kept
from policyalign_assets.releases.bundle import WEIGHTS, ReleaseRecord, bundle_id, read_record
from policyalign_assets.releases.ledger import Entry, Ledger
from policyalign_assets.releases.manifest import describe
from policyalign_assets.releases.statements import gates_of

_NAMESPACE = uuid.UUID("6f7a1b52-0f0d-5c8a-9d7e-2f4a6a1c9b10")
NOT_HELD = "Not held by this release. The provider has to supply it."


@dataclass(frozen=True)
class Facts:
    """gates: the statements' predicates, by gate. weights: digest of each file of the model.

    report: `report.json` of the bundle. events: what the ledger says of the bundle, oldest first.
    """

    record: ReleaseRecord
    bundle_id: str
    policy: PolicyDocument
    gates: dict[str, Mapping[str, Any]]
    settings: dict[str, Any]
    report: dict[str, Any]
    provenance: dict[str, Any]
    weights: dict[str, str]
    events: list[Entry]

    @property
    def header(self) -> dict[str, Any]:
        """Where the report says it comes from; empty for a report without it."""
        found = self.report.get("header", {})
        return found if isinstance(found, dict) else {}

    @property
    def time(self) -> datetime:
        return datetime.fromisoformat(self.record.created_at)

    @property
    def version(self) -> str:
        """The version of the papers: the beginning of the bundle's digest."""
        return self.bundle_id[:16]

    def id(self, *parts: str) -> str:
        """A UUID that is the same each time the same thing of this bundle is named."""
        return str(uuid.uuid5(_NAMESPACE, "/".join((self.bundle_id, *parts))))


def read_facts(bundle: Path) -> Facts:
    """Raises ReleaseError for a folder that is no bundle, and OSError for a damaged one."""
    record = read_record(bundle)
    identity = bundle_id(bundle)
    statements = [json.loads(f.read_bytes()) for f in sorted((bundle / "statements").glob("*"))]
    ledger = Ledger(bundle.absolute().parent / "ledger.jsonl")
    weights = bundle / WEIGHTS[record.tuning]
    return Facts(
        record,
        identity,
        kept.stored_policy(bundle),
        gates_of(statements),
        kept.stored_settings(bundle),
        json.loads((bundle / "report/report.json").read_bytes()),
        kept.stored_checkpoint(bundle).provenance,
        {name: str(entry["sha256"]) for name, entry in describe(weights).items()},
        [entry for entry in ledger.entries() if entry.bundle_id == identity],
    )


def outcome(gate: Mapping[str, Any]) -> str:
    """How a gate came out, with who waived it."""
    word = {True: "passed", False: "failed"}.get(gate.get("passed"), "not measured")  # type: ignore[arg-type]
    waiver = gate.get("waiver")
    return f"{word}, waived by {waiver['by']}: {waiver['why']}" if waiver else word
