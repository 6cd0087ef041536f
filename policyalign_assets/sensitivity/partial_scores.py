"""Results that are saved part by part.

A killed run continues where it stopped, and a million rows need no more memory than a thousand.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from policyalign_assets.files import replacing_file


class PartialScores:
    """Results of consecutive slices of a table.

    With a folder they are Arrow files, which are memory-mapped instead of read; without one they
    stay in memory. A folder belongs to one input: its name must depend on everything that the
    results depend on.
    """

    def __init__(self, folder: Path | None = None, rows: int = 1_024):
        self._folder, self._rows = folder, rows
        self._parts: dict[int, pa.Table] = {}

    def remaining(self, table: pa.Table) -> Iterator[tuple[int, pa.Table]]:
        """Yields (first row, slice) for each part that is not saved yet, in order."""
        starts = list(range(0, table.num_rows, self._rows))
        if len(starts) > 1 and table.num_rows - starts[-1] < self._rows / 2:
            starts.pop()  # a few rows are computed with the part before them
        for start, end in itertools.pairwise([*starts, table.num_rows]):
            file = self._file(start)
            saved = _mapped(file) if file and file.exists() else None
            # An earlier version may have divided the table elsewhere.
            if saved is not None and saved.num_rows == end - start:
                self._parts[start] = saved
            else:
                yield start, table.slice(start, end - start)

    def save(self, start: int, result: pa.Table) -> None:
        """Saves the result of the slice that begins at row `start`."""
        if file := self._file(start):
            with (
                replacing_file(file) as aside,
                pa.ipc.new_file(aside, result.schema) as writer,
            ):
                writer.write_table(result)
            result = _mapped(file)
        self._parts[start] = result

    def table(self, schema: pa.Schema) -> pa.Table:
        """All parts in order, as one table."""
        if not self._parts:
            return schema.empty_table()
        return pa.concat_tables([self._parts[start] for start in sorted(self._parts)])

    def _file(self, start: int) -> Path | None:
        return self._folder / f"{start:09}.arrow" if self._folder else None


def _mapped(file: Path) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(str(file))).read_all()
