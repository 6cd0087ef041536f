"""What an asset shows in Dagster's UI beside its data."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence

import dagster as dg
import pyarrow as pa

from policyalign_assets.report.text import markdown_cell

POLICY_VERSION_TAG = "policyalign/policy_version"


def table_schema(schema: pa.Schema) -> dg.TableSchema:
    return dg.TableSchema(columns=[dg.TableColumn(f.name, str(f.type)) for f in schema])


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> dg.MarkdownMetadataValue:
    """Cells are untrusted text and are escaped."""
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    lines += ["| " + " | ".join(markdown_cell(str(cell)) for cell in row) + " |" for row in rows]
    return dg.MetadataValue.md("\n".join(lines))


def image(png: bytes, alt: str) -> dg.MarkdownMetadataValue:
    return dg.MetadataValue.md(f"![{alt}](data:image/png;base64,{base64.b64encode(png).decode()})")


def preview(table: pa.Table, columns: Sequence[str], rows: int = 8) -> dg.MarkdownMetadataValue:
    """The first rows, evenly taken, of `columns`."""
    step = max(1, table.num_rows // rows)
    return markdown_table(columns, ([_short(r[c]) for c in columns] for r in table.select(columns).to_pylist()[::step][:rows]))


def _short(value: object) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 160 else text[:159] + "…"
