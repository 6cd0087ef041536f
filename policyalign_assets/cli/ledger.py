"""`policyalign approve`, `publish` and `revoke`: states of a release, each signed by who acts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from policyalign_assets.cli.options import json_option
from policyalign_assets.releases import approvers
from policyalign_assets.releases.current import remember_released_report
from policyalign_assets.releases.keys import key_id, load_private_key
from policyalign_assets.releases.ledger import Event, Ledger
from policyalign_assets.releases.record import bundle_id, read_record


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        json_option("Print one JSON object: target, bundle, event, actor, current release."),
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
def approve(bundle: Path, actor: str, key: Path, as_json: bool) -> None:
    """Approve BUNDLE.

    Whoever drafted it cannot approve it. Where the policy or the settings name approvers, nobody
    else can.
    """
    approvers.refuse_unless_named(bundle, actor, key_id(load_private_key(key).public_key()))
    _append("approved", bundle, actor, key, as_json)
    unnamed = [a.where for a in approvers.approvers_of(bundle) if not a.named]
    if unnamed:
        click.echo(f"note: under {', '.join(unnamed)} {approvers.NOBODY}", err=True)


@click.command()
@_options
def publish(bundle: Path, actor: str, key: Path, as_json: bool) -> None:
    """Declare the approved BUNDLE released: it becomes the current one of its target."""
    _append("released", bundle, actor, key, as_json)


@click.command()
@_options
@click.option("--reason", required=True, help="Why it must not be used any more.")
def revoke(bundle: Path, actor: str, key: Path, as_json: bool, reason: str) -> None:
    """Revoke BUNDLE. The release before it becomes the current one again."""
    _append("revoked", bundle, actor, key, as_json, reason)


def _append(
    event: Event, bundle: Path, actor: str, key: Path, as_json: bool, reason: str = ""
) -> None:
    target = read_record(bundle).target
    ledger = Ledger(bundle.parent / "ledger.jsonl")
    entry = ledger.append(event, bundle_id(bundle), target, actor, load_private_key(key), reason)
    remember_released_report(bundle.absolute().parent, target)
    current = ledger.current(target)
    if as_json:
        made = {
            "target": target,
            "bundle_id": entry.bundle_id,
            "event": event,
            "actor": entry.actor,
            "time": entry.time,
            "reason": entry.reason or None,
            "current": current,
        }
        click.echo(json.dumps(made, indent=1))
        return
    click.echo(f"{target}: bundle {entry.bundle_id[:16]} {event} by {entry.actor}")
    click.echo(f"current release: {current[:16] if current else 'none'}")
