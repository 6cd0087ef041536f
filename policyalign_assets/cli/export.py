"""`policyalign export`: the released model in a form that other programs serve."""

from pathlib import Path

import click

from policyalign_assets.cli.options import bundle_argument, json_option, public_keys_option


@click.command()
@bundle_argument
@click.option(
    "--merged",
    type=click.Path(path_type=Path),
    help="Write a plain transformers folder here: base model and adapter in one.",
)
@click.option("--gguf", type=click.Path(path_type=Path), help="Write a folder with a GGUF file.")
@public_keys_option
@click.option(
    "--base",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of the base model, if it is not one that ships with the project.",
)
@click.option(
    "--most-flipped",
    type=click.FloatRange(0, 0.05),
    default=0.01,
    show_default=True,
    help="Share of the gated cases whose outcome may differ from that of the release.",
)
@json_option("Print what `export.json` says.")
def export(
    bundle: Path,
    merged: Path | None,
    gguf: Path | None,
    public_keys: tuple[Path, ...],
    base: Path | None,
    most_flipped: float,
    as_json: bool,
) -> None:
    """Verify BUNDLE and export its model, if the export behaves as what was released.

    The export answers the cases of the gates again. It is refused if a gate does not pass, a suite
    got worse, or too many cases have another outcome.
    """
    from policyalign_assets.engine.shipped_models import SHIPPED_MODELS
    from policyalign_assets.releases.export import RECORD, export_merged
    from policyalign_assets.releases.gguf_export import export_gguf
    from policyalign_assets.releases.record import read_record
    from policyalign_assets.releases.verification import require_trusted

    if (merged is None) == (gguf is None):
        raise click.UsageError("Give --merged FOLDER or --gguf FOLDER.")
    shipped = SHIPPED_MODELS.get(read_record(bundle).base.model_id)
    require_trusted(bundle, list(public_keys), base or shipped)

    def say(line: str) -> None:
        click.echo(line, err=True)

    if merged is not None:
        made = export_merged(bundle, merged, base, most_flipped, say)
    else:
        assert gguf is not None
        made = export_gguf(bundle, gguf, base, most_flipped, say)
    if as_json:
        click.echo((made.folder / RECORD).read_text(encoding="utf-8").rstrip())
        return
    click.echo(f"exported {made.folder}")
    for policy, again in made.again.items():
        passed = sum(g.passed is True for g in again.gates)
        click.echo(f"{policy}: {passed} of {len(again.gates)} gates passed")
        click.echo(
            f"  drift: {again.flipped:.2%} of {again.compared} cases have another outcome, "
            f"{again.same_text:.1%} of the answers are the same to the letter"
        )
        for suite, count in again.not_asked.items():
            click.echo(f"  not asked again: {count} cases of {suite}")
