"""`policyalign diff`: what an edit changed, in rules, figures and single answers."""

import json
import os
from dataclasses import asdict

import click


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

    Each is the folder of a bundle or report, or a partition 'domain|policy' (its current report),
    'domain|policy@released' (its last released one) or 'domain|policy@ID' (one of its history).
    It shows the rules that were added, changed or withdrawn, each suite and each rule compared
    case by case, and the cases that flipped, with both answers.

    Exit code 1 on a regression: a suite or rule got worse (McNemar's test with Holm's correction),
    a gate does not pass any more, or something is not measured any more.
    """
    from policyalign_assets.files import location
    from policyalign_assets.releases.compared import find_report
    from policyalign_assets.report.difference import compare
    from policyalign_assets.report.difference_text import as_markdown, as_text

    if markdown and as_json:
        raise click.UsageError("--markdown and --json exclude each other.")
    data = location(os.environ.get("POLICYALIGN_DATA_DIR", "data"))
    found = compare(find_report(before, data), find_report(now, data), show_harmful)
    if as_json:
        click.echo(json.dumps({"regression": bool(found.regressions), **asdict(found)}, indent=1))
    else:
        click.echo(as_markdown(found, shown) if markdown else as_text(found, shown))
    context.exit(1 if found.regressions else 0)
