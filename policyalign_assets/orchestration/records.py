"""Records that assets hand on where a table would not fit."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ReportRecord:
    """`path`: folder of report.html, report.json, figures.parquet and cases.parquet, relative to the data folder."""

    path: str
    cases_hash: str
    metrics: dict[str, float]
