"""`policyalign align`: what `dagster asset materialize` does, with progress instead of a log."""

import os
import subprocess
import sys
import time
from pathlib import Path

import click

from policyalign_assets.cli.progress import RunLog
from policyalign_assets.orchestration.instance import instance_folder
from policyalign_assets.runtime.results import (
    NoResult,
    split_partition,
    stored_of_deployment,
    stored_record,
)

DEFINITIONS = "policyalign_assets.definitions"


@click.command()
@click.argument("partitions", nargs=-1, required=True, metavar="PARTITION|DEPLOYMENT...")
@click.option("--log", is_flag=True, help="Print Dagster's own log instead of progress.")
@click.pass_context
def align(context: click.Context, partitions: tuple[str, ...], log: bool) -> None:
    """Align the model with each PARTITION ('domain|policy'), from the policy's text to the report.

    A DEPLOYMENT ('medical') is one model under several policies, which are aligned before.
    The run is a Dagster run like any other: the UI shows it, and what it made is up to date there.
    """
    from policyalign_assets.policy.deployments import NAME
    from policyalign_assets.stages.registry import DEPLOYMENT_STAGES, STAGES

    for partition in partitions:
        if not NAME.fullmatch(partition):
            split_partition(partition)
    home = instance_folder()  # raises where there is none
    begun = time.monotonic()
    if code := _materialize(["--select", "policy_catalog"], (), log, home):
        context.exit(code)
    for partition in partitions:
        click.secho(f"aligning {partition}", bold=True)
        stages = tuple(STAGES) if "|" in partition else tuple(DEPLOYMENT_STAGES)
        if code := _materialize(_of_partition(partition, stages), stages, log, home):
            context.exit(code)
        if not _may_stand(partition):
            click.secho(
                "The report on this warm start is not releasable. Training starts from the base "
                "model.",
                bold=True,
            )
            again = stages[stages.index(_trained_by(partition)) :]
            if code := _materialize(_of_partition(partition, again), again, log, home):
                context.exit(code)
    click.echo(f"done in {time.monotonic() - begun:.0f} s")


def _of_partition(partition: str, stages: tuple[str, ...]) -> list[str]:
    """Dagster's arguments. After a partition's stages, the page of all partitions is made too."""
    selection = [*stages, *(("leaderboard",) if "|" in partition else ())]
    return ["--select", ",".join(selection), "--partition", partition]


def _trained_by(partition: str) -> str:
    return "distilled_checkpoint" if "|" in partition else "deployed_checkpoint"


def _may_stand(partition: str) -> bool:
    """Whether the new report may stand, or the model must be trained from the base model."""
    from policyalign_assets.files import location
    from policyalign_assets.records import ReportRecord

    data = location(os.environ.get("POLICYALIGN_DATA_DIR", "data"))
    try:
        if "|" in partition:
            made = stored_record(data, "benchmark_report", partition, ReportRecord)
        else:
            made = stored_of_deployment(data, "deployment_report", partition, ReportRecord)
    except NoResult:  # an experiment keeps its results elsewhere
        return True
    return made.may_stand


def _materialize(selection: list[str], stages: tuple[str, ...], log: bool, home: Path) -> int:
    """Runs `dagster asset materialize` in the project. Returns 0, or 1 for any failure.

    Dagster reads the paths in dagster.yaml as relative to the folder that it is started in.
    """
    command = [sys.executable, "-m", "dagster", "asset", "materialize", "-m", DEFINITIONS]
    start = None if "DAGSTER_HOME" in os.environ else home
    environ = {**os.environ, "PYTHONWARNINGS": os.environ.get("PYTHONWARNINGS", "ignore")}
    if log:
        done = subprocess.run([*command, *selection], env=environ, cwd=start)
        return int(done.returncode != 0)
    lines = RunLog(click.echo, stages)
    with subprocess.Popen(
        [*command, *selection],
        env=environ,
        cwd=start,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        tail: list[str] = []
        for line in process.stdout:
            lines.feed(line.rstrip("\n"))
            tail = [*tail, line.rstrip("\n")][-20:]
    lines.finish()
    if process.returncode:
        click.secho("The run failed:", fg="red", err=True)
        for line in (lines.errors or tail)[-20:]:
            click.echo(f"  {line}", err=True)
    return int(process.returncode != 0)
