"""Where Dagster keeps what stages hand to each other: one file per asset and partition, written aside and renamed.

Tables are Parquet, so `duckdb -c "FROM 'data/assets/sensitivity_scores/*/*.parquet'"` reads all partitions at once.
"""

from __future__ import annotations

import os

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter
from upath import UPath


class _AtomicIOManager(dg.UPathIOManager):
    def _write(self, data: bytes, path: UPath) -> None:
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        aside.write_bytes(data)
        aside.rename(path)


class ParquetIOManager(_AtomicIOManager):
    extension = ".parquet"

    def dump_to_path(self, context: dg.OutputContext, obj: pa.Table, path: UPath) -> None:
        sink = pa.BufferOutputStream()
        pq.write_table(obj, sink, compression="zstd")
        self._write(sink.getvalue().to_pybytes(), path)

    def load_from_path(self, context: dg.InputContext, path: UPath) -> pa.Table:
        return pq.read_table(pa.BufferReader(path.read_bytes()))


class RecordIOManager(_AtomicIOManager):
    """Frozen dataclasses as JSON; the asset's Python type says which one to build on reading."""

    extension = ".json"

    def dump_to_path(self, context: dg.OutputContext, obj, path: UPath) -> None:
        self._write(TypeAdapter(type(obj)).dump_json(obj, indent=2), path)

    def load_from_path(self, context: dg.InputContext, path: UPath):
        return TypeAdapter(context.dagster_type.typing_type).validate_json(path.read_bytes())


class _AtDataDir(dg.ConfigurableIOManagerFactory):
    data_dir: str

    @property
    def base_path(self) -> UPath:
        return UPath(self.data_dir) / "assets"


class ParquetStorage(_AtDataDir):
    def create_io_manager(self, context) -> ParquetIOManager:
        return ParquetIOManager(self.base_path)


class RecordStorage(_AtDataDir):
    def create_io_manager(self, context) -> RecordIOManager:
        return RecordIOManager(self.base_path)
