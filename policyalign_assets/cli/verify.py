"""`policyalign verify`: may this bundle be used?"""

import json
from dataclasses import asdict
from pathlib import Path

import click

from policyalign_assets.cli.options import bundle_argument, public_keys_option
from policyalign_assets.releases.verification import trusted, verify

MARKS = {True: "ok       ", False: "FAILED   ", None: "UNKNOWN  "}


@click.command("verify")
@bundle_argument
@public_keys_option
@click.option(
    "--base",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of the base model, whose files are then compared.",
)
@click.option("--ledger", type=click.Path(dir_okay=False, path_type=Path), help="Another ledger.")
@click.option("--json", "as_json", is_flag=True, help="Print the checks as JSON.")
@click.pass_context
def verify_command(
    context: click.Context,
    bundle: Path,
    public_keys: tuple[Path, ...],
    base: Path | None,
    ledger: Path | None,
    as_json: bool,
) -> None:
    """Check everything that BUNDLE claims. Needs no network and no settings.

    BUNDLE is a folder, or 'domain|policy' or a deployment for the release that the ledger calls
    current.
    """
    checks = verify(bundle, list(public_keys), base, ledger)
    good = trusted(checks)
    if as_json:
        click.echo(json.dumps({"trusted": good, "checks": [asdict(c) for c in checks]}, indent=1))
    else:
        click.echo("VERIFIED" if good else "NOT VERIFIED: do not use this bundle")
        for check in checks:
            click.echo(f"  {MARKS[check.passed]}{check.name}: {check.detail}")
    context.exit(0 if good else 1)
