"""`policyalign keys`: the key pairs that sign releases."""

from pathlib import Path

import click

from policyalign_assets.releases.keys import create_keys


@click.group()
def keys() -> None:
    """Make the key pairs that sign releases."""


@keys.command()
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    default="keys",
    show_default=True,
    help="Where the two files go.",
)
@click.option("--name", default="release", show_default=True, help="Name of the key pair.")
def new(folder: Path, name: str) -> None:
    """Make a key pair: NAME.key signs, NAME.pub checks. No network is used."""
    private, public = create_keys(folder, name)
    click.echo(f"private key  {private}  (keep it secret, and off the machine that serves models)")
    click.echo(f"public key   {public}  (give it to whoever verifies releases)")
