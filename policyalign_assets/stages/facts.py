"""What a stage shows beside its data, as plain JSON values: it must travel from a worker process to
the run's page.

A plain number, text or list stands for itself. Markdown, paths and nested values say their type
(`{"type": ..., "raw_value": ...}`, as Dagster Pipes has it).
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from policyalign_assets.report.formatting import markdown_cell

Facts = dict[str, Any]


def markdown(text: str) -> dict[str, str]:
    return {"type": "md", "raw_value": text}


def path(where: object) -> dict[str, str]:
    return {"type": "path", "raw_value": str(where)}


def link(url: str) -> dict[str, str]:
    return {"type": "url", "raw_value": url}


def nested(value: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "json", "raw_value": dict(value)}


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> dict[str, str]:
    """Cells are untrusted text and are escaped."""
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    lines += ["| " + " | ".join(markdown_cell(str(cell)) for cell in row) + " |" for row in rows]
    return markdown("\n".join(lines))


def image(png: bytes, alt: str) -> dict[str, str]:
    return markdown(f"![{alt}](data:image/png;base64,{base64.b64encode(png).decode()})")


def preview(table: pa.Table, columns: Sequence[str], rows: int = 8) -> dict[str, str]:
    """The first rows, evenly taken, of `columns`."""
    step = max(1, table.num_rows // rows)
    return markdown_table(
        columns,
        ([_short(r[c]) for c in columns] for r in table.select(columns).to_pylist()[::step][:rows]),
    )


def _short(value: object) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 160 else text[:159] + "…"
