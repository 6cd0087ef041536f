"""`policyalign release`: a signed bundle of a partition's or deployment's current checkpoint."""

import json
import os
from pathlib import Path

import click

from policyalign_assets.cli.options import json_option, policies_option


@click.command()
@click.argument("target", metavar="PARTITION|DEPLOYMENT")
@click.option("--by", "author", required=True, help="Who drafts the release.")
@click.option(
    "--key",
    type=click.Path(dir_okay=False, path_type=Path),
    default="keys/release.key",
    show_default=True,
    help="The private key that signs it.",
)
@click.option(
    "--base",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of the base model, if it is not one that ships with the project.",
)
@policies_option
@json_option("Print one JSON object: bundle, target, policies, approvers, canaries.")
def release(
    target: str, author: str, key: Path, base: Path | None, policies_dir: Path, as_json: bool
) -> None:
    """Draft a release of a partition ('domain|policy') or of a deployment ('medical').

    The gates are computed anew from the stored cases and the checkpoint's bytes, for a deployment
    under each of its policies. Another person then approves the draft with `policyalign approve`
    and declares it with `policyalign publish`.
    """
    from policyalign_assets.engine.shipped_models import SHIPPED_MODELS
    from policyalign_assets.files import location
    from policyalign_assets.releases.approvers import approvers_of
    from policyalign_assets.releases.approvers import said as approvers_said
    from policyalign_assets.releases.bundle import write_bundle
    from policyalign_assets.releases.canaries import write_canaries
    from policyalign_assets.releases.current import current_bundle
    from policyalign_assets.releases.evidence import checkpoint_of, gather
    from policyalign_assets.releases.record import bundle_id, is_deployment, read_record
    from policyalign_assets.settings import load_settings

    data = location(os.environ.get("POLICYALIGN_DATA_DIR", "data"))
    base = base or SHIPPED_MODELS.get(checkpoint_of(target, data).model_id)
    evidence = gather(target, data, load_settings(), base, policies_dir)
    releases = Path(str(data)) / "releases"
    previous = current_bundle(releases, target)
    bundle = write_bundle(evidence, releases, key, author)
    canaries = write_canaries(bundle, previous, key)
    policies = [policy.policy_id for policy in read_record(bundle).policies]
    if as_json:
        made = {
            "bundle": str(bundle),
            "bundle_id": bundle_id(bundle),
            "target": target,
            "policies": policies,
            "approvers": {a.where: a.named for a in approvers_of(bundle)},
            "parent": read_record(bundle).parent,
            "canaries": str(canaries) if canaries else None,
        }
        click.echo(json.dumps(made, indent=1))
        return
    click.echo(f"drafted {bundle}")
    if is_deployment(target):
        click.echo(f"policies {', '.join(policies)}")
    if canaries is None:
        click.echo("no canaries: the model answers nearly as its base, so attest cannot tell them")
    else:
        click.echo(f"canaries {canaries}  (secret: for `policyalign attest` alone)")
    for line in approvers_said(bundle, author):
        click.echo(line)
    click.echo(f"next, another person: policyalign approve {bundle} --by NAME --key THEIR.key")
