"""All partitions side by side. A partition without a report is listed as such, never left out.

The figures come from the current reports' Parquet files by one SQL query.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from policyalign_assets.files import replacing_file, write_parquet
from policyalign_assets.report.folders import RELEASE, current_report
from policyalign_assets.report.formatting import markdown_cell, percent, share_with_interval
from policyalign_assets.report.templates import rendered
from policyalign_assets.statistics import Interval, wilson

SQL = resources.files(__package__).joinpath("leaderboard.sql")
COLUMNS = {
    "safety": "Violations refused",
    "safety_wrapped": "Disguised ones refused",
    "over_refusal": "Benign refused",
    "capability": "Capability",
}
NOTHING = Interval(None, None, None, 0, 0)
NOT_DECIDED = "the release checks have not run on this report"


@dataclass(frozen=True)
class Line:
    """One partition. `why_not` is set where it has no readable report; nothing else is then.

    `verdict` is the first line of the report, or of the later decision on it. `loosened`: bars that
    are looser than the vetted ones and waived gates, with who and why. Shares are the aligned
    model's. `page` is relative to the folder of all reports.
    """

    domain: str
    policy: str
    why_not: str | None = None
    title: str | None = None
    checkpoint_id: str | None = None
    model: str | None = None
    judge: str | None = None
    created_at: str | None = None
    shares: dict[str, Interval] | None = None
    unscored: float | None = None
    verdict: str | None = None
    loosened: tuple[str, ...] = ()
    released: bool = False
    page: str | None = None


def leaderboard(reports: Path, partitions: Sequence[tuple[str, str]]) -> list[Line]:
    """`reports`: the folder of all reports; `partitions`: (domain, policy) that should have one.

    Reports of other partitions are listed too.
    """
    found = {(f.parent.name, f.parent.parent.name) for f in reports.glob("*/*/current.json")}
    wanted = sorted((policy, domain) for domain, policy in found | set(partitions))
    folders = {(domain, policy): _current(reports, domain, policy) for policy, domain in wanted}
    figures = _figures([f / "figures.parquet" for f in folders.values() if f])
    return [
        _line(reports, folders[domain, policy], domain, policy, figures.get((domain, policy)))
        for policy, domain in wanted
    ]


def _current(reports: Path, domain: str, policy: str) -> Path | None:
    try:
        folder = current_report(reports.parent, domain, policy)
    except FileNotFoundError:
        return None
    assert isinstance(folder, Path)
    return folder


def _figures(files: Sequence[Path]) -> dict[tuple[str, str], dict[str, Any]]:
    present = [str(f) for f in files if f.exists()]
    if not present:
        return {}
    with duckdb.connect() as database:
        query = database.sql(SQL.read_text(encoding="utf-8"), params=[present])
        rows = query.to_arrow_table().to_pylist()
    return {(row["domain"], row["policy"]): row for row in rows}


def _line(
    reports: Path, folder: Path | None, domain: str, policy: str, figures: dict[str, Any] | None
) -> Line:
    if folder is None:
        return Line(domain, policy, "no report yet")
    try:
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        header, verdict = report["header"], _verdict(folder, report)
        loosened = tuple(f"{a['what']} ({a['who']}: {a['why']})" for a in verdict["allowances"])
        if figures is None:
            return Line(domain, policy, "its report has no figures")
        return Line(
            domain,
            policy,
            None,
            header["title"],
            header["checkpoint_id"],
            header["model_id"],
            header["judge"],
            header["created_at"],
            {name: wilson(figures[f"{name}_k"], figures[f"{name}_n"]) for name in COLUMNS},
            figures["unscored"] / figures["cases"] if figures["cases"] else None,
            verdict["line"],
            loosened,
            _released(folder, header["checkpoint_id"]),
            folder.relative_to(reports).as_posix() + "/report.html",
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        return Line(domain, policy, f"its report cannot be read ({type(error).__name__})")


def _verdict(folder: Path, report: dict[str, Any]) -> dict[str, Any]:
    """Of the release checks on this very report, if they ran; else the report's own."""
    try:
        decision = json.loads((folder.parent / "decision.json").read_text(encoding="utf-8"))
        found: dict[str, Any] = decision["verdict"]
        if decision["report"] == folder.name and found["line"] and "allowances" in found:
            return found
    except (OSError, ValueError, KeyError, TypeError):
        pass
    own: dict[str, Any] = report["verdict"]
    return own


def _released(folder: Path, checkpoint_id: str) -> bool:
    """A release of another report or checkpoint says nothing about this one."""
    try:
        release = json.loads((folder.parent / RELEASE).read_text(encoding="utf-8"))
        found = (release["report"], release["checkpoint_id"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return found == (folder.name, checkpoint_id)


def to_table(lines: Sequence[Line]) -> pa.Table:
    """One row per partition; null where there is no figure."""
    rows = []
    for line in lines:
        row = {k: v for k, v in asdict(line).items() if k not in ("shares", "loosened")}
        row["loosened"] = list(line.loosened)
        for name in COLUMNS:
            interval = (line.shares or {}).get(name, NOTHING)
            row |= {
                name: interval.estimate,
                f"{name}_low": interval.low,
                f"{name}_high": interval.high,
                f"{name}_n": interval.n,
            }
        rows.append(row)
    texts = ["domain", "policy", "why_not", "title", "checkpoint_id", "model", "judge"]
    texts += ["created_at", "verdict", "page"]
    numbers = [
        field
        for name in COLUMNS
        for field in (
            (name, pa.float64()),
            (f"{name}_low", pa.float64()),
            (f"{name}_high", pa.float64()),
            (f"{name}_n", pa.int64()),
        )
    ]
    others = [
        ("unscored", pa.float64()),
        ("loosened", pa.list_(pa.string())),
        ("released", pa.bool_()),
    ]
    schema = pa.schema([(name, pa.string()) for name in texts] + numbers + others)
    return pa.Table.from_pylist(rows, schema=schema)


def to_markdown(lines: Sequence[Line]) -> str:
    """For the page of the asset; every cell is untrusted text."""
    header = ("Partition", "Verdict", *COLUMNS.values(), "Unscored")
    rows = [header] + [(f"{line.domain}|{line.policy}", *_cells(line)) for line in lines]
    shown = ["| " + " | ".join(markdown_cell(cell) for cell in row) + " |" for row in rows]
    return "\n".join([shown[0], "|" + " --- |" * len(header), *shown[1:]]) + "\n"


def to_html(lines: Sequence[Line]) -> str:
    return rendered(
        "leaderboard.html.jinja",
        lines=[(line, _cells(line)) for line in lines],
        columns=["Verdict", *COLUMNS.values(), "Unscored"],
    )


def write_leaderboard(lines: Sequence[Line], folder: Path) -> Path:
    """Writes leaderboard.parquet and leaderboard.html; gives the path of the page."""
    write_parquet(to_table(lines), folder / "leaderboard.parquet")
    page = folder / "leaderboard.html"
    with replacing_file(page) as aside:
        aside.write_text(to_html(lines), encoding="utf-8")
        aside.chmod(0o644)
    return page


def _cells(line: Line) -> list[str]:
    if line.why_not:
        return [line.why_not, *[""] * (len(COLUMNS) + 1)]
    shares = line.shares or {}
    return [
        _verdict_cell(line),
        *(share_with_interval(shares.get(name, NOTHING)) for name in COLUMNS),
        percent(line.unscored),
    ]


def _verdict_cell(line: Line) -> str:
    said = line.verdict or "not known"
    return said if line.released or said.startswith("NOT") else f"{said}; {NOT_DECIDED}"
