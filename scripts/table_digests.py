"""Prints a digest of each table, and the id of each checkpoint, under a data folder.

    python scripts/table_digests.py data

Two runs on one machine made the same results if this prints the same lines for both. Schema
metadata and columns of seconds are left out: they tell how a table was made, not what it holds.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import pyarrow.parquet as pq


def digests(data: Path) -> list[str]:
    """One line for each table and each checkpoint under `data`."""
    lines = []
    for file in sorted((data / "assets").rglob("*.parquet")):
        table = pq.read_table(file)
        timed = [name for name in table.column_names if "seconds" in name]
        rows = table.drop_columns(timed).to_pylist()
        digest = hashlib.sha256(repr(rows).encode()).hexdigest()[:16]
        lines.append(f"{digest}  {file.relative_to(data)}")
    return lines + [f"checkpoint {folder.name}" for folder in sorted(data.glob("checkpoints/*"))]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    print("\n".join(digests(parser.parse_args().data)))


if __name__ == "__main__":
    main()
