"""One page over all partitions. It reads the report files that exist, and no others."""

from typing import Any

import dagster as dg

from policyalign_assets.files import is_local
from policyalign_assets.orchestration.found_policies import find_policies
from policyalign_assets.orchestration.partitions import domain_and_policy
from policyalign_assets.orchestration.resources import Pipeline, deployed_settings

DEPLOYED = deployed_settings()


@dg.asset(
    group_name="evidence",
    kinds={"duckdb", "html"},
    deps=["benchmark_report"],
    # `eager` would wait until every partition has a report
    automation_condition=dg.AutomationCondition.any_deps_updated()
    & ~dg.AutomationCondition.in_progress(),
)
def leaderboard(context: dg.AssetExecutionContext, pipeline: Pipeline) -> dg.MaterializeResult[Any]:
    """Every partition's figures side by side, and which partitions have no report yet."""
    from policyalign_assets.report.leaderboard import leaderboard as collect
    from policyalign_assets.report.leaderboard import to_markdown, write_leaderboard

    data = pipeline.data
    if not is_local(data):
        raise dg.Failure(
            f"the leaderboard reads report files from a folder, and data_dir is "
            f"{pipeline.data_dir!r}. Fix: copy reports/ from there and set POLICYALIGN_DATA_DIR to "
            "the copy.",
            allow_retries=False,
        )
    found = find_policies(pipeline.policies, context.log.warning)
    partitions = [domain_and_policy(key) for key in found.keys]
    reports = data / "reports"
    lines = collect(reports, partitions)
    page = write_leaderboard(lines, reports)
    return dg.MaterializeResult(
        metadata={
            "page": dg.MetadataValue.path(str(page)),
            "summary": dg.MetadataValue.md(to_markdown(lines)),
            "dagster/row_count": len(lines),
            "without a report": sum(line.why_not is not None for line in lines),
            "releasable": sum(line.released for line in lines),
        }
    )


leaderboard_refresh = dg.AutomationConditionSensorDefinition(
    "leaderboard_refresh",
    target=dg.AssetSelection.assets("leaderboard"),
    default_status=dg.DefaultSensorStatus.RUNNING
    if DEPLOYED.automation.enabled
    else dg.DefaultSensorStatus.STOPPED,
    description="Makes the leaderboard again after a new report.",
)
