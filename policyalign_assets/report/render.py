"""Writes a report as JSON, Parquet and one self-contained HTML page; all three carry the same numbers.

Prompts, responses and policies are untrusted: everything that the page shows passes through `visible` and HTML escaping.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from jinja2 import Environment, StrictUndefined

from policyalign_assets.evaluation import suites
from policyalign_assets.report import formatting, sentences
from policyalign_assets.report.model import FEW_CASES, BenchmarkPart, Report
from policyalign_assets.report.plots import main_plot, training_plot

FIGURES_SCHEMA = pa.schema(
    [
        pa.field(name, kind)
        for name, kind in {
            "suite": pa.string(),
            "arm": pa.string(),
            "metric": pa.string(),
            "k": pa.int64(),
            "n": pa.int64(),
            "estimate": pa.float64(),
            "low": pa.float64(),
            "high": pa.float64(),
            "cases": pa.int64(),
            "unscored": pa.int64(),
            "truncated": pa.int64(),
            "empty": pa.int64(),
            "mean_tokens": pa.float64(),
        }.items()
    ]
)


BENCHMARK_SCHEMA = pa.schema(
    [
        pa.field(name, kind)
        for name, kind in {
            "benchmark": pa.string(),
            "why_not": pa.string(),
            "version": pa.string(),
            "kind": pa.string(),
            "metric": pa.string(),
            "arm": pa.string(),
            "k": pa.int64(),
            "n": pa.int64(),
            "estimate": pa.float64(),
            "low": pa.float64(),
            "high": pa.float64(),
            "cases": pa.int64(),
            "unscored": pa.int64(),
            "truncated": pa.int64(),
            "empty": pa.int64(),
        }.items()
    ]
)


@dataclass(frozen=True)
class ReportPaths:
    json: Path
    figures: Path
    html: Path


def write_report(report: Report, out_dir: Path) -> ReportPaths:
    """Writes report.json, figures.parquet, benchmarks.parquet and report.html into `out_dir`. Each appears whole or not at all."""
    out_dir.mkdir(parents=True, exist_ok=True)
    paths = ReportPaths(
        out_dir / "report.json", out_dir / "figures.parquet", out_dir / "report.html"
    )
    _write(paths.json, lambda path: path.write_text(to_json(report), encoding="utf-8"))
    _write(paths.figures, lambda path: pq.write_table(figures_table(report), path))
    _write(
        out_dir / "benchmarks.parquet", lambda path: pq.write_table(benchmarks_table(report), path)
    )
    _write(paths.html, lambda path: path.write_text(to_html(report), encoding="utf-8"))
    return paths


def to_json(report: Report) -> str:
    # ASCII only: control and bidi characters of hostile answers stay escaped for whoever reads the file in a terminal
    return (
        json.dumps(
            dataclasses.asdict(report), indent=1, allow_nan=False, ensure_ascii=True, default=str
        )
        + "\n"
    )


def figures_table(report: Report) -> pa.Table:
    """The main table in long form: one line per suite and arm."""
    lines = [
        {**dataclasses.asdict(figure), **dataclasses.asdict(figure.rate)}
        for figure in report.figures
    ]
    return pa.Table.from_pylist(lines, schema=FIGURES_SCHEMA)


def benchmarks_table(report: Report) -> pa.Table:
    """One line per benchmark, kind and arm; one line with `why_not` for a benchmark that was not run."""
    lines = []
    for block in report.benchmarks:
        about = dataclasses.asdict(block)
        lines += [
            about
            | {"kind": part.kind, "metric": part.metric}
            | dataclasses.asdict(f)
            | dataclasses.asdict(f.rate)
            for part in block.parts
            for f in part.figures
        ] or [about]
    return pa.Table.from_pylist(
        [{name: line.get(name) for name in BENCHMARK_SCHEMA.names} for line in lines],
        schema=BENCHMARK_SCHEMA,
    )


def to_html(report: Report) -> str:
    environment = Environment(
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": formatting.percent,
        "rate": formatting.share_with_interval,
        "points": formatting.points,
        "p_value": formatting.p_value,
        "value": _setting,
        "unscored": _unscored,
        "rules_in_words": sentences.worst_rules,
    }
    template = environment.from_string(
        resources.files(__package__).joinpath("template.html.jinja").read_text(encoding="utf-8")
    )
    has_steps = bool(report.training and report.training["step"])
    return template.render(
        report=report,
        arms=suites.ARMS,
        suites=suites.SUITES,
        few_cases=FEW_CASES,
        compared={"base": "unaligned", suites.TEACHER: "teacher"},
        main_plot=_data_uri(main_plot(report)),
        training_plot=_data_uri(training_plot(report.training)) if has_steps else None,
        training_rows=_training_rows(report.training) if has_steps else [],
    )


def _shown(value: Any) -> Any:
    """Called by Jinja on whatever an expression of the template yields, just before it is escaped."""
    is_markup = hasattr(
        value, "__html__"
    )  # what a macro of the template returns: its parts passed through here already
    return formatting.visible(value) if isinstance(value, str) and not is_markup else value


def _setting(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


def _unscored(part: BenchmarkPart) -> str:
    """Each reason with its counts, arm by arm."""
    reasons = sorted({reason for figure in part.figures for reason in figure.unscored_reasons})
    return "; ".join(
        f"{reason} ({', '.join(str(f.unscored_reasons.get(reason, 0)) for f in part.figures)})"
        for reason in reasons
    )


def _training_rows(training: dict[str, list[float | None]]) -> list[dict[str, Any]]:
    """First, lowest, highest and last value of each column: the plot in numbers, for those who cannot see it."""
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


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _write(path: Path, write: Callable[[Path], Any]) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(aside)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
