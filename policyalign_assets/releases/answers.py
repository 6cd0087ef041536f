"""The answers and verdicts in a bundle, from which anybody can compute the gates again.

Of each policy of the bundle, in its folder:

answers/generations.parquet   every answer of every arm
answers/judgements.parquet    the verdict on each
answers/calibrations/         records of judges that were measured against labelled answers
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from policyalign_assets.files import sha256_table, write_parquet
from policyalign_assets.policy import PolicyDocument
from policyalign_assets.records import Checkpoint
from policyalign_assets.report.chain import JudgedAnswers, judged_answers
from policyalign_assets.report.contents import GateResult
from policyalign_assets.report.release import gate_results
from policyalign_assets.report.release_gates import with_policy_margins
from policyalign_assets.settings import GateSettings

FOLDER = "answers"
CHECKPOINT = "training/checkpoint.json"
POLICY, SETTINGS = "policy/policy.json", "settings.json"
TOLERANCE = 1e-9  # of a figure that is computed again: libraries sum in another order


@dataclass(frozen=True)
class Answers:
    """The tables GENERATIONS and JUDGEMENTS, and the folder of calibration records, if any."""

    generations: pa.Table
    judgements: pa.Table
    calibrations: Path | None = None


def write_answers(answers: Answers, place: Path) -> None:
    """Writes `answers/` into the folder of a policy."""
    folder = place / FOLDER
    folder.mkdir()
    write_parquet(answers.generations, folder / "generations.parquet")
    write_parquet(answers.judgements, folder / "judgements.parquet")
    if answers.calibrations is not None and answers.calibrations.is_dir():
        shutil.copytree(
            answers.calibrations, folder / "calibrations", copy_function=shutil.copyfile
        )


def read_answers(place: Path) -> Answers:
    """The answers in the folder of a policy. Raises FileNotFoundError and pyarrow's errors."""
    folder = place / FOLDER
    tables = [pq.read_table(folder / f"{name}.parquet") for name in ("generations", "judgements")]
    return Answers(tables[0], tables[1], folder / "calibrations")


def judged(place: Path, checkpoint_id: str) -> JudgedAnswers:
    """Each answer with its verdict. Raises NotOfOnePiece if they were not made from each other."""
    answers = read_answers(place)
    return judged_answers(answers.generations, answers.judgements, checkpoint_id)


def gate_bars(settings: Mapping[str, Any], policy: PolicyDocument) -> GateSettings:
    """The bars that hold for a bundle: those of its settings and those of its policy."""
    bars = GateSettings.model_validate(settings.get("gates", {}))
    return with_policy_margins(bars, dict(policy.gates))


def gates_again(
    place: Path, checkpoint: Checkpoint, answers: JudgedAnswers, settings: Mapping[str, Any]
) -> list[GateResult]:
    """The gates, computed from answers with the bundle's own bars and calibration records.

    place: the folder of the policy.
    """
    policy = stored_policy(place)
    return gate_results(policy, checkpoint, answers, place / FOLDER, gate_bars(settings, policy))


def differing_gates(
    stated: Mapping[str, Mapping[str, Any]], found: list[GateResult], same_code: bool
) -> list[str]:
    """How statements differ from the gates computed again. Another version of the code may compute
    other figures, but not another outcome.

    stated: the predicates of the statements, by gate.
    """
    faults = [f"{gate} is not stated" for gate in (r.gate for r in found) if gate not in stated]
    faults += [f"{gate} is no gate" for gate in stated.keys() - {r.gate for r in found}]
    for result in found:
        predicate = stated.get(result.gate)
        if predicate is None:
            continue
        if (predicate.get("passed"), predicate.get("blocking")) != (
            result.passed,
            result.blocking,
        ):
            faults.append(
                f"{result.gate} is stated as {_outcome(predicate.get('passed'))} and comes out as "
                f"{_outcome(result.passed)}"
            )
        elif same_code and not _same(predicate.get("measurements", {}), result.numbers):
            faults.append(f"the figures of {result.gate} come out otherwise")
    return faults


def stored_settings(bundle: Path) -> dict[str, Any]:
    """The settings that a bundle was made with."""
    found: dict[str, Any] = json.loads((bundle / SETTINGS).read_text(encoding="utf-8"))
    return found


def stored_policy(place: Path) -> PolicyDocument:
    """The policy in its folder of a bundle."""
    return TypeAdapter(PolicyDocument).validate_json((place / POLICY).read_bytes())


def stored_checkpoint(bundle: Path) -> Checkpoint:
    """The record of the checkpoint, with the repeats of its training."""
    return TypeAdapter(Checkpoint).validate_json((bundle / CHECKPOINT).read_bytes())


def same_cases(place: Path, answers: JudgedAnswers) -> bool:
    """Whether the cases of a policy's report are the judged answers."""
    table = pq.read_table(place / "report/cases.parquet")
    return sha256_table(table) == sha256_table(answers.heldout)


def _same(stated: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
    return stated.keys() == found.keys() and all(
        abs(float(stated[name]) - float(value)) <= TOLERANCE for name, value in found.items()
    )


def _outcome(passed: object) -> str:
    words = {True: "passed", False: "failed", None: "not measured"}
    return words[passed] if isinstance(passed, bool | None) else str(passed)
