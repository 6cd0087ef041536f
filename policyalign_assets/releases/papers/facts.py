"""What the papers say, read from a bundle once."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from policyalign_assets.policy import PolicyDocument, Rule
from policyalign_assets.releases import answers as kept
from policyalign_assets.releases.ledger import Entry, Ledger
from policyalign_assets.releases.manifest import describe
from policyalign_assets.releases.record import (
    OVERVIEW,
    WEIGHTS,
    PolicyRecord,
    ReleaseRecord,
    bundle_id,
    read_record,
)
from policyalign_assets.releases.statements import gates_of

_NAMESPACE = uuid.UUID("6f7a1b52-0f0d-5c8a-9d7e-2f4a6a1c9b10")
NOT_HELD = "Not held by this release. The provider has to supply it."


@dataclass(frozen=True)
class PolicyFacts:
    """What is said of one policy. `prefix`: before the names of its rules and gates.

    gates: the statements' predicates, by gate. report: `report.json`. made_from: what the
    checkpoint was made from of this policy.
    """

    record: PolicyRecord
    prefix: str
    policy: PolicyDocument
    gates: dict[str, Mapping[str, Any]]
    report: dict[str, Any]
    made_from: dict[str, Any]

    @property
    def header(self) -> dict[str, Any]:
        """Where the report says it comes from; empty for a report without it."""
        found = self.report.get("header", {})
        return found if isinstance(found, dict) else {}


@dataclass(frozen=True)
class Facts:
    """weights: digest of each file of the model. events: of the ledger, oldest first.

    conflicts: between rules of a deployment's policies, in sentences.
    """

    record: ReleaseRecord
    bundle_id: str
    policies: tuple[PolicyFacts, ...]
    settings: dict[str, Any]
    provenance: dict[str, Any]
    weights: dict[str, str]
    events: list[Entry]
    conflicts: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        return ", ".join(one.policy.title for one in self.policies)

    @property
    def gates(self) -> list[tuple[str, PolicyFacts, Mapping[str, Any]]]:
        """Name, policy and predicate of every gate; the name begins with a deployment's policy."""
        return [
            (one.prefix + gate, one, predicate)
            for one in self.policies
            for gate, predicate in sorted(one.gates.items())
        ]

    @property
    def measurements(self) -> Iterator[tuple[str, Any]]:
        """Name and value of everything that the gates measured."""
        for gate, _, predicate in self.gates:
            for name, value in sorted(predicate.get("measurements", {}).items()):
                yield f"{gate}: {name}", value

    @property
    def rules(self) -> list[tuple[str, Rule]]:
        """Name and rule, in the order of the policies."""
        return [
            (one.prefix + rule.rule_id, rule) for one in self.policies for rule in one.policy.rules
        ]

    @property
    def limits(self) -> list[str]:
        """The limits that the reports name, each once, and the conflicts."""
        found = [str(limit) for one in self.policies for limit in one.report.get("limits", [])]
        return list(dict.fromkeys([*found, *self.conflicts]))

    @property
    def intended_use(self) -> list[str]:
        return [one.policy.preamble or one.policy.title for one in self.policies]

    @property
    def judges(self) -> str:
        said = [str(one.header.get("judge", "not stated")) for one in self.policies]
        return ", ".join(dict.fromkeys(said))

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
    checkpoint = kept.stored_checkpoint(bundle)
    overview = json.loads((bundle / OVERVIEW).read_bytes()) if record.of_deployment else {}
    ledger = Ledger(bundle.absolute().parent / "ledger.jsonl")
    weights = bundle / WEIGHTS[record.tuning]
    return Facts(
        record,
        identity,
        tuple(
            _policy_facts(
                policy,
                f"{policy.policy_id}/" if record.of_deployment else "",
                record.place(bundle, policy),
                checkpoint.under(record.partition(policy)).provenance,
            )
            for policy in record.policies
        ),
        kept.stored_settings(bundle),
        checkpoint.provenance,
        {name: str(entry["sha256"]) for name, entry in describe(weights).items()},
        [entry for entry in ledger.entries() if entry.bundle_id == identity],
        tuple(map(str, overview.get("conflicts", ()))),
    )


def _policy_facts(
    record: PolicyRecord, prefix: str, place: Path, made_from: dict[str, Any]
) -> PolicyFacts:
    statements = [json.loads(f.read_bytes()) for f in sorted((place / "statements").glob("*"))]
    return PolicyFacts(
        record,
        prefix,
        kept.stored_policy(place),
        gates_of(statements),
        json.loads((place / "report/report.json").read_bytes()),
        made_from,
    )


def outcome(gate: Mapping[str, Any]) -> str:
    """How a gate came out, with who waived it."""
    word = {True: "passed", False: "failed"}.get(gate.get("passed"), "not measured")  # type: ignore[arg-type]
    waiver = gate.get("waiver")
    return f"{word}, waived by {waiver['by']}: {waiver['why']}" if waiver else word
