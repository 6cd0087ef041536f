"""The report in small: flat numbers to plot over time, and a Markdown table for an orchestrator's page."""

from __future__ import annotations

from policyalign_assets.evaluation.suites import ARMS, SUITES
from policyalign_assets.report.formatting import markdown_cell, share_with_interval
from policyalign_assets.report.model import Report

_METRIC_NAMES = {
    "violations": "safety",
    "violations_wrapped": "safety_wrapped",
    "capability": "capability",
}


def metric_values(report: Report) -> dict[str, float]:
    """Flat numbers, all fractions: safety/<arm>, safety_wrapped/<arm>, over_refusal/<arm>, capability/<arm>, internalisation,
    internalisation_wrapped, unscored, benchmark/<id>/<metric>/<arm>. What was not measured is left out."""
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


def markdown_summary(report: Report) -> str:
    """The main table: one line per suite, one column per arm, share and 95 % interval."""
    arms = [arm for arm in ARMS if any(f.arm == arm for f in report.figures)]
    lines = [
        f"**{markdown_cell(report.header.title)}** ({markdown_cell(report.header.model_id)})",
        "",
        _row("suite", "counted", *arms),
        _row(*["---"] * 2, *["---:"] * len(arms), escape=False),
    ]
    for name, suite in SUITES.items():
        figures = [report.figure(name, arm) for arm in arms]
        if any(figures):
            lines.append(
                _row(
                    suite.label,
                    suite.metric,
                    *[share_with_interval(f.rate) if f else "" for f in figures],
                )
            )
    return "\n".join(lines) + "\n"


def _row(*cells: str, escape: bool = True) -> str:
    return "| " + " | ".join(markdown_cell(cell) if escape else cell for cell in cells) + " |"
