"""A person's decision on a report, as `policyalign decide` records it.

The gates compute what a report shows; a person answers for its use. The decision is kept beside
the report as `approval.json`, with all earlier ones, and stands on its page.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Literal, get_args

from policyalign_assets.files import Location, write_whole

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
