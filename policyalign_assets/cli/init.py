"""`policyalign init`: a folder of one's own."""

import json
from pathlib import Path

import click

from policyalign_assets.cli.options import json_option
from policyalign_assets.scaffold import write_scaffold


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path), default=".")
@json_option("Print one JSON object: folder, files written, files kept.")
def init(folder: Path, as_json: bool) -> None:
    """Write what FOLDER needs: Dagster's settings, a .gitignore and an example policy.

    Files that are there already stay as they are.
    """
    written, kept = write_scaffold(folder)
    if as_json:
        click.echo(json.dumps({"folder": str(folder), "written": written, "kept": kept}, indent=1))
        return
    for name in written:
        click.echo(f"written  {folder / name}")
    for name in kept:
        click.echo(f"kept     {folder / name} (it was there already)")
    click.echo(
        "\nNext, in that folder:\n"
        "  policyalign lint example          # how each rule is read\n"
        "  policyalign align 'medical|example'\n"
        "  policyalign report 'medical|example'"
    )
