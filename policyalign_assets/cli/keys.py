"""`policyalign keys`: the key pairs that sign releases."""

import json
from pathlib import Path

import click

from policyalign_assets.cli.options import json_option
from policyalign_assets.releases.keys import create_keys, key_id, load_public_key


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
@json_option("Print one JSON object: private, public, key_id.")
def new(folder: Path, name: str, as_json: bool) -> None:
    """Make a key pair: NAME.key signs, NAME.pub checks. No network is used."""
    private, public = create_keys(folder, name)
    identity = key_id(load_public_key(public))
    if as_json:
        made = {"private": str(private), "public": str(public), "key_id": identity}
        click.echo(json.dumps(made, indent=1))
        return
    click.echo(f"private key  {private}  (keep it secret, and off the machine that serves models)")
    click.echo(f"public key   {public}  (give it to whoever verifies releases)")
    click.echo(f"key id       sha256:{identity}  (may stand behind a name in `approvers`)")
