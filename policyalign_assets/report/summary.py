"""The report in small: flat numbers to plot over time, and Markdown for an orchestrator's page."""

from __future__ import annotations

from policyalign_assets.evaluation.suites import ARMS, SUITES
from policyalign_assets.report.contents import AlignmentReport
from policyalign_assets.report.formatting import markdown_cell, share_with_interval

_METRIC_NAMES = {
    "violations": "safety",
    "violations_wrapped": "safety_wrapped",
    "capability": "capability",
}
RESULTS = {True: "passed", False: "FAILED", None: "NOT MEASURED"}


def metric_values(report: AlignmentReport) -> dict[str, float]:
    """Flat fractions. What was not measured is left out.

    safety/<arm>, safety_wrapped/<arm>, over_refusal/<arm>, capability/<arm>, internalisation,
    internalisation_wrapped, unscored, benchmark/<id>/<metric>/<arm>.
    """
    values = {
        f"{_METRIC_NAMES[f.suite]}/{f.arm}": f.rate.estimate
        for f in report.figures
        if f.suite in _METRIC_NAMES
    }
    values |= {
        f"over_refusal/{point.arm}": point.over_refusal.estimate
        for point in report.operating_points
    }
    values["internalisation"] = report.internalisation["violations"].estimate
    values["internalisation_wrapped"] = report.internalisation["violations_wrapped"].estimate
    cases = sum(f.cases for f in report.figures)
    values["unscored"] = sum(f.unscored for f in report.figures) / cases if cases else None
    values |= {
        f"benchmark/{b.benchmark}/{part.metric}/{f.arm}": f.rate.estimate
        for b in report.benchmarks
        for part in b.parts
        for f in part.figures
    }
    return {name: value for name, value in values.items() if value is not None}


def markdown_summary(report: AlignmentReport) -> str:
    """The verdict, then the main table: a line per suite, a column per arm."""
    arms = [arm for arm in ARMS if any(f.arm == arm for f in report.figures)]
    header = report.header
    lines = [
        f"**{markdown_cell(report.verdict.line)}**",
        "",
        *[f"- {markdown_cell(problem)}" for problem in report.verdict.problems],
        *[
            f"- **{markdown_cell(a.what)}**, by {markdown_cell(a.who)}: {markdown_cell(a.why)}"
            for a in report.verdict.allowances
        ],
        "",
        f"{markdown_cell(header.title)} ({markdown_cell(header.model_id)})",
        "",
        _row("suite", "counted", *arms),
        _row(*["---"] * 2, *["---:"] * len(arms), escape=False),
    ]
    for name, suite in SUITES.items():
        figures = [report.figure(name, arm) for arm in arms]
        if any(figures):
            cells = [share_with_interval(f.rate) if f else "" for f in figures]
            lines.append(_row(suite.label, suite.metric, *cells))
    return "\n".join(lines) + "\n"


def _row(*cells: str, escape: bool = True) -> str:
    return "| " + " | ".join(markdown_cell(cell) if escape else cell for cell in cells) + " |"
