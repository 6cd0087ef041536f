"""Writes a released model in a form that other programs serve, if it behaves as what was released.

An export must pass the bundle's own gates with answers of its own, and differ from the released
model in few outcomes. Otherwise nothing is written.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from policyalign_assets.files import new_directory
from policyalign_assets.releases import answers as kept
from policyalign_assets.releases.answer_again import Again, Report, answer_again
from policyalign_assets.releases.errors import ReleaseError
from policyalign_assets.releases.manifest import describe
from policyalign_assets.releases.record import WEIGHTS, ReleaseRecord, bundle_id, read_record
from policyalign_assets.settings import ModelSettings

RECORD = "export.json"
MOST_FLIPPED = 0.01  # share of the gated cases whose outcome may change


@dataclass(frozen=True)
class Exported:
    """`folder` holds the export and `export.json`, which says what was measured, by policy."""

    folder: Path
    again: dict[str, Again]


def model_settings(bundle: Path, base: Path | None) -> ModelSettings:
    """The settings with which the bundle's base model is loaded."""
    record = read_record(bundle)
    stored = ModelSettings.model_validate(kept.stored_settings(bundle).get("model", {}))
    where: dict[str, Any] = {"id": record.base.model_id, "engine": "transformers"}
    if base is not None:
        where |= {"id": str(base), "revision": None}
    return stored.model_copy(update=where)


def export_merged(
    bundle: Path,
    target: Path,
    base: Path | None = None,
    most_flipped: float = MOST_FLIPPED,
    report: Report = lambda _: None,
) -> Exported:
    """Writes a plain transformers folder of the released model to `target`.

    base: the folder of the base model, if its id cannot be loaded. The caller verifies the bundle.
    Raises ReleaseError if the export does not behave as what was released.
    """
    return export(bundle, target, base, most_flipped, report, "merged", lambda folder: folder)


def export(
    bundle: Path,
    target: Path,
    base: Path | None,
    most_flipped: float,
    report: Report,
    kind: str,
    converted: Callable[[Path], Path],
) -> Exported:
    """Exports what `converted` makes of the merged folder: a folder that can be loaded."""
    if target.exists():
        raise ReleaseError(f"{target} exists. Fix: choose another place, or remove it.")
    target.parent.mkdir(parents=True, exist_ok=True)
    settings = model_settings(bundle, base)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".unfinished.") as name:
        folder = Path(name) / "merged"
        folder.mkdir()
        report("the adapter is merged into the base model")
        write_merged(bundle, settings, folder)
        made = converted(folder)
        again = answer_again(bundle, _engine(settings, made), report)
        of_deployment = read_record(bundle).of_deployment
        if faults := [
            fault + (f" under {policy}" if of_deployment else "")
            for policy, one in again.items()
            for fault in faults_of(one, most_flipped)
        ]:
            raise ReleaseError(
                f"The export does not behave as the release: {'; '.join(faults)}. Fix: serve the "
                "adapter itself, or release with settings that the export keeps (model.dtype)."
            )
        record = _record(bundle, kind, again, made)
        (made / RECORD).write_text(json.dumps(record, indent=1, default=str) + "\n")
        with new_directory(target) as aside:
            for path in made.iterdir():
                path.rename(aside / path.name)
    return Exported(target, again)


def write_merged(bundle: Path, settings: ModelSettings, folder: Path) -> None:
    """Writes weights, configuration and tokenizer of the released model.

    Raises ReleaseError if another base model is loaded than the one of the bundle.
    """
    from peft import PeftModel

    from policyalign_assets.engine.loading import load_model

    record = read_record(bundle)
    loaded = load_model(settings)
    if settings.id == record.base.model_id and loaded.revision != record.base.revision:
        raise ReleaseError(
            f"{settings.id} is at revision {loaded.revision} here, and the release was made with "
            f"{record.base.revision}. Fix: name the folder of that revision with --base."
        )
    weights = bundle / WEIGHTS[record.tuning]
    model: Any
    if record.tuning == "lora":
        adapted: Any = PeftModel.from_pretrained(loaded.model, str(weights))
        model = adapted.merge_and_unload(safe_merge=True)
    else:
        model = load_model(settings.model_copy(update={"id": str(weights), "revision": None})).model
    model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)


def faults_of(again: Again, most_flipped: float) -> list[str]:
    """Why an export is refused: gates that block and did not pass, and too much drift."""
    failed = [g for g in again.gates if g.blocking and g.passed is not True]
    faults = [f"the gate {g.gate} does not pass ({g.problem or g.sentence})" for g in failed]
    if again.flipped > most_flipped:
        faults.append(
            f"{again.flipped:.1%} of {again.compared} cases have another outcome, allowed "
            f"{most_flipped:.1%}"
        )
    return faults + list(again.drift.regressions)


def _engine(settings: ModelSettings, folder: Path) -> Any:
    """The export as anybody would load it."""
    from policyalign_assets.engine.generation.transformers_engine import TransformersEngine
    from policyalign_assets.engine.loading import load_model

    loaded = load_model(settings.model_copy(update={"id": str(folder), "revision": None}))
    return TransformersEngine(loaded, settings.batch_tokens)


def _record(bundle: Path, kind: str, again: dict[str, Again], folder: Path) -> dict[str, Any]:
    release: ReleaseRecord = read_record(bundle)
    return {
        "kind": kind,
        "bundle": bundle_id(bundle),
        "target": release.target,
        "checkpoint_id": release.checkpoint_id,
        "base": asdict(release.base),
        "files": describe(folder),
        "policies": {policy: _measured(one) for policy, one in again.items()},
    }


def _measured(again: Again) -> dict[str, Any]:
    return {
        "drift": {
            "cases": again.compared,
            "outcomes changed": again.flipped,
            "same text": again.same_text,
            "not asked again": again.not_asked,
            "suites": [
                {"suite": s.group, "difference": s.paired.difference, "cases": s.paired.n}
                for s in again.drift.suites
            ],
        },
        "gates": [asdict(gate) for gate in again.gates],
    }
