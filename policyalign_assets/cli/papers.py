"""`policyalign papers`: model card, ML-BOM, Annex IV and OSCAL, from the bundle alone."""

import json
from pathlib import Path

import click

from policyalign_assets.cli.options import bundle_argument, json_option, public_keys_option


@click.command()
@bundle_argument
@public_keys_option
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the papers go; default: BUNDLE.papers.",
)
@json_option("Print one JSON object: the files, by their names.")
def papers(bundle: Path, public_keys: tuple[Path, ...], out: Path | None, as_json: bool) -> None:
    """Verify BUNDLE and write its papers.

    README.md (model card), ml-bom.cdx.json (CycloneDX), annex-iv.md (EU AI Act) and
    oscal-assessment-results.json. What a bundle does not hold is marked, never made up.
    """
    from policyalign_assets.releases.papers.write import write_papers
    from policyalign_assets.releases.verification import require_trusted

    require_trusted(bundle, list(public_keys))
    folder = out or bundle.absolute().with_name(f"{bundle.absolute().name}.papers")
    files = write_papers(bundle, folder)
    if as_json:
        click.echo(json.dumps({file.name: str(file) for file in files}, indent=1))
        return
    for file in files:
        click.echo(file)
