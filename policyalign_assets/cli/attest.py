"""`policyalign attest`: is the model at this address the one that was released?"""

import json
import random
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from policyalign_assets.cli.options import Bundle, public_keys_option

if TYPE_CHECKING:
    from policyalign_assets.releases.attestation import Attestation


@click.command()
@click.argument("url")
@click.option(
    "--bundle",
    type=Bundle(),
    required=True,
    help="The release that should be served there: its folder, 'domain|policy' or a deployment.",
)
@public_keys_option
@click.option("--model", help="The model's name at the endpoint; default: the stable alias.")
@click.option(
    "--canaries",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The canaries' file; default: beside the bundle.",
)
@click.option("--key-variable", help="Environment variable that holds the endpoint's API key.")
@click.option(
    "--asked",
    type=click.IntRange(10),
    default=30,
    show_default=True,
    help="How many canaries to ask, drawn at random.",
)
@click.option(
    "--watch",
    type=click.FloatRange(min=0, min_open=True),
    metavar="MINUTES",
    help="Look again every so many minutes, until another model answers.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a look.")
@click.pass_context
def attest(
    context: click.Context,
    url: str,
    bundle: Path,
    public_keys: tuple[Path, ...],
    model: str | None,
    canaries: Path | None,
    key_variable: str | None,
    asked: int,
    watch: float | None,
    as_json: bool,
) -> None:
    """Ask the endpoint at URL the canaries of BUNDLE, and say which model answers.

    URL is OpenAI-compatible and mostly ends in /v1. The verdict is this release, its base model,
    the release before, or another model, with the rates at which such a look errs. For cron, leave
    out --watch.
    Exit code 0 if it is this release, 1 if it is not or the endpoint cannot be asked.
    """
    from pydantic import ValidationError

    from policyalign_assets.releases import attestation
    from policyalign_assets.releases.canaries import canaries_file, read_canaries
    from policyalign_assets.releases.serving import alias_of
    from policyalign_assets.releases.verification import require_trusted
    from policyalign_assets.settings import EndpointSettings

    require_trusted(bundle, list(public_keys))
    found = read_canaries(canaries or canaries_file(bundle), bundle, public_keys)
    try:
        settings = EndpointSettings(
            base_url=url,
            model=model or alias_of(found.target),
            api_key_variable=key_variable,
            concurrency=4,
        )
    except ValidationError as error:
        raise click.UsageError(str(error.errors()[0]["msg"])) from None
    draw = random.SystemRandom()
    while True:
        chosen = draw.sample(found.canaries, min(asked, len(found.canaries)))
        made = attestation.attest(settings, chosen, found.max_tokens)
        if as_json:
            click.echo(json.dumps({**asdict(made), "decided_from": made.decided_from}))
        else:
            _say(made, settings.model or "", bundle)
        if watch is None or not made.is_this_release:
            context.exit(0 if made.is_this_release else 1)
        time.sleep(60 * watch)


def _say(made: "Attestation", model: str, bundle: Path) -> None:
    from policyalign_assets.releases.attestation import ANOTHER

    good = made.is_this_release
    click.secho(
        f"{'ATTESTED' if good else 'NOT THIS RELEASE'}: {model} answers as {made.verdict} "
        f"({bundle.name})",
        bold=True,
    )
    click.echo(f"  decided from {made.decided_from}")
    for name, (hits, of) in made.matches.items():
        near = f", and {made.near[name]} nearly so" if made.near[name] else ""
        click.echo(f"  {hits} of {of} answers are those of {name}{near}")
    for name, rate in made.errors.items():
        mistake = (
            "takes an unknown model for a known one"
            if name == ANOTHER
            else f"takes {name} for another one"
        )
        rarely = "fewer than 0.1%" if rate < 0.001 else f"{rate:.1%}"
        click.echo(f"  such a look {mistake} in {rarely} of cases")
