"""Who may approve a release: people whom the policy's front matter or the settings name.

    approvers: [Bob Stone, "Eve Hall sha256:3f9c2b1a"]     # front matter of a policy
    POLICYALIGN_RELEASE__APPROVERS='Bob Stone, Eve Hall'   # settings

A name may carry the beginning of the person's key id, as `policyalign keys new` prints it: then no
other key counts as theirs. A bundle holds the policy and the settings, so its signature covers the
names, and `verify` reads them there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from policyalign_assets.releases import answers as kept
from policyalign_assets.releases.errors import ReleaseError
from policyalign_assets.releases.record import read_record
from policyalign_assets.settings import ReleaseSettings, approver_parts

NOBODY = (
    "nobody is named as approver, in the policy or the settings, so anybody but the author may "
    "approve"
)


@dataclass(frozen=True)
class Approvers:
    """Who may approve under one policy. Empty where nobody is named: then anybody may.

    named: as they are written, those of the policy first. where: the policy's id.
    """

    where: str
    named: tuple[str, ...]

    def accept(self, actor: str, key_id: str) -> bool:
        return not self.named or any(_is(name, actor, key_id) for name in self.named)


def approvers_of(bundle: Path) -> list[Approvers]:
    """Who may approve a bundle, for each of its policies; the settings' people count for all."""
    record = read_record(bundle)
    stored = kept.stored_settings(bundle).get("release", {})  # older bundles have no such section
    everywhere = ReleaseSettings.model_validate(stored).approvers
    return [
        Approvers(
            policy.policy_id,
            tuple(
                dict.fromkeys(
                    (*kept.stored_policy(record.place(bundle, policy)).approvers, *everywhere)
                )
            ),
        )
        for policy in record.policies
    ]


def refusal(bundle: Path, actor: str, key_id: str) -> str | None:
    """Why `actor`, who signs with this key, may not approve the bundle; None if they may."""
    refusing = [a for a in approvers_of(bundle) if not a.accept(actor, key_id)]
    if not refusing:
        return None
    said = "; ".join(f"{a.where} names {', '.join(a.named)}" for a in refusing)
    known = any(_same(approver_parts(n)[0], actor) for a in refusing for n in a.named)
    why = "signs with another key than the one that is named for them" if known else "is not named"
    return f"{actor!r} {why} as an approver ({said})"


def refuse_unless_named(bundle: Path, actor: str, key_id: str) -> None:
    """Raises ReleaseError unless `actor` may approve the bundle."""
    if why := refusal(bundle, actor, key_id):
        raise ReleaseError(
            f"{why}. Fix: let a named person approve, or name this one as `approvers` in the "
            "policy's front matter or in release.approvers of the settings, and release again."
        )


def said(bundle: Path, author: str) -> list[str]:
    """Who may approve, one sentence a policy; and where nobody can, that and the fix."""
    lines = []
    for approvers in approvers_of(bundle):
        if not approvers.named:
            lines.append(f"approvers under {approvers.where}: {NOBODY}")
            continue
        lines.append(f"approvers under {approvers.where}: {', '.join(approvers.named)}")
        if all(_same(approver_parts(name)[0], author) for name in approvers.named):
            lines.append(
                f"nobody can approve this draft: {author} is its author. Fix: name another person "
                "in the policy's front matter or in release.approvers, and release again."
            )
    return lines


def _is(named: str, actor: str, key_id: str) -> bool:
    name, key = approver_parts(named)
    return _same(name, actor) and (not key or key_id.startswith(key))


def _same(one: str, other: str) -> bool:
    return one.strip().casefold() == other.strip().casefold()
