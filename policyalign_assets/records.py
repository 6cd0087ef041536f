"""Records that stages pass on: what is known of a finished checkpoint or report without loading it (imports no torch)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from policyalign_assets.files import Location


@dataclass(frozen=True)
class Checkpoint:
    """`path` is relative to the data folder, so that the folder can move. `provenance` says what it was made from.
    `tuning`: an adapter, or a whole model."""

    checkpoint_id: str
    path: str
    model_id: str
    model_revision: str
    provenance: dict[str, Any]
    tuning: Literal["lora", "full"] = "lora"  # older records do not say


def training_table(checkpoint: Checkpoint, data_dir: Location) -> pa.Table:
    return pq.read_table(
        pa.BufferReader((data_dir / checkpoint.path / "training.parquet").read_bytes())
    )


@dataclass(frozen=True)
class ReportRecord:
    """`path`: folder of report.html, report.json, figures.parquet and cases.parquet, relative to the data folder."""

    path: str
    cases_hash: str
    metrics: dict[str, float]
