"""`policyalign status`: what is out of date, and why."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from policyalign_assets.cli.options import policies_option

if TYPE_CHECKING:
    from policyalign_assets.orchestration.status import PartitionStatus, Status


@click.command()
@click.argument("partitions", nargs=-1, metavar="[PARTITION]...")
@policies_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
@click.pass_context
def status(
    context: click.Context, partitions: tuple[str, ...], policies_dir: Path, as_json: bool
) -> None:
    """Say which stages of each PARTITION or deployment are out of date, and why; default: all.

    It compares the present policies and settings with what Dagster's history says each result was
    made from, as the sensor does. It starts nothing.
    Exit code 0 if all is up to date, 1 if something is not or a policy cannot be read.
    """
    import dagster as dg

    from policyalign_assets.orchestration.instance import enter_project
    from policyalign_assets.orchestration.status import find_status
    from policyalign_assets.policy.deployments import NAME as DEPLOYMENT_NAME
    from policyalign_assets.runtime.results import split_partition
    from policyalign_assets.settings import load_settings

    for partition in partitions:
        if not DEPLOYMENT_NAME.fullmatch(partition):
            split_partition(partition)
    policies_dir = policies_dir.absolute()
    with dg.DagsterInstance.from_config(str(enter_project())) as instance:
        found = find_status(instance, policies_dir, load_settings(), partitions)
    if as_json:
        click.echo(json.dumps({"up_to_date": found.up_to_date, **asdict(found)}, indent=1))
    else:
        for line in _lines(found):
            click.echo(line)
    context.exit(0 if found.up_to_date else 1)


def _lines(found: "Status") -> Iterator[str]:
    for partition in found.partitions:
        yield from _partition(partition, f"policyalign align '{partition.partition}'")
    for deployment in found.deployments:
        name = deployment.partition
        yield from _partition(deployment, f"policyalign align {name}")
    if found.never_made:
        yield f"deployments that were never made: {', '.join(found.never_made)}"
    for partition_key in found.unknown:
        yield (
            f"{partition_key}: no policy makes this partition. Fix: see that the policy's folder "
            "exists and that its front matter lists the domain."
        )
    for policy, mistake in found.broken.items():
        yield f"{policy} cannot be read: {mistake}"
    if not (found.partitions or found.deployments) and not found.broken and not found.unknown:
        yield "There is no policy. Fix: write policies/NAME/policy.md, or `policyalign import`."


def _partition(partition: "PartitionStatus", command: str) -> Iterator[str]:
    busy = f" (run {partition.running[:8]} is making it)" if partition.running else ""
    if partition.up_to_date:
        warm = f"; its training went on from {partition.parent}" if partition.parent else ""
        yield f"{partition.partition}: up to date{busy}{warm}"
        return
    yield f"{partition.partition}: OUT OF DATE{busy}"
    for stage in partition.stages:
        yield f"  {stage.stage:24}{stage.state}{f': {stage.why}' if stage.why else ''}"
    yield f"  to make it: {command}"
