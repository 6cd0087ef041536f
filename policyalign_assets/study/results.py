"""The result of one trial: an arm with one seed under one policy, as a JSON file.

A file is written aside and renamed, and says what it was made from. A trial whose file is there
and was made from the same things is not run again.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from policyalign_assets.files import write_whole

FORMAT = 1


class ResultError(ValueError):
    """A result file that cannot be read. The message names the file and the fix."""


@dataclass(frozen=True)
class SuiteOutcome:
    """Outcomes of one suite, case by case: 1 for right, 0 for wrong, None for not judged.

    clusters: what cases that resemble each other share. unfinished: answers that were cut off at
    the limit of new tokens; they are judged as they stand. reasons: why answers were not judged.
    """

    cases: list[str]
    clusters: list[str]
    outcomes: list[int | None]
    unfinished: int = 0
    reasons: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one request at a time, and the load of the machine (1 minute) meanwhile.

    low, high: quartiles. ratio: to the same model without anything around it, request by request;
    the median.
    """

    median: float
    low: float
    high: float
    ratio: float
    n: int
    load: float | None
    cores: int


@dataclass(frozen=True)
class Training:
    """seconds: wall time, sampling included. tokens: response tokens in all updates."""

    seconds: float
    tokens: int
    updates: int
    instructions: int
    load: float | None
    same_pairs: int | None = None


@dataclass(frozen=True)
class TrialResult:
    """failed: why the training ended without a model; then nothing is measured.

    asked: what the sweep file and the policy asked for, and no code. A result with the same `asked`
    and another `fingerprint` was made by an earlier version of the code.
    added_prompt_tokens: over what the request alone takes, of all calls for one request; a mean.
    """

    arm: str
    partition: str
    seed: int
    fingerprint: str
    share: float
    steps: int
    suites: dict[str, SuiteOutcome] = field(default_factory=dict)
    added_prompt_tokens: float | None = None
    latency: Latency | None = None
    training: Training | None = None
    failed: str | None = None
    asked: str = ""
    format: int = FORMAT


def file_of(folder: Path, partition: str, arm: str, seed: int) -> Path:
    return folder / f"{re.sub(r'[^a-z0-9-]', '.', partition)}--{arm}--{seed}.json"


def write_result(result: TrialResult, folder: Path) -> Path:
    file = file_of(folder, result.partition, result.arm, result.seed)
    write_whole(file, (json.dumps(asdict(result)) + "\n").encode())
    return file


def read_result(file: Path) -> TrialResult:
    """Raises ResultError."""
    try:
        result = TypeAdapter(TrialResult).validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        said = " ".join(str(error).split())[:300]
        raise ResultError(f"{file} is no result of a trial: {said}. Fix: remove it.") from None
    if result.format != FORMAT:
        raise ResultError(
            f"{file} has the format {result.format}, and this version reads {FORMAT}. "
            "Fix: remove it, and run the trial again."
        )
    for suite, found in result.suites.items():
        if not len(found.cases) == len(found.clusters) == len(found.outcomes):
            raise ResultError(
                f"{file}: the suite {suite!r} has lists of unequal lengths. Fix: remove the file."
            )
    return result


def digest_of(results: Sequence[TrialResult]) -> str:
    """A hash of results, whatever their order."""
    texts = sorted(json.dumps(asdict(result), sort_keys=True) for result in results)
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]
