"""`policyalign release`: a signed bundle of a partition's current checkpoint."""

import os
from pathlib import Path

import click


@click.command()
@click.argument("partition")
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
def release(partition: str, author: str, key: Path, base: Path | None) -> None:
    """Draft a release of PARTITION ('domain|policy').

    The gates are computed anew from the stored cases and the checkpoint's bytes. Another person
    then approves the draft with `policyalign approve` and declares it with `policyalign publish`.
    """
    from policyalign_assets.engine.shipped_models import SHIPPED_MODELS
    from policyalign_assets.files import location
    from policyalign_assets.records import Checkpoint
    from policyalign_assets.releases.bundle import write_bundle
    from policyalign_assets.releases.canaries import write_canaries
    from policyalign_assets.releases.current import current_bundle
    from policyalign_assets.releases.evidence import gather
    from policyalign_assets.runtime.results import stored_record
    from policyalign_assets.settings import load_settings

    data = location(os.environ.get("POLICYALIGN_DATA_DIR", "data"))
    checkpoint = stored_record(data, "distilled_checkpoint", partition, Checkpoint)
    base = base or SHIPPED_MODELS.get(checkpoint.model_id)
    evidence = gather(partition, data, load_settings(), base)
    releases = Path(str(data)) / "releases"
    previous = current_bundle(releases, partition)
    bundle = write_bundle(evidence, releases, key, author)
    click.echo(f"drafted {bundle}")
    canaries = write_canaries(bundle, previous, key)
    if canaries is None:
        click.echo("no canaries: the model answers nearly as its base, so attest cannot tell them")
    else:
        click.echo(f"canaries {canaries}  (secret: for `policyalign attest` alone)")
    click.echo(f"next, another person: policyalign approve {bundle} --by NAME --key THEIR.key")
