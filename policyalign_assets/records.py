"""Records that stages pass on: what is known of a checkpoint or report without loading it.

This module does not import torch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from policyalign_assets.files import Location


@dataclass(frozen=True)
class Checkpoint:
    """A trained checkpoint.

    `path` is relative to the data folder, so that the folder can be moved. `provenance` says what
    the checkpoint was made from. `tuning` says whether it is an adapter or a whole model.
    `repeats` are the same training with the seeds that follow (`distillation.seeds`). They are
    evaluated too, and what is released is this checkpoint.
    """

    checkpoint_id: str
    path: str
    model_id: str
    model_revision: str
    provenance: dict[str, Any]
    # the defaults are for older records, which lack these
    tuning: Literal["lora", "full"] = "lora"
    repeats: tuple[Checkpoint, ...] = ()

    @property
    def seed(self) -> int | None:
        """The seed of the training, or None where the provenance does not say."""
        seed = self.provenance.get("settings", {}).get("seed")
        return seed if isinstance(seed, int) else None

    def under(self, partition: str) -> Checkpoint:
        """A deployment's checkpoint as one of a single policy: with what it was made from of that
        policy, as reports compare it. Raises KeyError if it was not trained for it.
        """
        if "policies" not in self.provenance:
            return self
        return replace(
            self, provenance={**self.provenance, **self.provenance["policies"][partition]}
        )


def parent_of(checkpoint: Checkpoint) -> str | None:
    """The id of the checkpoint that training went on from; None: it started from the base model."""
    parent = (checkpoint.provenance.get("lineage") or {}).get("parent")
    return parent if isinstance(parent, str) else None


def training_table(checkpoint: Checkpoint, data_dir: Location) -> pa.Table:
    return pq.read_table(
        pa.BufferReader((data_dir / checkpoint.path / "training.parquet").read_bytes())
    )


@dataclass(frozen=True)
class ReportRecord:
    """A finished report.

    `path` is its folder, relative to the data folder. It contains report.html, report.json,
    figures.parquet and cases.parquet. `may_stand` is false of a report on a checkpoint that went on
    from another one and does not pass the release gates: it must be trained from the base model.
    """

    path: str
    cases_hash: str
    metrics: dict[str, float]
    may_stand: bool = True
