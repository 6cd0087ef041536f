"""Reads what stages have stored, without Dagster."""

from __future__ import annotations

from typing import TypeVar

import pyarrow as pa

from policyalign_assets.files import Location
from policyalign_assets.runtime.exchange import decode

T = TypeVar("T")


class NoResult(LookupError):
    """A stage has stored nothing for a partition yet, or a partition's name is wrong."""


def split_partition(partition: str) -> tuple[str, str]:
    """Split `domain|policy` into domain and policy. Raises NoResult for anything else."""
    domain, separator, policy = partition.partition("|")
    if not (domain and separator and policy) or "/" in partition or ".." in partition:
        raise NoResult(
            f"{partition!r} is not a partition. Fix: write 'domain|policy', for example "
            "'medical|general-conduct'."
        )
    return domain, policy


def stored_record(data: Location, stage: str, partition: str, kind: type[T]) -> T:
    """Return the record of type `kind` that a stage stored. Raises NoResult if there is none."""
    return _stored(data, stage, partition, kind, ".json")


def stored_table(data: Location, stage: str, partition: str) -> pa.Table:
    """Return the table that a stage stored. Raises NoResult if there is none."""
    return _stored(data, stage, partition, pa.Table, ".parquet")


def _stored(data: Location, stage: str, partition: str, kind: type[T], suffix: str) -> T:
    domain, policy = split_partition(partition)
    path = data / "assets" / stage / domain / f"{policy}{suffix}"
    try:
        return decode(path.read_bytes(), kind)
    except FileNotFoundError:
        raise NoResult(
            f"{stage} has no result for {partition!r} ({path} does not exist). "
            f"Fix: policyalign align '{partition}'."
        ) from None
