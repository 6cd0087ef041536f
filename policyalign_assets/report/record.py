"""What is known of a finished report without opening it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ReportRecord:
    """`path`: folder of report.html, report.json, figures.parquet and cases.parquet, relative to the data folder."""

    path: str
    cases_hash: str
    metrics: dict[str, float]
