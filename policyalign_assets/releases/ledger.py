"""The ledger of releases: one signed line an event, which holds the hash of the line before it.

A bundle goes through `drafted`, `approved`, `released` and, if need be, `revoked`. Lines are only
ever appended, so an altered, missing or reordered line breaks the chain and `verify` finds it. The
signed file `ledger.head` holds the number of lines and the last digest, so that lines cut off the
end are noticed too. Old copies of both files, put back together, are noticed only by somebody who
has seen a newer head: keep copies of `ledger.head` elsewhere.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import TypeAdapter, ValidationError

from policyalign_assets.files import write_whole
from policyalign_assets.releases.errors import ReleaseError
from policyalign_assets.releases.keys import is_signed_by, key_id, sign_text

Event = Literal["drafted", "approved", "released", "revoked"]
State = Literal["unknown", "drafted", "approved", "released", "revoked"]
# What must have been the last event of a bundle before each event.
_BEFORE: dict[Event, tuple[State, ...]] = {
    "drafted": ("unknown",),
    "approved": ("drafted",),
    "released": ("approved",),
    "revoked": ("drafted", "approved", "released"),
}
_FIRST = "0" * 64  # stands for the line before the first one


@dataclass(frozen=True)
class Entry:
    """One event. `previous` and `digest` are SHA-256 in hexadecimal; `signature` is base64.

    target: the partition or deployment that the bundle is for. reason: why it was revoked.
    """

    sequence: int
    time: str
    event: Event
    bundle_id: str
    target: str
    actor: str
    reason: str
    previous: str
    key_id: str = ""
    signature: str = ""

    @property
    def text(self) -> str:
        """What is signed: every field but the signature, in one canonical form."""
        return _canonical({k: v for k, v in asdict(self).items() if k != "signature"})

    @property
    def digest(self) -> str:
        return hashlib.sha256(_canonical(asdict(self)).encode()).hexdigest()


class Ledger:
    """The file `ledger.jsonl` of a folder of releases."""

    def __init__(self, path: Path):
        self.path = path

    def entries(self) -> list[Entry]:
        """All events, oldest first. Raises ReleaseError for a line that cannot be read."""
        if not self.path.exists():
            return []
        adapter, entries = TypeAdapter(Entry), []
        for number, line in enumerate(self.path.read_text(encoding="utf-8").splitlines(), 1):
            try:
                entries.append(adapter.validate_json(line, strict=True))
            except ValidationError:
                raise ReleaseError(
                    f"{self.path}, line {number}, is no ledger entry. Fix: restore the ledger "
                    "from a copy; it is only ever appended to."
                ) from None
        return entries

    def state(self, bundle_id: str) -> State:
        """The last event of a bundle, or `unknown`."""
        events = [e.event for e in self.entries() if e.bundle_id == bundle_id]
        return events[-1] if events else "unknown"

    def current(self, target: str) -> str | None:
        """The bundle to serve for a target: the newest released one that has not been revoked."""
        entries = self.entries()
        revoked = {e.bundle_id for e in entries if e.event == "revoked"}
        for entry in reversed(entries):
            if (
                entry.target == target
                and entry.event == "released"
                and entry.bundle_id not in revoked
            ):
                return entry.bundle_id
        return None

    def append(
        self,
        event: Event,
        bundle_id: str,
        target: str,
        actor: str,
        key: ec.EllipticCurvePrivateKey,
        reason: str = "",
    ) -> Entry:
        """Adds an event. Raises ReleaseError if it may not follow the bundle's last one.

        Who drafted the bundle, and whose key signed the draft, cannot approve it. A revocation
        needs a reason.
        """
        if not actor.strip():
            raise ReleaseError("An event needs a name. Fix: say who acts with --by NAME.")
        if event == "revoked" and not reason.strip():
            raise ReleaseError("A revocation needs a reason. Fix: give it with --reason TEXT.")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # two commands at once must not write the same number
            entries = self.entries()
            mine = [e for e in entries if e.bundle_id == bundle_id]
            state: State = mine[-1].event if mine else "unknown"
            if state not in _BEFORE[event]:
                raise ReleaseError(
                    f"Bundle {bundle_id[:16]} is {state}, so it cannot be {event}. "
                    f"Fix: it must be {' or '.join(_BEFORE[event])} first."
                )
            if event == "approved" and _same_person(actor, mine[0].actor):
                raise ReleaseError(
                    f"{actor!r} drafted bundle {bundle_id[:16]} and cannot approve it. "
                    "Fix: another person approves it, with --by NAME and a key of their own."
                )
            if event == "approved" and key_id(key.public_key()) == mine[0].key_id:
                raise ReleaseError(
                    f"The key that signed the draft of bundle {bundle_id[:16]} cannot approve it. "
                    "Fix: another person approves it, with --by NAME and a key of their own."
                )
            unsigned = Entry(
                sequence=len(entries) + 1,
                time=datetime.now(UTC).isoformat(timespec="seconds"),
                event=event,
                bundle_id=bundle_id,
                target=target,
                actor=actor.strip(),
                reason=reason.strip(),
                previous=entries[-1].digest if entries else _FIRST,
                key_id=key_id(key.public_key()),
            )
            entry = Entry(**{**asdict(unsigned), "signature": sign_text(key, unsigned.text)})
            file.write(_canonical(asdict(entry)) + "\n")
            file.flush()
            os.fsync(file.fileno())
            self._write_head(entry, key)
        return entry

    @property
    def head(self) -> Path:
        return self.path.with_suffix(".head")

    def _write_head(self, last: Entry, key: ec.EllipticCurvePrivateKey) -> None:
        text = _canonical({"lines": last.sequence, "digest": last.digest})
        signed = {
            "head": text,
            "key_id": key_id(key.public_key()),
            "signature": sign_text(key, text),
        }
        write_whole(self.head, (json.dumps(signed, indent=1) + "\n").encode())

    def head_faults(self, keys: Mapping[str, ec.EllipticCurvePublicKey]) -> list[str]:
        """What is wrong with `ledger.head`: empty if it is signed and names the last line."""
        entries = self.entries()
        try:
            signed = json.loads(self.head.read_text(encoding="utf-8"))
            text, key, signature = signed["head"], signed["key_id"], signed["signature"]
            if key not in keys or not is_signed_by(keys[key], text, signature):
                return ["ledger.head is not signed by a trusted key"]
            head = json.loads(text)
            if not entries or (head["lines"], head["digest"]) != (len(entries), entries[-1].digest):
                return [
                    f"the ledger has {len(entries)} lines and ledger.head was written for "
                    f"{head['lines']}: lines were cut off, added or changed"
                ]
        except (OSError, ValueError, KeyError, TypeError):
            return ["ledger.head is missing or cannot be read"]
        return []


def faults(entries: Sequence[Entry], keys: Mapping[str, ec.EllipticCurvePublicKey]) -> list[str]:
    """What is wrong with a ledger: empty if the chain holds and trusted keys signed each line.

    keys: trusted public keys by their ids.
    """
    found: list[str] = []
    states: dict[str, tuple[State, Entry]] = {}  # last event and draft, by bundle
    previous = _FIRST
    for number, entry in enumerate(entries, 1):
        name = f"ledger line {number} ({entry.event} by {entry.actor})"
        if entry.sequence != number or entry.previous != previous:
            found.append(f"{name} does not follow the line before it")
        if entry.key_id not in keys:
            found.append(f"{name} is signed by a key that is not trusted")
        elif not is_signed_by(keys[entry.key_id], entry.text, entry.signature):
            found.append(f"{name} was changed after it was signed")
        state, draft = states.get(entry.bundle_id, ("unknown", entry))
        if state not in _BEFORE[entry.event]:
            found.append(f"{name} cannot follow the state {state!r}")
        if entry.event == "approved" and _same_person(entry.actor, draft.actor):
            found.append(f"{name} approves the actor's own draft")
        elif entry.event == "approved" and entry.key_id == draft.key_id:
            found.append(f"{name} is signed by the key that signed the draft")
        states[entry.bundle_id] = (entry.event, draft)
        previous = entry.digest
    return found


def _same_person(one: str, other: str) -> bool:
    return one.strip().casefold() == other.strip().casefold()


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
