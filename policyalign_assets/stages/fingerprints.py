"""What each stage's data depends on, as one hash: the policy's text, the settings that the stage reads, the model, the code.

A stage's fingerprint covers those of the stages it reads, so a changed learning rate changes `distilled_checkpoint` and what
follows, and a changed judge `judgements` and `benchmark_report` alone. The same recursion gives two answers: what a stage
*should* be (`desired`, from the policy files and settings of now) and what its data *is* (`consumed`, from the fingerprints
carried by the data it read). An edit during a run therefore shows as a difference afterwards, and cannot be lost.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from policyalign_assets.engine.revision import local_revision
from policyalign_assets.engine.shipped_models import BUNDLED_WEIGHTS
from policyalign_assets.evaluation.benchmarks import manifest, version_of
from policyalign_assets.settings import BUNDLED, EvaluationSettings, ModelSettings, Settings

TAG = "policyalign/fingerprint"


@dataclass(frozen=True)
class Stage:
    """`code`: raise it when the stage's code changes what it makes. `reads`: sections of the settings."""

    code: int
    upstream: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()


STAGES: dict[str, Stage] = {
    "policy_document": Stage(2),
    "violating_instructions": Stage(
        3, ("policy_document",), ("model", "synthesis", "generator", "firewall")
    ),
    "sensitivity_scores": Stage(
        2, ("policy_document", "violating_instructions"), ("model", "sensitivity")
    ),
    "filtered_instructions": Stage(
        2, ("violating_instructions", "sensitivity_scores"), ("filtering",)
    ),
    "distilled_checkpoint": Stage(
        3, ("policy_document", "filtered_instructions"), ("model", "distillation")
    ),
    "generations": Stage(
        1,
        ("policy_document", "violating_instructions", "distilled_checkpoint"),
        ("model", "evaluation"),
    ),
    "judgements": Stage(1, ("policy_document", "generations"), ("judge",)),
    "benchmark_report": Stage(
        2,
        (
            "policy_document",
            "violating_instructions",
            "filtered_instructions",
            "distilled_checkpoint",
            "generations",
            "judgements",
        ),
        ("report",),
    ),
}
# How fast the work is done or where things are, not what comes out
_ENDPOINT = {
    "base_url",
    "api_key_variable",
    "timeout",
    "retries",
    "concurrency",
    "token_parameter",
    "ca_file",
}
_NO_EFFECT = {
    "model": {"batch_tokens", "gpu_memory"},
    "distillation": {
        "save_every",
        "micro_batch_tokens",
        "gradient_checkpointing",
        "processes",
        "accelerate_config",
    },
    "evaluation": {"benchmarks_dir"},
    "judge": _ENDPOINT | {"deadline", "batch_tokens", "device"},
    "generator": _ENDPOINT,
}


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:40]


@cache
def _folder_hash(folder: Path, state: tuple) -> str:
    """`state` is the folder's names, times and sizes: reading gigabytes again on each tick would be slow."""
    return local_revision(folder)


def model_revision(model: ModelSettings) -> str:
    """As `engine.loading` finds it, without importing torch: the pinned revision, or the hash of a local folder."""
    folder = BUNDLED_WEIGHTS if model.id == BUNDLED else Path(model.id)
    if not folder.is_dir():
        return model.revision or "unpinned"
    return _folder_hash(
        folder,
        tuple(
            sorted(
                (f.name, f.stat().st_mtime_ns, f.stat().st_size)
                for f in folder.iterdir()
                if f.is_file()
            )
        ),
    )


def references_revision(folder: str | None) -> str | None:
    """Hash of the evaluation prompts that synthesis keeps clear of: a new benchmark redoes it."""
    return (
        files_version(sorted(f for f in Path(folder).rglob("*") if f.is_file())) if folder else None
    )


def files_version(files: Iterable[Path]) -> str:
    """Hash of what the files hold, wherever they lie. An unchanged file is not read again on each tick of the sensor."""
    return _hash(
        [_file_version(f, f.stat().st_mtime_ns, f.stat().st_size) for f in files if f.is_file()]
    )


@cache
def _file_version(file: Path, changed: int, size: int) -> str:
    return version_of([file])


def benchmarks_version(evaluation: EvaluationSettings) -> str:
    """Changes when the manifest or any file of a benchmark in `evaluation.benchmarks_dir` does; wherever that folder is."""
    folder = Path(evaluation.benchmarks_dir or "")
    patterns = sorted({p for b in manifest() for p in b.files}) if evaluation.benchmarks_dir else []
    files = [(p, f) for p in patterns for f in sorted(folder.glob(p))]
    return _hash(
        [
            [b.model_dump(mode="json") for b in manifest()],
            [p for p, _ in files],
            files_version(f for _, f in files),
        ]
    )


def own_version(stage: str, settings: Settings) -> str:
    """Code and settings of one stage alone: Dagster's `code_version`, by which its UI shows a changed setting as stale."""
    spec = STAGES[stage]
    read = {
        section: getattr(settings, section).model_dump(mode="json", exclude=_NO_EFFECT.get(section))
        for section in spec.reads
    }
    if "model" in spec.reads:
        read["model"]["revision"] = model_revision(settings.model)
    if "firewall" in spec.reads:
        read["firewall"]["references"] = references_revision(
            settings.firewall.references
        )  # what they say, wherever they lie
        if settings.firewall.own_cases:
            read["evaluation"] = settings.evaluation.model_dump(
                mode="json", include={"cases_per_suite", "seed"}
            )
    if "synthesis" in spec.reads and settings.synthesis.entailment:
        read["judge"] = settings.judge.model_dump(mode="json", exclude=_NO_EFFECT["judge"])
    if "distillation" in spec.reads and (file := settings.distillation.anchors_file):
        read["distillation"]["anchors_file"] = files_version([Path(file)])
    if "evaluation" in spec.reads:
        read["evaluation"]["benchmarks"] = benchmarks_version(settings.evaluation)
    return f"{spec.code}.{_hash(read)[:12]}"


def consumed(stage: str, settings: Settings, upstream: Mapping[str, str]) -> str:
    """Fingerprint of what `stage` makes from data with the fingerprints `upstream` (by stage name)."""
    if missing := set(STAGES[stage].upstream) - set(upstream):
        raise ValueError(f"{stage} reads {sorted(missing)}, whose fingerprints are missing")
    return _hash(
        [stage, own_version(stage, settings), [upstream[u] for u in STAGES[stage].upstream]]
    )


def of_policy(content_hash: str) -> str:
    """Fingerprint of `policy_document`."""
    return _hash(["policy_document", STAGES["policy_document"].code, content_hash])


def desired(policy_hash: str, settings: Settings) -> dict[str, str]:
    """The fingerprint that each stage should have, in order of the chain."""
    wanted = {"policy_document": of_policy(policy_hash)}
    for stage in list(STAGES)[1:]:
        wanted[stage] = consumed(stage, settings, wanted)
    return wanted
