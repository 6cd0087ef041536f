"""Writes a report as JSON, Parquet and self-contained HTML pages; all carry the same numbers."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
from markupsafe import Markup

from policyalign_assets.evaluation.suites import ALIGNED, ARMS, BASE, SUITES, TEACHER
from policyalign_assets.files import write_parquet, write_whole
from policyalign_assets.report import sentences
from policyalign_assets.report.approval import BEGIN, END, Approval
from policyalign_assets.report.case_pages import case_pages
from policyalign_assets.report.contents import FEW_CASES, AlignmentReport, BenchmarkPart
from policyalign_assets.report.plots import main_plot, training_plot
from policyalign_assets.report.templates import data_uri, rendered

_COUNTS = [(name, pa.int64()) for name in ("k", "n")]
_SHARES = [(name, pa.float64()) for name in ("estimate", "low", "high")]
_ANSWERS = [(name, pa.int64()) for name in ("cases", "unscored", "truncated", "empty")]
FIGURES_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("suite", "arm", "metric")]
    + _COUNTS
    + _SHARES
    + _ANSWERS
    + [("mean_tokens", pa.float64())]
)
BENCHMARK_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("benchmark", "why_not", "version", "kind", "metric", "arm")]
    + _COUNTS
    + _SHARES
    + _ANSWERS
)


def write_report(
    report: AlignmentReport,
    out_dir: Path,
    cases: pa.Table | None = None,
    show_harmful: bool = False,
) -> Path:
    """Writes all files of a report into `out_dir` and gives the path of the page.

    `cases` (EVALUATION): a page per suite shows each of them.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    pages = [] if cases is None else case_pages(cases, report.header, show_harmful)
    for page in pages:
        write_whole(out_dir / page.file, page.html.encode())
    write_parquet(figures_table(report), out_dir / "figures.parquet")
    write_parquet(benchmarks_table(report), out_dir / "benchmarks.parquet")
    html = to_html(report, {page.suite: page.file for page in pages})
    write_whole(out_dir / "report.html", html.encode())
    write_whole(out_dir / "report.json", to_json(report).encode())
    return out_dir / "report.html"


def to_json(report: AlignmentReport) -> str:
    """ASCII alone: control and bidi characters of hostile answers stay escaped in a terminal."""
    text = json.dumps(
        dataclasses.asdict(report), indent=1, allow_nan=False, ensure_ascii=True, default=str
    )
    return text + "\n"


def figures_table(report: AlignmentReport) -> pa.Table:
    """The main table in long form: one line per suite and arm."""
    lines = [
        {**dataclasses.asdict(figure), **dataclasses.asdict(figure.rate)}
        for figure in report.figures
    ]
    return pa.Table.from_pylist(lines, schema=FIGURES_SCHEMA)


def benchmarks_table(report: AlignmentReport) -> pa.Table:
    """One line per benchmark, kind and arm; one with `why_not` for a benchmark that was not run."""
    lines: list[dict[str, Any]] = []
    for block in report.benchmarks:
        about = dataclasses.asdict(block)
        of_parts = [
            about
            | {"kind": part.kind, "metric": part.metric}
            | dataclasses.asdict(figure)
            | dataclasses.asdict(figure.rate)
            for part in block.parts
            for figure in part.figures
        ]
        lines += of_parts or [about]
    return pa.Table.from_pylist(
        [{name: line.get(name) for name in BENCHMARK_SCHEMA.names} for line in lines],
        schema=BENCHMARK_SCHEMA,
    )


def to_html(report: AlignmentReport, pages: dict[str, str] | None = None) -> str:
    """`pages`: the file of each suite's cases."""
    training = report.training
    has_steps = bool(training and training["step"])
    return rendered(
        "report.html.jinja",
        report=report,
        arms=ARMS,
        suites=SUITES,
        few_cases=FEW_CASES,
        compared={BASE: "unaligned", TEACHER: "teacher"},
        shown_arms=(ALIGNED, TEACHER, BASE),
        probes=[s for s in SUITES if SUITES[s].probe and report.figure(s, ALIGNED)],
        probe_arms=(BASE, TEACHER, ALIGNED),
        gated_probes=sentences.gated_probes(report.header),
        pages=pages or {},
        tested=sentences.tested(report.figures, report.header),
        worst_rules=sentences.worst_rules(report),
        unscored=_unscored,
        decision=Markup(BEGIN + decision_block(None) + END),  # rendered and escaped
        identity=_identity(report),
        main_plot=data_uri(main_plot(report)),
        narrow_plot=data_uri(main_plot(report, narrow=True)),
        training_plot=data_uri(training_plot(training)) if training and has_steps else None,
        training_rows=_training_rows(training) if training and has_steps else [],
    )


def decision_block(approval: Approval | None) -> str:
    """Who decided what on this report, as HTML; lines to fill in where nobody did."""
    return rendered("decision.html.jinja", approval=approval)


def _identity(report: AlignmentReport) -> str:
    """What each printed page says it belongs to, in characters that a CSS string may hold."""
    header = report.header
    text = f"{header.policy_id}, {header.domain}, checkpoint {header.checkpoint_id}"
    return re.sub(r"[^A-Za-z0-9 ,._-]", "_", f"{text}, {header.created_at[:10]}")


def _unscored(part: BenchmarkPart) -> str:
    """Each reason with its counts, arm by arm."""
    reasons = sorted({reason for figure in part.figures for reason in figure.unscored_reasons})
    return "; ".join(
        f"{reason} ({', '.join(str(f.unscored_reasons.get(reason, 0)) for f in part.figures)})"
        for reason in reasons
    )


def _training_rows(training: dict[str, list[float | None]]) -> list[dict[str, Any]]:
    """First, lowest, highest and last value of each column, for readers who cannot see the plot."""
    rows = []
    for name, column in training.items():
        known = [value for value in column if value is not None]
        if name != "step" and known:
            rows.append(
                {
                    "name": name,
                    "first": column[0],
                    "low": min(known),
                    "high": max(known),
                    "last": column[-1],
                }
            )
    return rows
