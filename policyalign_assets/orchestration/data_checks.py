"""Blocking checks of the data: training does not start on a policy whose rules are not all covered.

The owner of a policy may waive a rule in the front matter (`waive_starved: [C4]`). Waivers are read
from the files of now, since they change no data: after adding one, materialize the data again.
"""

import warnings
from collections.abc import Mapping

import dagster as dg
import pyarrow as pa
from dagster._core.definitions.metadata import RawMetadataValue
from dagster._core.event_api import PartitionKeyFilter
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus

from policyalign_assets.orchestration.partitions import domain_and_policy, partitions
from policyalign_assets.orchestration.resources import EXPERIMENT, Pipeline
from policyalign_assets.policy import parse_policy
from policyalign_assets.stages.coverage_facts import yields_of

# partitions on checks are a preview in the Dagster that the project pins; without them a check
# reads every partition's data
warnings.filterwarnings("ignore", message="Specifying a partitions_def on an AssetCheckSpec")
_INSTRUCTIONS = {"violating_instructions": dg.AssetIn("violating_instructions")}


@dg.asset_check(asset="violating_instructions", blocking=True, partitions_def=partitions)
def no_rule_is_starved(
    context: dg.AssetCheckExecutionContext, pipeline: Pipeline, violating_instructions: pa.Table
) -> dg.AssetCheckResult:
    """Every rule got the instructions that it should, or its owner waived it in the policy's
    front matter."""
    waived = _waived(context, pipeline)
    short = {
        rule: f"{y['violating']} of {y['wanted']}"
        for rule, y in yields_of(violating_instructions).items()
        if y["violating"] < y["wanted"]
    }
    left = {rule: got for rule, got in short.items() if rule not in waived}
    return _result(
        not left,
        f"starved: {_listed(left)}. Fix: raise synthesis.rounds, reword the rule, or write "
        f"'waive_starved: "
        f"[{', '.join(left)}]' into the policy's front matter"
        if left
        else "every rule has its instructions, or a waiver",
        starved=short or "none",
        waived=sorted(waived & set(short)) or "none",
    )


@dg.asset_check(
    asset="filtered_instructions",
    blocking=True,
    partitions_def=partitions,
    additional_ins=_INSTRUCTIONS,
)
def every_rule_has_its_minimum(
    context: dg.AssetCheckExecutionContext,
    pipeline: Pipeline,
    filtered_instructions: pa.Table,
    violating_instructions: pa.Table,
) -> dg.AssetCheckResult:
    """Each rule keeps at least `filtering.at_least` instructions to train on (or
    `filtering.per_rule`, where that is fewer)."""
    from policyalign_assets.filtering.select import RANKED

    wanted = min(pipeline.settings.filtering.at_least, pipeline.settings.filtering.per_rule)
    chosen = dict.fromkeys(yields_of(violating_instructions), 0)
    for row in filtered_instructions.to_pylist():
        chosen[row["rule_id"]] += row["selected"] and row["kind"] in RANKED
    waived = _waived(context, pipeline)
    short = {rule: n for rule, n in chosen.items() if n < wanted and rule not in waived}
    return _result(
        not short,
        f"fewer than {wanted} instructions selected: {_listed(short)}. Fix: synthesize more "
        f"(synthesis.per_rule), lower "
        f"filtering.minimum or filtering.at_least, or waive the rule"
        if short
        else f"each rule has {wanted} or more",
        selected=chosen,
        wanted=wanted,
    )


@dg.asset_check(
    asset="filtered_instructions",
    blocking=True,
    partitions_def=partitions,
    additional_ins=_INSTRUCTIONS,
)
def twin_ratio_is_in_band(
    pipeline: Pipeline, filtered_instructions: pa.Table, violating_instructions: pa.Table
) -> dg.AssetCheckResult:
    """Too few benign twins and the model learns to refuse; too many and it learns to answer.

    The allowed requests that the policy's author wrote for a rule count as its twins where there
    may be too few. They are never too many: how many there are is the author's decision.
    """
    from policyalign_assets.filtering.select import RANKED
    from policyalign_assets.synthesis.drafting import AUTHOR

    authors = {
        r["instruction_id"]
        for r in violating_instructions.select(["instruction_id", "kind", "model_id"]).to_pylist()
        if r["model_id"] == AUTHOR and r["kind"] == "neighbour"
    }
    chosen = [r for r in filtered_instructions.to_pylist() if r["selected"]]
    kinds = [r["kind"] for r in chosen]
    violating = kinds.count("violating")
    made = kinds.count("twin")
    twins = made + sum(r["instruction_id"] in authors for r in chosen)
    low, high = pipeline.settings.filtering.twins_low, pipeline.settings.filtering.twins_high
    if pipeline.settings.synthesis.twin_ratio == 0 or not violating:
        return _result(
            True, "no twins were asked for", duties=sum(k in RANKED for k in kinds) - violating
        )
    ratio = twins / violating
    in_band = low <= ratio and made / violating <= high
    fix = "" if in_band else ". Fix: synthesis.twin_ratio, or filtering.twins_low and twins_high"
    return _result(
        in_band,
        f"{ratio:.2f} twins for each violating instruction selected, {made / violating:.2f} of "
        f"them drafted; {low} to {high} are wanted{fix}",
        ratio=ratio,
        twins=twins,
    )


@dg.asset_check(
    asset="filtered_instructions",
    blocking=True,
    partitions_def=partitions,
    additional_ins=_INSTRUCTIONS,
)
def nothing_held_out_is_trained_on(
    filtered_instructions: pa.Table, violating_instructions: pa.Table
) -> dg.AssetCheckResult:
    """No selected row is, repeats or is in one cluster with a held-out one of its rule."""
    from policyalign_assets.filtering.select import conformance_set

    held = conformance_set(violating_instructions).to_pylist()
    ids, texts, clusters = (
        {r["instruction_id"] for r in held},
        {r["text"].lower() for r in held},
        {(r["rule_id"], r["cluster"]) for r in held},
    )
    of = {
        r["instruction_id"]: (r["rule_id"], r["cluster"])
        for r in violating_instructions.to_pylist()
    }
    leaked = [
        r["instruction_id"]
        for r in filtered_instructions.to_pylist()
        if r["selected"]
        and (
            r["instruction_id"] in ids
            or r["text"].lower() in texts
            or of[r["instruction_id"]] in clusters
        )
    ]
    return _result(
        not leaked,
        f"{len(leaked)} selected rows are held out"
        if leaked
        else f"{len(held)} rows are held out of training",
        held_out=len(held),
        leaked=leaked[:20] or "none",
    )


def failed_checks(instance: dg.DagsterInstance, partition: str) -> list[str]:
    """The checks above whose latest evaluation for `partition` failed.

    Dagster blocks only within one run. A later run of the training alone, such as the sensor's next
    one, must ask. Dagster has no public way to ask for a partition's checks yet, hence its storage.
    Evaluations of experiments do not count: they are about other data.
    """
    checks = (
        no_rule_is_starved,
        every_rule_has_its_minimum,
        twin_ratio_is_in_band,
        nothing_held_out_is_trained_on,
    )
    keys = [key for check in checks for key in check.check_keys]
    return sorted(key.name for key in keys if _last_failed(instance, key, partition))


def _last_failed(instance: dg.DagsterInstance, key: dg.AssetCheckKey, partition: str) -> bool:
    history = instance.event_log_storage.get_asset_check_execution_history(
        key,
        limit=100,
        status={
            AssetCheckExecutionRecordStatus.FAILED,
            AssetCheckExecutionRecordStatus.SUCCEEDED,
        },
        partition_filter=PartitionKeyFilter(key=partition),
    )
    for record in history:
        run = instance.get_run_by_id(record.run_id)
        if run is None or EXPERIMENT not in run.tags:
            return record.status == AssetCheckExecutionRecordStatus.FAILED
    return False


def _waived(context: dg.AssetCheckExecutionContext, pipeline: Pipeline) -> set[str]:
    domain, policy = domain_and_policy(context.partition_key)
    return set(parse_policy(pipeline.policies, policy, domain).waive_starved)


def _listed(items: Mapping[str, object]) -> str:
    return ", ".join(f"{rule} ({value})" for rule, value in items.items())


def _result(passed: bool, description: str, **metadata: RawMetadataValue) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(passed=passed, description=description, metadata=metadata)
