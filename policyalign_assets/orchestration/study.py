"""The study as assets: an arm of the sweep file is a partition, and one page shows all of them.

Nothing makes them by itself: materialize them in the UI, or run `policyalign study`, which does
the same work and keeps the same files. An arm whose results are up to date costs seconds, so
materializing all partitions runs again only what a change touches.
"""

import os
from pathlib import Path
from typing import Any

import click
import dagster as dg

from policyalign_assets.files import is_local
from policyalign_assets.orchestration.resources import Pipeline
from policyalign_assets.study.sweep import SHIPPED, Sweep, SweepError, read_sweep


def deployed_sweep() -> Sweep:
    """The sweep that `POLICYALIGN_STUDY` names, or the shipped one. Raises ClickException."""
    try:
        return read_sweep(Path(os.environ.get("POLICYALIGN_STUDY") or SHIPPED))
    except SweepError as error:
        raise click.ClickException(f"{error} It was named by POLICYALIGN_STUDY.") from None


SWEEP = deployed_sweep()
arms = dg.StaticPartitionsDefinition(list(SWEEP.arms))


@dg.asset(group_name="study", kinds={"pytorch"}, partitions_def=arms, pool="gpu")
def study_arm(context: dg.AssetExecutionContext, pipeline: Pipeline) -> dg.MaterializeResult[Any]:
    """One arm of the study with every seed: what it refuses, answers and costs."""
    from policyalign_assets.study.results import digest_of
    from policyalign_assets.study.run import run_study, state_of

    work = _work(pipeline)
    run_study(SWEEP, work, pipeline.policies, (context.partition_key,), log=context.log.info)
    state = state_of(SWEEP, work, pipeline.policies, (context.partition_key,))
    return dg.MaterializeResult(
        data_version=dg.DataVersion(digest_of(state.results)),
        metadata={
            "results": len(state.results),
            "missing": state.missing_lines() or "none",
            "failed": [f"seed {r.seed}: {r.failed}" for r in state.results if r.failed] or "none",
        },
    )


@dg.asset(group_name="study", kinds={"markdown"}, deps=[study_arm])
def study_report(
    context: dg.AssetExecutionContext, pipeline: Pipeline
) -> dg.MaterializeResult[Any]:
    """The arms compared over seeds, on one page with plots. It names what is missing."""
    from policyalign_assets.study.results import digest_of
    from policyalign_assets.study.run import state_of, write_page

    work = _work(pipeline)
    state = state_of(SWEEP, work, pipeline.policies)
    page = work / "study.md"
    write_page(SWEEP, state, page)
    return dg.MaterializeResult(
        data_version=dg.DataVersion(digest_of(state.results)),
        metadata={
            "page": dg.MetadataValue.path(str(page)),
            "study": dg.MetadataValue.md(page.read_text(encoding="utf-8")),
            "results": len(state.results),
            "missing": len(state.missing),
            "made by earlier code": state.earlier,
        },
    )


def _work(pipeline: Pipeline) -> Path:
    data = pipeline.data
    if not is_local(data):
        raise dg.Failure(
            f"the study keeps its results in a folder, and data_dir is {pipeline.data_dir!r}. "
            "Fix: set POLICYALIGN_DATA_DIR to a folder of this machine for the study.",
            allow_retries=False,
        )
    return data / "study"
