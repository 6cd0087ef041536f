"""A person's decision on a report.

    python -m policyalign_assets.report.approval 'medical|general-conduct' \\
        --state approved --by 'A. Name' --comment 'For the pilot.'

The gates compute what a report shows; a person answers for its use. The decision is kept beside
the report as `approval.json`, with all earlier ones, and stands on its page.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Literal, get_args

from policyalign_assets.files import Location, location, write_whole
from policyalign_assets.report.folders import current_report
from policyalign_assets.report.formatting import visible

State = Literal["in review", "approved", "rejected", "withdrawn"]
STATES: tuple[str, ...] = get_args(State)
FILE = "approval.json"
BEGIN, END = "<!-- decision -->", "<!-- end of decision -->"


@dataclass(frozen=True)
class Approval:
    """`date` is an ISO date and time, in UTC."""

    state: str
    approver: str
    date: str
    comment: str = ""


def approval_of(folder: Location) -> Approval | None:
    """The latest decision on the report in `folder`; None where nobody decided.

    A file that cannot be read counts as no decision.
    """
    decisions = _decisions(folder)
    return decisions[-1] if decisions else None


def approve(folder: Location, approval: Approval) -> None:
    """Adds a decision and shows it on the report's page.

    Raises ValueError for an unknown state or a missing name.
    """
    if approval.state not in STATES:
        raise ValueError(f"{approval.state!r} is no state. Fix: one of {', '.join(STATES)}.")
    if not approval.approver.strip():
        raise ValueError("a decision needs a name. Fix: say who decides, with --by.")
    from policyalign_assets.report.render import decision_block

    decisions = [asdict(a) for a in (*_decisions(folder), approval)]
    write_whole(folder / FILE, (json.dumps(decisions, indent=1) + "\n").encode())
    page = folder / "report.html"
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    write_whole(page, f"{before}{BEGIN}{decision_block(approval)}{END}{after}".encode())


def _decisions(folder: Location) -> list[Approval]:
    try:
        return [Approval(**a) for a in json.loads((folder / FILE).read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):
        return []


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("partition", help="<domain>|<policy>")
    parser.add_argument("--state", required=True, choices=STATES)
    parser.add_argument("--by", required=True, help="name of the person who decides")
    parser.add_argument("--comment", default="")
    args = parser.parse_args()
    domain, _, policy = args.partition.partition("|")
    data = location(os.environ.get("POLICYALIGN_DATA_DIR", "data"))
    now = datetime.now(UTC).isoformat(timespec="seconds")
    try:
        folder = current_report(data, domain, policy)
        approve(folder, Approval(args.state, args.by, now, args.comment))
    except FileNotFoundError as error:
        sys.exit(
            f"No report for {args.partition!r}: {error.filename} does not exist. "
            "Fix: materialize benchmark_report for this partition."
        )
    except ValueError as error:
        sys.exit(str(error))
    print(visible(f"{args.state} by {args.by}: {folder / 'report.html'}"))


if __name__ == "__main__":
    main()
