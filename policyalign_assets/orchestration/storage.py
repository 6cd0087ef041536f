"""Where Dagster keeps what stages hand to each other: one file per asset and partition, which appears whole or not at all.

Tables are Parquet, so `duckdb -c "FROM 'data/assets/sensitivity_scores/*/*.parquet'"` reads all partitions at once. The data
folder can be a URL of anything that fsspec reads (s3://, gs://, memory://).
"""

from __future__ import annotations

import dagster as dg
import pyarrow as pa
from upath import UPath

from policyalign_assets.files import write_whole
from policyalign_assets.runtime.exchange import decode, encode


class _IOManager(dg.UPathIOManager):
    def dump_to_path(self, context: dg.OutputContext, obj, path: UPath) -> None:
        write_whole(path, encode(obj))


class ParquetIOManager(_IOManager):
    extension = ".parquet"

    def load_from_path(self, context: dg.InputContext, path: UPath) -> pa.Table:
        return decode(path.read_bytes(), pa.Table)


class RecordIOManager(_IOManager):
    """Frozen dataclasses as JSON; the asset's Python type says which one to build on reading."""

    extension = ".json"

    def load_from_path(self, context: dg.InputContext, path: UPath):
        return decode(path.read_bytes(), context.dagster_type.typing_type)


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
