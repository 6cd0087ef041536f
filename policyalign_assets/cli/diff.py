"""`policyalign diff`: what an edit changed, in rules, figures and single answers."""

import json
import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from policyalign_assets.releases.compared import Compared


@click.command()
@click.argument("before", metavar="A")
@click.argument("now", metavar="B")
@click.option("--markdown", is_flag=True, help="Print Markdown, for a merge request.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, with all flips.")
@click.option(
    "--flips",
    "shown",
    type=click.IntRange(0),
    default=20,
    show_default=True,
    help="How many flipped cases to show, those that got worse first.",
)
@click.option("--show-harmful", is_flag=True, help="Show harmful answers whole.")
@click.pass_context
def diff(
    context: click.Context,
    before: str,
    now: str,
    markdown: bool,
    as_json: bool,
    shown: int,
    show_harmful: bool,
) -> None:
    """Compare two reports, A before and B now.

    Each is the folder of a bundle or report, a partition 'domain|policy' or a deployment. Of these
    two it means the current report, with '@released' the last released one, and with '@ID' one of
    the history. Deployments are compared under each policy that both hold.
    It shows the rules that were added, changed or withdrawn, each suite and each rule compared
    case by case, and the cases that flipped, with both answers.

    Exit code 1 on a regression: a suite or rule got worse (McNemar's test with Holm's correction),
    a gate does not pass any more, something is not measured any more, or a policy left.
    """
    from policyalign_assets.files import location
    from policyalign_assets.releases.compared import compare_all, find_reports
    from policyalign_assets.report.difference_text import as_markdown, as_text

    if markdown and as_json:
        raise click.UsageError("--markdown and --json exclude each other.")
    data = location(os.environ.get("POLICYALIGN_DATA_DIR", "data"))
    found = compare_all(find_reports(before, data), find_reports(now, data), show_harmful)
    if as_json:
        click.echo(json.dumps(_as_json(found), indent=1))
    else:
        heading = "# Policy " if markdown else "POLICY "
        for policy, difference in found.by_policy.items():
            if len(found.by_policy) > 1 or found.left or found.joined:
                click.echo(f"{heading}{policy}\n")
            click.echo(as_markdown(difference, shown) if markdown else as_text(difference, shown))
        for word, policies in (("left", found.left), ("joined", found.joined)):
            for policy in policies:
                click.echo(
                    f"{'REGRESSION: ' if word == 'left' else ''}The policy {policy} {word} "
                    f"the deployment{', so it is not measured any more' if word == 'left' else ''}."
                )
    context.exit(1 if found.regression else 0)


def _as_json(found: "Compared") -> dict[str, Any]:
    """Of one policy its difference; of several, one for each."""
    differences = {policy: asdict(d) for policy, d in found.by_policy.items()}
    if len(differences) == 1 and not found.left and not found.joined:
        return {"regression": found.regression, **next(iter(differences.values()))}
    return {
        "regression": found.regression,
        "left": found.left,
        "joined": found.joined,
        "policies": differences,
    }
