"""`policyalign decide`: a person's decision on a report."""

import json
import os
from dataclasses import asdict

import click

from policyalign_assets.cli.options import json_option
from policyalign_assets.report.approval import STATES, Approval
from policyalign_assets.report.approval import approve as record


@click.command()
@click.argument("partition")
@click.option("--state", required=True, type=click.Choice(STATES), help="What was decided.")
@click.option("--by", "approver", required=True, help="The name of the person who decides.")
@click.option("--comment", default="", help="Why, or under which conditions.")
@json_option("Print one JSON object: state, approver, date, comment, report.")
def decide(partition: str, state: str, approver: str, comment: str, as_json: bool) -> None:
    """Record a decision on the current report of PARTITION ('domain|policy').

    It stands on the report's page and beside the release, and is not signed. A signed release is
    made by `policyalign release`, `approve` and `publish`.
    """
    from datetime import UTC, datetime

    from policyalign_assets.files import location
    from policyalign_assets.report.folders import current_report
    from policyalign_assets.report.formatting import visible
    from policyalign_assets.runtime.results import NoResult, split_partition

    domain, policy = split_partition(partition)
    data = location(os.environ.get("POLICYALIGN_DATA_DIR", "data"))
    now = datetime.now(UTC).isoformat(timespec="seconds")
    decision = Approval(state, approver, now, comment)
    try:
        folder = current_report(data, domain, policy)
        record(folder, decision)
    except FileNotFoundError as error:
        raise NoResult(
            f"there is no report for {partition!r}: {error.filename} does not exist. "
            f"Fix: policyalign align '{partition}'."
        ) from None
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    page = folder / "report.html"
    if as_json:
        click.echo(json.dumps({**asdict(decision), "report": str(page)}, indent=1))
        return
    click.echo(visible(f"{state} by {approver}: {page}"))
