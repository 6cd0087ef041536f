"""Rows that are kept as they are made, so that a killed run goes on where it stopped and a million need no more memory than a thousand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from policyalign_assets.files import replacing_file


class PartialScores:
    """Results of consecutive slices of a table. In `folder` as Arrow files, mapped instead of read; without a folder in memory.

    A folder belongs to one input: name it by all that the results depend on.
    """

    def __init__(self, folder: Path | None = None, rows: int = 1_024):
        self._folder, self._rows = folder, rows
        self._kept: dict[int, pa.Table] = {}

    def left(self, table: pa.Table) -> Iterator[tuple[int, pa.Table]]:
        """(first row, slice) of what is not kept yet, in order."""
        for start in range(0, table.num_rows, self._rows):
            if self._folder and self._file(start).exists():
                self._kept[start] = _mapped(self._file(start))
            else:
                yield start, table.slice(start, self._rows)

    def keep(self, start: int, result: pa.Table) -> None:
        if self._folder:
            with (
                replacing_file(self._file(start)) as aside,
                pa.ipc.new_file(aside, result.schema) as file,
            ):
                file.write_table(result)
            result = _mapped(self._file(start))
        self._kept[start] = result

    def table(self, schema: pa.Schema) -> pa.Table:
        return (
            pa.concat_tables([self._kept[start] for start in sorted(self._kept)])
            if self._kept
            else schema.empty_table()
        )

    def _file(self, start: int) -> Path:
        return self._folder / f"{start:09}.arrow"


def _mapped(file: Path) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(str(file))).read_all()
