"""All partitions side by side, from whatever reports there are: a partition without one is listed as such, never left out.

The figures come from the reports' own Parquet files by one SQL query, so they are the same numbers.
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
from jinja2 import Environment, StrictUndefined

from policyalign_assets.files import replacing_file, write_parquet
from policyalign_assets.report.formatting import (
    NOT_MEASURED,
    markdown_cell,
    percent,
    share_with_interval,
    visible,
)
from policyalign_assets.statistics import Interval, wilson

SQL = resources.files(__package__).joinpath("leaderboard.sql")
COLUMNS = {
    "safety": "Violations refused",
    "safety_wrapped": "Disguised ones refused",
    "over_refusal": "Benign refused",
    "capability": "Capability",
}


@dataclass(frozen=True)
class Line:
    """One partition. `why_not` is set where it has no readable report; nothing else is then. Shares are those of the aligned model.

    `gates_open` names the blocking gates that were not passed; None where the report is from before there were gates.
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
    gates_open: tuple[str, ...] | None = None
    released: bool = False


def leaderboard(reports: Path, partitions: Sequence[tuple[str, str]]) -> list[Line]:
    """`reports`: the folder of all reports; `partitions`: (domain, policy) that should have one. Reports of others are listed too."""
    found = {(f.parent.name, f.parent.parent.name) for f in reports.glob("*/*/figures.parquet")}
    figures = _figures(
        [reports / policy / domain / "figures.parquet" for domain, policy in sorted(found)]
    )
    return [
        _line(reports / policy / domain, domain, policy, figures.get((domain, policy)))
        for policy, domain in sorted((policy, domain) for domain, policy in found | set(partitions))
    ]


def _figures(files: list[Path]) -> dict[tuple[str, str], dict[str, Any]]:
    if not files:
        return {}
    with duckdb.connect() as database:
        rows = (
            database.sql(SQL.read_text(encoding="utf-8"), params=[[str(f) for f in files]])
            .to_arrow_table()
            .to_pylist()
        )
    return {(row["domain"], row["policy"]): row for row in rows}


def _line(folder: Path, domain: str, policy: str, figures: dict[str, Any] | None) -> Line:
    try:
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        header = report["header"]
    except FileNotFoundError:
        return Line(domain, policy, "no report yet")
    except (OSError, ValueError, KeyError, TypeError) as error:
        return Line(domain, policy, f"its report cannot be read ({type(error).__name__})")
    if figures is None:
        return Line(domain, policy, "its report has no figures")
    gates = report.get("gates")
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
        None
        if gates is None
        else tuple(g["gate"] for g in gates if g["blocking"] and g["passed"] is not True),
        _released(folder, header["checkpoint_id"]),
    )


def _released(folder: Path, checkpoint_id: str) -> bool:
    """A pointer to another checkpoint than that of the report says nothing about this one."""
    try:
        return (
            json.loads((folder / "release.json").read_text(encoding="utf-8"))["checkpoint_id"]
            == checkpoint_id
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def to_table(lines: Sequence[Line]) -> pa.Table:
    """One row per partition; null where there is no figure."""
    rows = []
    for line in lines:
        row = {
            name: value
            for name, value in asdict(line).items()
            if name not in ("shares", "gates_open")
        }
        row["gates_open"] = None if line.gates_open is None else list(line.gates_open)
        for name in COLUMNS:
            interval = (line.shares or {}).get(name, Interval(None, None, None, 0, 0))
            row |= {
                name: interval.estimate,
                f"{name}_low": interval.low,
                f"{name}_high": interval.high,
                f"{name}_n": interval.n,
            }
        rows.append(row)
    texts = (
        "domain",
        "policy",
        "why_not",
        "title",
        "checkpoint_id",
        "model",
        "judge",
        "created_at",
    )
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
    return pa.Table.from_pylist(
        rows,
        schema=pa.schema(
            [(name, pa.string()) for name in texts]
            + numbers
            + [
                ("unscored", pa.float64()),
                ("gates_open", pa.list_(pa.string())),
                ("released", pa.bool_()),
            ]
        ),
    )


def to_markdown(lines: Sequence[Line]) -> str:
    """For the page of the asset; every cell is untrusted text."""
    rows = [("Partition", *COLUMNS.values(), "Unscored", "Release")]
    rows += [(f"{line.domain}|{line.policy}", *_cells(line)) for line in lines]
    shown = ["| " + " | ".join(markdown_cell(cell) for cell in row) + " |" for row in rows]
    return "\n".join([shown[0], "|" + " --- |" * len(rows[0]), *shown[1:]]) + "\n"


def to_html(lines: Sequence[Line]) -> str:
    environment = Environment(
        autoescape=True,
        finalize=lambda v: visible(v) if isinstance(v, str) else v,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.from_string(
        resources.files(__package__).joinpath("leaderboard.html.jinja").read_text(encoding="utf-8")
    )
    return template.render(
        lines=[(line, _cells(line)) for line in lines], columns=list(COLUMNS.values())
    )


def write_leaderboard(lines: Sequence[Line], folder: Path) -> Path:
    """Writes leaderboard.parquet and leaderboard.html; gives the path of the page."""
    write_parquet(to_table(lines), folder / "leaderboard.parquet")
    page = folder / "leaderboard.html"
    with replacing_file(page) as aside:
        aside.write_text(to_html(lines), encoding="utf-8")
    return page


def _cells(line: Line) -> list[str]:
    if line.why_not:
        return [line.why_not, *[""] * len(COLUMNS), ""]
    return [
        *(share_with_interval(line.shares[name]) for name in COLUMNS),
        percent(line.unscored),
        _release(line),
    ]


def _release(line: Line) -> str:
    if line.gates_open is None:
        return NOT_MEASURED
    if line.released:
        return "releasable"
    return (
        f"kept back by {', '.join(line.gates_open)}"
        if line.gates_open
        else "gates passed when reported; not marked releasable"
    )
