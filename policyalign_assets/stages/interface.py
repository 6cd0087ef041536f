"""What a stage gets and gives. A stage's module has a function `make(context, **upstream)`.

Stages import no Dagster, so that those that load a model can run in a process of their own
(`policyalign_assets.runtime.worker`), here or on another machine, and all of them in a notebook.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa

from policyalign_assets.files import Location
from policyalign_assets.policy import PolicyDocument
from policyalign_assets.records import Checkpoint, ReportRecord
from policyalign_assets.settings import Settings
from policyalign_assets.stages.facts import Facts

StageData: TypeAlias = PolicyDocument | pa.Table | Checkpoint | ReportRecord
# What a stage reads under one name: data, or a deployment's data by partition.
StageInput: TypeAlias = StageData | dict[str, StageData]


@dataclass(frozen=True)
class StageContext:
    """What a stage needs beside its inputs.

    `data` is the folder or URL of the results. `report` takes one line of progress. `policies` and
    `partition` (domain, policy id) say where the first stage finds its policy. `experiment` names
    the folder of results that are kept apart from those of the deployment.

    Of a deployment, `others` are its policies beside the one that is evaluated, and `departed` the
    (domain, policy id) of policies that its last accepted checkpoint had and this one lacks.
    """

    settings: Settings
    data: Location
    report: Callable[[str], None] = lambda _: None
    policies: Path | None = None
    partition: tuple[str, str] | None = None
    experiment: str | None = None
    deployment: str | None = None
    others: tuple[PolicyDocument, ...] = ()
    departed: tuple[tuple[str, str], ...] = ()

    @property
    def results(self) -> Location:
        """The folder that holds `reports/`: an experiment and a deployment have their own."""
        folder = self.data / "experiments" / self.experiment if self.experiment else self.data
        return folder / "deployments" / self.deployment if self.deployment else folder


@dataclass(frozen=True)
class StageResult:
    """`version` is a hash of the value. `facts` are shown with the materialization."""

    value: Any
    version: str
    facts: Facts
