"""Shows what the model doctor found, for the partition of the run.

The stages examine the model before they work, and keep the result (see `doctor.examine`). This
check reads it. A stage that the doctor has stopped makes nothing to check, so its result is
reported by `report_refusal`.
"""

import html

import dagster as dg
from dagster._core.events import DagsterEvent, DagsterEventType

from policyalign_assets.doctor.kept import newest
from policyalign_assets.doctor.record import Examination
from policyalign_assets.orchestration.partitions import domain_and_policy, partitions
from policyalign_assets.orchestration.resources import Pipeline
from policyalign_assets.policy import PolicyDocument, PolicyError, parse_policy

ASSET = "sensitivity_scores"  # every configuration has examined the model by then
NAME = "model_is_fit"


@dg.asset_check(asset=ASSET, name=NAME, partitions_def=partitions)
def model_is_fit(context: dg.AssetCheckExecutionContext, pipeline: Pipeline) -> dg.AssetCheckResult:
    """The model, its tokenizer and the policy fit together: what `policyalign doctor` examines."""
    domain, policy_id = domain_and_policy(context.partition_key)
    policy = parse_policy(pipeline.policies, policy_id, domain)
    result = _kept(pipeline, policy)
    if result is None:
        return dg.AssetCheckResult(
            passed=False,
            severity=dg.AssetCheckSeverity.WARN,
            description="no examination of the model was kept for this policy and these settings. "
            f"Fix: policyalign doctor {policy_id} --domain {domain}, or materialize {ASSET} again.",
        )
    return dg.AssetCheckResult(
        passed=result.ok, description=_summary(result), metadata=_metadata(result)
    )


def report_refusal(context: dg.AssetExecutionContext, pipeline: Pipeline) -> None:
    """Records a failed check where the doctor has stopped a stage of this run."""
    domain, policy_id = domain_and_policy(context.partition_key)
    try:
        policy = parse_policy(pipeline.policies, policy_id, domain)
    except PolicyError:
        return  # the stage has failed for that reason
    result = _kept(pipeline, policy)
    if result is None or result.ok:
        return
    evaluation = dg.AssetCheckEvaluation(
        dg.AssetKey(ASSET),
        NAME,
        passed=False,
        description=_summary(result),
        metadata=_metadata(result),
        partition=context.partition_key,
    )
    # Under this run's id: Dagster takes one evaluation without a run for each partition, and a
    # second refusal would end in an error of its database.
    context.instance.report_dagster_event(
        DagsterEvent(
            DagsterEventType.ASSET_CHECK_EVALUATION.value,
            job_name=context.job_name,
            event_specific_data=evaluation,
        ),
        run_id=context.run.run_id,
    )


def _kept(pipeline: Pipeline, policy: PolicyDocument) -> Examination | None:
    settings = pipeline.settings
    return newest(pipeline.data, settings, policy, settings.synthesis.teacher_check)


def _summary(result: Examination) -> str:
    notes = sum(finding.level == "note" for finding in result.findings)
    if result.ok:
        return f"no errors, {notes} notes"
    return "; ".join(map(str, result.errors))


def _metadata(result: Examination) -> dict[str, dg.MetadataValue]:
    # Templates and tokens are quoted in findings, and the UI renders Markdown with HTML in it.
    lines = [f"- {finding.level}: {html.escape(str(finding))}" for finding in result.findings]
    return {
        "model": dg.MetadataValue.text(result.model_id),
        "model revision": dg.MetadataValue.text(result.model_revision or "unknown"),
        "findings": dg.MetadataValue.md("\n".join(lines)),
    }
