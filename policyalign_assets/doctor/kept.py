"""Results of the doctor, kept as `<data>/doctor/<what was asked>-<model revision>.json`.

This module imports no torch, so that a result can be shown without loading a model.
"""

from __future__ import annotations

import hashlib
import json

from policyalign_assets.doctor.record import Examination
from policyalign_assets.files import Location, write_whole
from policyalign_assets.policy import PolicyDocument
from policyalign_assets.settings import Settings

CODE_VERSION = 4  # raise it when the checks change: kept results then count no more


def save(
    data: Location,
    settings: Settings,
    policy: PolicyDocument | None,
    effect: bool,
    result: Examination,
) -> None:
    """Keep a result. `effect`: the effect of the policy in the prompt was to be measured."""
    file = _file(data, _asked(settings, policy, effect), str(result.model_revision))
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, result.to_json().encode())


def read(
    data: Location,
    settings: Settings,
    policy: PolicyDocument | None,
    effect: bool,
    revision: str,
) -> Examination | None:
    """Return what was kept about this model revision, if anything."""
    return _read(_file(data, _asked(settings, policy, effect), revision))


def newest(
    data: Location, settings: Settings, policy: PolicyDocument | None, effect: bool
) -> Examination | None:
    """Return the newest result for these settings, whichever revision the model had."""
    results: list[tuple[float, Examination]] = []
    for file in (data / "doctor").glob(f"{_asked(settings, policy, effect)}-*.json"):
        if result := _read(file):
            results.append((file.stat().st_mtime, result))
    return max(results, key=lambda r: r[0])[1] if results else None


def _file(data: Location, asked: str, revision: str) -> Location:
    return data / "doctor" / f"{asked}-{revision.replace('/', '-')}.json"


def _asked(settings: Settings, policy: PolicyDocument | None, effect: bool) -> str:
    """A digest of everything that a result depends on beside the model's revision."""
    parts = [
        CODE_VERSION,
        effect,
        policy.content_hash if policy else None,
        settings.model.model_dump(mode="json"),
        settings.distillation.model_dump(mode="json"),
        settings.evaluation.max_new_tokens,
        settings.sensitivity.max_new_tokens,
        settings.sensitivity.top_logprobs,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _read(file: Location) -> Examination | None:
    try:
        return Examination.from_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, KeyError):  # absent, torn or of another version
        return None
