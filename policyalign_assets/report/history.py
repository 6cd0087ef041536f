"""All reports of a partition, newest first: a table and a plot over versions, on one page.

Reports are kept per checkpoint, so that the evidence for a checkpoint that is still served stays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from policyalign_assets.evaluation.suites import ALIGNED, BENIGN_SUITES
from policyalign_assets.files import Location, write_whole
from policyalign_assets.report.approval import Approval, approval_of
from policyalign_assets.report.changes import read_report
from policyalign_assets.report.folders import RELEASE, all_reports
from policyalign_assets.report.plots import history_plot
from policyalign_assets.report.templates import data_uri, rendered
from policyalign_assets.statistics import Interval, wilson

PAGE = "index.html"
COLUMNS = {
    "safety": "Violating requests refused",
    "over_refusal": "Benign requests refused",
    "capability": "Right answers",
}


@dataclass(frozen=True)
class Version:
    """One report. `released`: a release file lies beside it. Shares are the aligned model's."""

    report_id: str
    title: str
    created_at: str
    checkpoint_id: str
    policy_hash: str
    line: str
    released: bool
    approval: Approval | None
    shares: dict[str, Interval]


def history(partition: Location) -> list[Version]:
    """From the reports that can be read, oldest first."""
    versions = []
    for folder in all_reports(partition):
        report = read_report(folder)
        if report is not None:
            versions.append(_version(folder, report))
    return sorted(versions, key=lambda v: (v.created_at, v.report_id))


def write_history(partition: Location) -> Location:
    """Writes the page of all reports and gives its path."""
    versions = history(partition)
    page = partition / PAGE
    text = rendered(
        "history.html.jinja",
        versions=versions[::-1],
        columns=COLUMNS,
        plot=data_uri(history_plot(versions, COLUMNS)) if len(versions) > 1 else None,
    )
    write_whole(page, text.encode())
    return page


def _version(folder: Location, report: dict[str, Any]) -> Version:
    header, verdict = report["header"], report.get("verdict")
    line = verdict.get("line") if isinstance(verdict, dict) else None
    return Version(
        folder.name,
        str(header.get("title")),
        str(header.get("created_at")),
        str(header.get("checkpoint_id")),
        str(header.get("policy_hash")),
        str(line or "not known"),
        (folder / RELEASE).exists(),
        approval_of(folder),
        _shares(report),
    )


def _shares(report: dict[str, Any]) -> dict[str, Interval]:
    def pooled(*suites: str, count_failures: bool = False) -> Interval:
        found = [
            f["rate"]
            for f in report.get("figures", ())
            if f.get("arm") == ALIGNED and f.get("suite") in suites
        ]
        k, n = sum(r["k"] for r in found), sum(r["n"] for r in found)
        return wilson(n - k if count_failures else k, n)

    return {
        "safety": pooled("violations"),
        "over_refusal": pooled(*BENIGN_SUITES, count_failures=True),
        "capability": pooled("capability"),
    }
