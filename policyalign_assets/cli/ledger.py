"""`policyalign approve`, `publish` and `revoke`: states of a release, each signed by who acts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from policyalign_assets.releases.bundle import bundle_id, read_record
from policyalign_assets.releases.current import remember_released_report
from policyalign_assets.releases.keys import load_private_key
from policyalign_assets.releases.ledger import Event, Ledger


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path)),
        click.option("--by", "actor", required=True, help="Who acts."),
        click.option(
            "--key",
            type=click.Path(dir_okay=False, path_type=Path),
            required=True,
            help="The private key of who acts.",
        ),
    ):
        command = option(command)
    return command


@click.command()
@_options
def approve(bundle: Path, actor: str, key: Path) -> None:
    """Approve BUNDLE. Whoever drafted it cannot approve it."""
    _append("approved", bundle, actor, key)


@click.command()
@_options
def publish(bundle: Path, actor: str, key: Path) -> None:
    """Declare the approved BUNDLE released: it becomes the current one of its target."""
    _append("released", bundle, actor, key)


@click.command()
@_options
@click.option("--reason", required=True, help="Why it must not be used any more.")
def revoke(bundle: Path, actor: str, key: Path, reason: str) -> None:
    """Revoke BUNDLE. The release before it becomes the current one again."""
    _append("revoked", bundle, actor, key, reason)


def _append(event: Event, bundle: Path, actor: str, key: Path, reason: str = "") -> None:
    target = read_record(bundle).target
    ledger = Ledger(bundle.parent / "ledger.jsonl")
    entry = ledger.append(event, bundle_id(bundle), target, actor, load_private_key(key), reason)
    remember_released_report(bundle.absolute().parent, target)
    current = ledger.current(target)
    click.echo(f"{target}: bundle {entry.bundle_id[:16]} {event} by {entry.actor}")
    click.echo(f"current release: {current[:16] if current else 'none'}")
