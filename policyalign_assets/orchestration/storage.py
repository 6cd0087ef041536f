"""Where Dagster keeps what stages hand to each other: one file per asset and partition.

A file appears whole or not at all. Tables are Parquet, so any tool that reads it sees all
partitions at once: `data/assets/sensitivity_scores/*/*.parquet`. The data folder can be a URL of
anything that fsspec reads (s3://, gs://, memory://).

An experiment (see `resources.Pipeline`) writes to a folder of its own. It reads from there too, and
from the deployment's folder what it has not made itself.
"""

from __future__ import annotations

from typing import Any

import dagster as dg
import pyarrow as pa
from dagster import DagsterInvariantViolationError
from upath import UPath

from policyalign_assets.files import write_whole
from policyalign_assets.orchestration.partitions import domain_and_policy
from policyalign_assets.orchestration.resources import EXPERIMENT, EXPERIMENTS
from policyalign_assets.runtime.exchange import decode, encode


class _IOManager(dg.UPathIOManager):
    def make_safe_partition_path(self, base_path: UPath, partition: str) -> UPath:
        """One folder for each domain, one file for each policy. A deployment is one file."""
        domain, policy = domain_and_policy(partition)
        return base_path / domain / policy if policy else base_path / partition

    def dump_to_path(self, context: dg.OutputContext, obj: Any, path: UPath) -> None:
        write_whole(path, encode(obj))

    def _get_path_without_extension(self, context: dg.InputContext | dg.OutputContext) -> UPath:
        path = super()._get_path_without_extension(context)
        if experiment := _experiment(context):
            below = path.relative_to(self._base_path)
            return self._base_path.parent / EXPERIMENTS / experiment / "assets" / below
        return path

    def _load_partition_from_path(
        self,
        context: dg.InputContext,
        partition_key: str,
        path: UPath,
        backcompat_path: UPath | None = None,
    ) -> Any:
        experiment = _experiment(context)
        if experiment and not path.exists():
            own = self._base_path.parent / EXPERIMENTS / experiment / "assets"
            path = self._base_path / path.relative_to(own)
        return super()._load_partition_from_path(context, partition_key, path, backcompat_path)


def _experiment(context: dg.InputContext | dg.OutputContext) -> str | None:
    """The experiment of the run that reads or writes, by the run's tag; None outside a run."""
    try:
        step = context.step_context
    except DagsterInvariantViolationError:
        return None  # somebody loads a value outside a run
    run = step.instance.get_run_by_id(step.run_id)
    return run.tags.get(EXPERIMENT) if run else None


class ParquetIOManager(_IOManager):
    extension = ".parquet"

    def load_from_path(self, context: dg.InputContext, path: UPath) -> pa.Table:
        return decode(path.read_bytes(), pa.Table)


class RecordIOManager(_IOManager):
    """Frozen dataclasses as JSON; the asset's Python type says which one to build on reading."""

    extension = ".json"

    def load_from_path(self, context: dg.InputContext, path: UPath) -> Any:
        return decode(path.read_bytes(), context.dagster_type.typing_type)


class _AtDataDir(dg.ConfigurableIOManagerFactory):
    data_dir: str

    @property
    def base_path(self) -> UPath:
        return UPath(self.data_dir) / "assets"


class ParquetStorage(_AtDataDir):
    def create_io_manager(self, context: dg.InitResourceContext) -> ParquetIOManager:
        return ParquetIOManager(self.base_path)


class RecordStorage(_AtDataDir):
    def create_io_manager(self, context: dg.InitResourceContext) -> RecordIOManager:
        return RecordIOManager(self.base_path)
