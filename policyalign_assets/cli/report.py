"""`policyalign report`: the verdict on a partition or deployment, in the terminal."""

import json
import os

import click

from policyalign_assets.cli.options import json_option


@click.command()
@click.argument("partition", metavar="PARTITION|DEPLOYMENT")
@click.option("--brief", is_flag=True, help="Leave out the tables, and print the verdict last.")
@json_option("Print one JSON object: verdict, gates, figures, and where the report is.")
@click.pass_context
def report(context: click.Context, partition: str, brief: bool, as_json: bool) -> None:
    """Print the verdict and the figures of a partition ('domain|policy') or deployment ('medical').

    Exit code 0 if the checkpoint is releasable, 1 if it is not or there is no report.
    """
    from policyalign_assets.files import location
    from policyalign_assets.report.show import deployment_summary, show, show_deployment, summary
    from policyalign_assets.runtime.results import NoResult, deployment_folder, split_partition

    data = location(os.environ.get("POLICYALIGN_DATA_DIR", "data"))
    try:
        if "|" in partition:
            split_partition(partition)
            found = summary(partition, data)
            releasable = found["verdict"]["releasable"]
            text = "" if as_json else show(partition, data, brief)
        else:
            folder = deployment_folder(data, partition)
            found = deployment_summary(folder)
            releasable = found["releasable"]
            text = "" if as_json else show_deployment(partition, folder)
    except FileNotFoundError as error:
        raise NoResult(
            f"there is no report for {partition!r}: {error.filename} does not exist. "
            f"Fix: policyalign align '{partition}'."
        ) from None
    click.echo(json.dumps(found, indent=1) if as_json else text)
    context.exit(0 if releasable is True else 1)
