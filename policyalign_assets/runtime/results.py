"""Reads what stages have stored, without Dagster."""

from __future__ import annotations

from typing import TypeVar

import pyarrow as pa

from policyalign_assets.files import Location
from policyalign_assets.policy.deployments import NAME
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


def deployment_folder(data: Location, name: str) -> Location:
    """What a deployment's report made: its page, and for each policy reports, answers, verdicts.

    Raises NoResult for a name that no deployment can have.
    """
    if not NAME.fullmatch(name):
        raise NoResult(
            f"{name!r} is neither a partition nor a deployment. Fix: write 'domain|policy', for "
            "example 'medical|general-conduct', or the name of a deployment, such as 'medical'."
        )
    return data / "deployments" / name


def stored_of_deployment(data: Location, stage: str, name: str, kind: type[T]) -> T:
    """Return the record that a stage stored for a deployment. Raises NoResult if there is none."""
    deployment_folder(data, name)
    path = data / "assets" / stage / f"{name}.json"
    try:
        return decode(path.read_bytes(), kind)
    except FileNotFoundError:
        raise NoResult(
            f"{stage} has no result for the deployment {name!r} ({path} does not exist). "
            f"Fix: policyalign align {name}."
        ) from None


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
