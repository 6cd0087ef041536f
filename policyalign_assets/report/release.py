"""Is a checkpoint released? Computed from its cases and bytes each time, never read from a report.

`release.json` of a partition exists only while its current report's checkpoint has passed every
gate, with every hash of the chain compared. It binds full digests of all files that matter. What
was decided, and why, stands in `decision.json` beside it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from policyalign_assets.files import (
    Location,
    downloaded,
    sha256_files,
    sha256_table,
    write_whole,
)
from policyalign_assets.policy import PolicyDocument
from policyalign_assets.records import Checkpoint
from policyalign_assets.report.approval import approval_of
from policyalign_assets.report.benchmarks import benchmark_blocks
from policyalign_assets.report.build import gates_of_all_runs, judged_cells
from policyalign_assets.report.calibration import find_calibration
from policyalign_assets.report.chain import Chain, JudgedAnswers, checked
from policyalign_assets.report.contents import GateResult, Verdict
from policyalign_assets.report.context import code_version, rule_states
from policyalign_assets.report.folders import (
    RELEASE,
    current_report,
    partition_folder,
    remove_release,
)
from policyalign_assets.report.history import write_history
from policyalign_assets.report.release_gates import verdict, with_policy_margins
from policyalign_assets.report.training_runs import repeats_of, without_repeats
from policyalign_assets.settings import BUNDLED, GateSettings

DECISION = "decision.json"
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json")
# Of a whole model every file counts, except these two, which are written about it
ABOUT_FILES = ("training.parquet", "checkpoint.json")


class ReleaseRefused(ValueError):
    """The evidence is not whole. The message says what is wrong and what to do."""


@dataclass(frozen=True)
class Decision:
    """`gates` is empty where the evidence was refused before the gates could be asked.

    `provenance`: what is wrong with the evidence, or None.
    """

    verdict: Verdict
    gates: list[GateResult]
    provenance: str | None


def decide(
    data: Location, chain: Chain, bars: GateSettings, checkpoints: Location | None = None
) -> Decision:
    """Decides on the current report of the chain's partition; writes or removes `release.json`.

    data: the folder of `reports/`. checkpoints: that of `checkpoints/`, if it is another one.

    The old release is removed before anything is read, so that no error can leave it in place.
    """
    domain, policy = chain.policy.domain, chain.policy.policy_id
    remove_release(data, domain, policy)
    partition = partition_folder(data, domain, policy)
    results: list[GateResult] = []
    folder: Location | None = None
    digests: dict[str, dict[str, str]] = {}
    problem: str | None = None
    try:
        margins_of_policy = with_policy_margins(bars, margins(chain))
        folder = current_report(data, domain, policy)
        answers = checked(chain)
        _same_cases(folder, answers)
        digests = {
            c.checkpoint_id: checkpoint_digests(c, checkpoints or data)
            for c in (chain.checkpoint, *chain.checkpoint.repeats)
        }
        results = gate_results(
            chain.policy, chain.checkpoint, answers, checkpoints or data, margins_of_policy
        )
        final = verdict(results, margins_of_policy)
    except FileNotFoundError as error:
        problem = f"there is no complete report ({error.filename} is missing)"
        final = _refused(problem, "Materialize benchmark_report for this partition.")
    except ValueError as error:  # NotOfOnePiece and ReleaseRefused are two of them
        problem, _, remedy = str(error).partition(" Fix: ")
        problem = problem.rstrip(".")
        final = _refused(problem, remedy or "Materialize the partition again.")
    decision = Decision(final, results, problem)
    record = asdict(decision) | {"report": folder.name if folder else None}
    if partition.is_dir():
        write_whole(partition / DECISION, _json(record))
    if final.releasable and folder is not None:
        release = _json(_release(chain, folder, digests, decision))
        write_whole(folder / RELEASE, release)
        write_whole(partition / RELEASE, release)
    if partition.is_dir():
        write_history(partition)  # it says which reports were released
    return decision


def margins(chain: Chain) -> dict[str, float]:
    """The margins that stand in the policy's front matter."""
    return dict(chain.policy.gates)


def checkpoint_digests(checkpoint: Checkpoint, data: Location) -> dict[str, str]:
    """The SHA-256 of each file of a checkpoint.

    Raises ReleaseRefused where its bytes are not those that were published.
    """
    folder = data / checkpoint.path
    if not folder.is_dir():
        raise ReleaseRefused(
            f"checkpoint {checkpoint.checkpoint_id} is missing at {checkpoint.path}. "
            "Fix: materialize distilled_checkpoint again."
        )
    with downloaded(folder) as local:
        digest = (
            sha256_files(local, ADAPTER_FILES)
            if checkpoint.tuning == "lora"
            else sha256_files(local, but=ABOUT_FILES)
        )
        if digest[: len(checkpoint.checkpoint_id)] != checkpoint.checkpoint_id:
            raise ReleaseRefused(
                f"the files of checkpoint {checkpoint.checkpoint_id} were changed after it was "
                "published. Fix: materialize distilled_checkpoint again."
            )
        return {
            file.name: hashlib.sha256(file.read_bytes()).hexdigest()
            for file in sorted(local.iterdir())
            if file.is_file()
        }


def _same_cases(folder: Location, answers: JudgedAnswers) -> None:
    """The report's own files of cases must hold exactly the judged answers of the chain."""
    for name, wanted in (
        ("cases.parquet", answers.heldout),
        ("benchmark_cases.parquet", answers.benchmarks),
    ):
        try:
            found = pq.read_table(pa.BufferReader((folder / name).read_bytes()))
        except (OSError, pa.ArrowException) as error:
            raise ReleaseRefused(
                f"{name} of the report cannot be read ({type(error).__name__}). "
                "Fix: remove the report's folder and materialize benchmark_report."
            ) from None
        if sha256_table(found) != sha256_table(wanted):
            raise ReleaseRefused(
                f"{name} of the report does not hold the judged answers. "
                "Fix: remove the report's folder and materialize benchmark_report."
            )


def gate_results(
    policy: PolicyDocument,
    checkpoint: Checkpoint,
    answers: JudgedAnswers,
    data: Location,
    bars: GateSettings,
) -> list[GateResult]:
    """The gates, computed from judged answers. data: the folder that may hold `calibrations/`."""
    own = without_repeats(answers.heldout, answers)
    _, results = gates_of_all_runs(
        judged_cells(own.to_pylist()),
        benchmark_blocks(
            answers.asked.benchmarks,
            without_repeats(answers.benchmarks, answers),
            answers.asked.settings["evaluation"]["seed"],
        ),
        checkpoint.seed,
        repeats_of(checkpoint, answers),
        bars,
        rules=rule_states(policy, answers.heldout, answers.asked.rules),
        judge=find_calibration(answers, data),
        judge_name=answers.judged.judge,
        bundled=answers.asked.model_id == BUNDLED,
        withdrawn=answers.asked.withdrawn,
    )
    return results


def _refused(problem: str, remedy: str) -> Verdict:
    remedy = remedy[:1].upper() + remedy[1:]
    return Verdict(False, f"NOT RELEASABLE: {problem}", [problem], [remedy], [])


def _release(
    chain: Chain, folder: Location, digests: dict[str, dict[str, str]], decision: Decision
) -> dict[str, Any]:
    policy, checkpoint = chain.policy, chain.checkpoint
    files = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in ("cases.parquet", "benchmark_cases.parquet", "report.json", "report.html")
        if (folder / name).exists()
    }
    approval = approval_of(folder)
    runs = [
        {"seed": c.seed, "checkpoint_id": c.checkpoint_id, "files": digests[c.checkpoint_id]}
        for c in (checkpoint, *checkpoint.repeats)
    ]
    return {
        "verdict": decision.verdict.line,
        "checkpoint_id": checkpoint.checkpoint_id,
        "checkpoint_files": digests[checkpoint.checkpoint_id],
        **({"training_runs": runs} if checkpoint.repeats else {}),
        "policy_id": policy.policy_id,
        "domain": policy.domain,
        "policy_hash": policy.content_hash,
        "model_id": checkpoint.model_id,
        "model_revision": checkpoint.model_revision,
        "report": folder.name,
        "report_files": files,
        "generations": sha256_table(chain.generations),
        "judgements": sha256_table(chain.judgements),
        "code_version": code_version(),
        "decided_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "allowances": [asdict(a) for a in decision.verdict.allowances],
        "approval": None if approval is None else asdict(approval),
        "gates": [asdict(result) for result in decision.gates],
    }


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()
