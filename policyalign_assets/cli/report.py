"""`policyalign report`: the verdict on a partition, in the terminal."""

import os

import click


@click.command()
@click.argument("partition")
@click.option("--brief", is_flag=True, help="Leave out the tables, and print the verdict last.")
@click.pass_context
def report(context: click.Context, partition: str, brief: bool) -> None:
    """Print the verdict and the figures of PARTITION ('domain|policy').

    Exit code 0 if the checkpoint is releasable, 1 if it is not or there is no report.
    """
    from policyalign_assets.files import location
    from policyalign_assets.report.show import show
    from policyalign_assets.runtime.results import NoResult, split_partition

    split_partition(partition)
    data = location(os.environ.get("POLICYALIGN_DATA_DIR", "data"))
    try:
        text = show(partition, data, brief)
    except FileNotFoundError as error:
        raise NoResult(
            f"there is no report for {partition!r}: {error.filename} does not exist. "
            f"Fix: policyalign align '{partition}'."
        ) from None
    click.echo(text)
    verdict = text.splitlines()[-1 if brief else 0]
    context.exit(1 if verdict.startswith("NOT RELEASABLE") else 0)
