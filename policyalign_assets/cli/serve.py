"""`policyalign serve`: vLLM, with weights that were verified just before."""

import json
import os
import shutil
from pathlib import Path

import click

from policyalign_assets.cli.options import bundle_argument, json_option, public_keys_option
from policyalign_assets.engine.shipped_models import SHIPPED_MODELS
from policyalign_assets.releases.record import read_record
from policyalign_assets.releases.serving import serve_plan
from policyalign_assets.releases.verification import require_trusted


@click.command()
@bundle_argument
@public_keys_option
@click.option(
    "--base",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of the base model, whose files are compared first.",
)
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True)
@click.option("--start", is_flag=True, help="Start vLLM, instead of printing the command.")
@json_option("Print one JSON object: command, name, alias.")
def serve(
    bundle: Path,
    public_keys: tuple[Path, ...],
    base: Path | None,
    host: str,
    port: int,
    start: bool,
    as_json: bool,
) -> None:
    """Verify BUNDLE, then print the command that serves it with vLLM, or start it.

    BUNDLE is a folder, or 'domain|policy' or a deployment for the release that the ledger calls
    current.
    """
    base = base or SHIPPED_MODELS.get(read_record(bundle).base.model_id)
    if start and as_json:
        raise click.UsageError("--start and --json exclude each other.")
    require_trusted(bundle, list(public_keys), base)
    plan = serve_plan(bundle, base, host, port)
    if as_json:
        made = {"command": plan.command, "name": plan.name, "alias": plan.alias}
        click.echo(json.dumps(made, indent=1))
        return
    click.echo(f"model name   {plan.name}  (these weights and no others)", err=True)
    click.echo(
        f"alias        {plan.alias}  (for clients; it moves with the next release)", err=True
    )
    if not start:
        click.echo(plan.text)
        return
    if shutil.which("vllm") is None:
        raise click.ClickException("vllm is not installed. Fix: pip install vllm==0.32.0.")
    os.execvp("vllm", plan.command)
