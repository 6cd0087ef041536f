"""What a bundle says of itself, in `release.json`: the target, the models, and each policy.

The bundle of a partition holds one policy, whose files lie in the bundle's own folder. The bundle
of a deployment holds all of its policies, each in `policies/<policy>/` with the same files.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from policyalign_assets.releases.errors import ReleaseError
from policyalign_assets.releases.manifest import MANIFEST, file_digest

FORMAT = 3  # 1 held no answers, so that its gates cannot be computed again; 2 held one policy
RECORD = "release.json"
WEIGHTS = {"lora": "adapter", "full": "model"}
OVERVIEW = "deployment.json"  # of a deployment: the verdict over all policies, and their conflicts
_POLICY_ID = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


@dataclass(frozen=True)
class BaseModel:
    """The model below an adapter. `sha256`: of its files, or None if they were not hashed."""

    model_id: str
    revision: str
    sha256: str | None


@dataclass(frozen=True)
class PolicyRecord:
    """One policy of a release. `waivers`: {gate: {"by": who, "why": reason}}."""

    policy_id: str
    policy_hash: str
    cases_sha256: str
    waivers: dict[str, dict[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class ReleaseRecord:
    """target: a partition (`domain|policy`), or a deployment's name. policies: in their order."""

    target: str
    checkpoint_id: str
    tuning: str
    base: BaseModel
    domain: str
    policies: tuple[PolicyRecord, ...]
    code_version: str
    created_at: str
    parent: str | None = None
    format: int = FORMAT

    @property
    def of_deployment(self) -> bool:
        return is_deployment(self.target)

    def partition(self, policy: PolicyRecord) -> str:
        """The partition whose tables the policy's part was made from."""
        return f"{self.domain}|{policy.policy_id}"

    def place(self, bundle: Path, policy: PolicyRecord) -> Path:
        """The folder with the files of one policy."""
        return bundle / policy_folder(self.target, policy.policy_id)

    def under(self, policy: PolicyRecord) -> str:
        """` under POLICY` for a deployment: what a sentence about one of its policies ends with."""
        return f" under {policy.policy_id}" if self.of_deployment else ""


def is_deployment(target: str) -> bool:
    return "|" not in target


def policy_folder(target: str, policy_id: str) -> str:
    """Where the files of a policy lie in the bundle of `target`, below the bundle's folder."""
    return f"policies/{policy_id}" if is_deployment(target) else "."


def read_record(folder: Path) -> ReleaseRecord:
    """Raises ReleaseError if `folder` holds no readable `release.json`."""
    try:
        stated = json.loads((folder / RECORD).read_bytes())
        found = TypeAdapter(ReleaseRecord).validate_python(_of_today(stated))
        names = [policy.policy_id for policy in found.policies]
        if (
            not names
            or len(set(names)) < len(names)
            or (len(names) > 1 and not found.of_deployment)
        ):
            raise ValueError(f"it names {len(names)} policies for {found.target!r}")
        # a name becomes a folder
        if wrong := [name for name in names if not _POLICY_ID.fullmatch(name)]:
            raise ValueError(f"{wrong[0]!r} is no policy")
    except (OSError, ValueError, TypeError) as error:
        raise ReleaseError(
            f"{folder} is no bundle: {RECORD} cannot be read ({str(error).splitlines()[0]}). "
            "Fix: name the folder that `policyalign release` wrote."
        ) from None
    return found


def bundle_id(folder: Path) -> str:
    """The SHA-256 of the bundle's manifest."""
    return file_digest(folder / MANIFEST)


def _of_today(stated: Any) -> Any:
    """Formats 1 and 2 hold the fields of their one policy beside the others."""
    if not isinstance(stated, dict) or "policies" in stated:
        return stated
    names = ("policy_id", "policy_hash", "cases_sha256", "waivers")
    return stated | {"policies": [{name: stated[name] for name in names if name in stated}]}
