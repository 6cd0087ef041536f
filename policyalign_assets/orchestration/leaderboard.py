"""One page over all partitions. It reads the report files that exist, so partitions without a report do no harm."""

import dagster as dg

from policyalign_assets.files import is_local
from policyalign_assets.orchestration.resources import Pipeline
from policyalign_assets.policy import PolicyError, applicable_domains, list_policies


@dg.asset(group_name="evidence", kinds={"duckdb", "html"}, deps=["benchmark_report"])
def leaderboard(context: dg.AssetExecutionContext, pipeline: Pipeline) -> dg.MaterializeResult:
    """Every partition's figures side by side, those without a report included; reads whatever reports there are."""
    from policyalign_assets.report.leaderboard import leaderboard as collect
    from policyalign_assets.report.leaderboard import to_markdown, write_leaderboard

    if not is_local(pipeline.data):
        raise dg.Failure(
            f"the leaderboard reads report files from a folder, and data_dir is {pipeline.data_dir!r}. Mend: copy reports/ from there "
            "and set POLICYALIGN_DATA_DIR to the copy.",
            allow_retries=False,
        )
    partitions = []
    for policy in list_policies(pipeline.policies):
        try:
            partitions += [
                (domain, policy) for domain in applicable_domains(pipeline.policies, policy)
            ]
        except PolicyError as error:
            context.log.warning(f"skipped: {error}")
    reports = pipeline.data / "reports"
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
