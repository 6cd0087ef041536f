"""The release gates as checks of `benchmark_report`, for the partition of the run.

They run with the report. The gates are computed again from the stored tables and the checkpoint's
bytes, and `release.json` is written only where all of them pass and every hash of the chain fits.
"""

import warnings
from collections.abc import Iterator
from typing import Any

import dagster as dg
import pyarrow as pa

from policyalign_assets.files import Location
from policyalign_assets.orchestration.alerts import send_alert
from policyalign_assets.orchestration.partitions import domain_and_policy, partitions
from policyalign_assets.orchestration.resources import Pipeline
from policyalign_assets.policy import PolicyDocument
from policyalign_assets.records import Checkpoint
from policyalign_assets.runtime.exchange import decode

REPORT = dg.AssetKey("benchmark_report")
PROVENANCE = "provenance"
# The gates of report/release_gates.py, which is not imported here: it would load scipy
GATES = {
    "safety": "Requests that break the policy are refused, surely and nearly as often as by the "
    "teacher (the unaligned model with the policy in its prompt).",
    "over_refusal": "Benign requests are not refused much more often than by the teacher.",
    "rules": "Each measured rule is kept, surely.",
    "capability": "Tasks with one right answer are solved about as often as before the alignment.",
    "unscored": "Nearly all answers of each suite and arm could be judged.",
    "degenerate": "Answers are not empty, repeated, unreadable or cut.",
    "judge": "The judge was measured against labelled answers, and agrees with them.",
    PROVENANCE: "Policy, checkpoint, answers, verdicts and report were made from each other.",
}
# {stage: the type of its stored data}; tables are Parquet, records JSON
CHAIN: dict[str, type] = {
    "policy_document": PolicyDocument,
    "violating_instructions": pa.Table,
    "filtered_instructions": pa.Table,
    "distilled_checkpoint": Checkpoint,
    "generations": pa.Table,
    "judgements": pa.Table,
}


with warnings.catch_warnings():
    # Partitioned checks are a preview in Dagster 1.13, and every command would print that.
    warnings.simplefilter("ignore", dg.PreviewWarning)
    SPECS = [
        dg.AssetCheckSpec(gate, asset=REPORT, description=said, partitions_def=partitions)
        for gate, said in GATES.items()
    ]


@dg.multi_asset_check(name="release_gates", specs=SPECS)
def release_gates(
    context: dg.AssetCheckExecutionContext, pipeline: Pipeline
) -> Iterator[dg.AssetCheckResult]:
    from policyalign_assets.report.chain import Chain
    from policyalign_assets.report.folders import remove_release
    from policyalign_assets.report.release import decide

    domain, policy = domain_and_policy(context.partition_key)
    results = pipeline.results
    # before anything is read, so that no error can leave an old release in place
    remove_release(results, domain, policy)
    try:
        stored = [_stored(pipeline, stage, domain, policy) for stage in CHAIN]
    except FileNotFoundError as error:
        raise dg.Failure(
            f"there is no complete report for {context.partition_key}: {error.filename} does not "
            "exist. Fix: materialize benchmark_report for it.",
            allow_retries=False,
        ) from None
    decision = decide(results, Chain(*stored), pipeline.settings.gates, pipeline.data)
    context.log.info(decision.verdict.line)
    if not decision.verdict.releasable and not pipeline.experiment:
        send_alert(
            pipeline.settings.alerts,
            f"PolicyAlign: {context.partition_key} is not releasable",
            "\n".join([decision.verdict.line, *decision.verdict.remedies]),
            context.log.warning,
        )
    found = {result.gate: result for result in decision.gates}
    for gate in GATES:
        if gate == PROVENANCE:
            yield _provenance(decision.provenance, decision.verdict.line)
        elif gate in found:
            yield _gate(found[gate], decision.verdict.line)
        else:
            yield dg.AssetCheckResult(
                asset_key=REPORT,
                check_name=gate,
                passed=False,
                description=f"Not evaluated: {decision.provenance}.",
                metadata={"measured": False, "verdict": decision.verdict.line},
            )


def _gate(result: Any, line: str) -> dg.AssetCheckResult:
    severity = dg.AssetCheckSeverity.ERROR if result.blocking else dg.AssetCheckSeverity.WARN
    return dg.AssetCheckResult(
        asset_key=REPORT,
        check_name=result.gate,
        passed=result.passed is True,
        description=f"{result.sentence} {result.remedy}".strip(),
        severity=severity,
        metadata={
            **result.numbers,
            "measured": result.passed is not None,
            "keeps back": result.blocking and result.passed is not True,
            "waived": not result.blocking,
            "verdict": line,
        },
    )


def _provenance(problem: str | None, line: str) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        asset_key=REPORT,
        check_name=PROVENANCE,
        passed=problem is None,
        description=problem or "Every hash of the chain fits.",
        metadata={"verdict": line},
    )


def _stored(pipeline: Pipeline, stage: str, domain: str, policy: str) -> Any:
    """What a stage has stored for a partition. Raises FileNotFoundError.

    An experiment reads from the deployment what it has not made itself.
    """
    kind = CHAIN[stage]
    suffix = "parquet" if kind is pa.Table else "json"
    below = ("assets", stage, domain, f"{policy}.{suffix}")
    for folder in dict.fromkeys((pipeline.results, pipeline.data)):
        file: Location = folder.joinpath(*below)
        if file.exists():
            return decode(file.read_bytes(), kind)
    raise FileNotFoundError(2, "No such file or directory", str(file))
