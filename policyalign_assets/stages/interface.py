"""The stages with work of their own: each takes typed inputs and gives back what it made with the facts to show of it.

They import no Dagster, so that those that load a model can run in a process of their own (`policyalign_assets.runtime.worker`), here
or on another machine, and all of them in a notebook. Heavy libraries are imported with the stage's module, never here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from policyalign_assets.files import Location
from policyalign_assets.policy import PolicyDocument
from policyalign_assets.records import Checkpoint, ReportRecord
from policyalign_assets.settings import Settings
from policyalign_assets.stages.facts import Facts

StageData = PolicyDocument | pa.Table | Checkpoint | ReportRecord

# what stages hand to each other; every stage that is not named here is a table
RECORDS: dict[str, type] = {
    "policy_document": PolicyDocument,
    "distilled_checkpoint": Checkpoint,
    "benchmark_report": ReportRecord,
}
MODEL_STAGES = (
    "violating_instructions",
    "sensitivity_scores",
    "distilled_checkpoint",
    "generations",
)
LIGHT_STAGES = ("judgements", "benchmark_report")  # no model is loaded


@dataclass(frozen=True)
class StageContext:
    """What a stage needs beside its inputs. `data`: the folder or URL of the results. `report` takes a line of progress."""

    settings: Settings
    data: Location
    report: Callable[[str], None] = lambda _: None


@dataclass(frozen=True)
class StageResult:
    """`version`: a hash of the value. `facts`: what a person wants to see of it."""

    value: Any
    version: str
    facts: Facts
