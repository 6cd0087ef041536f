"""Partitions: `<domain>|<policy>`, for example `medical|general-conduct`.

Only pairs that exist are partitions: the domains that a policy lists in its front matter. The
sensor and `policy_catalog` register them.
"""

from __future__ import annotations

from typing import Any

import click
import dagster as dg

from policyalign_assets.policy import known_domains

CATALOG = "dagster asset materialize -m policyalign_assets.definitions --select policy_catalog"
PARTITION_TAG = "dagster/partition"


class Partitions(dg.DynamicPartitionsDefinition):
    """Says what is wrong with a key, where Dagster's command line only says that it is unknown."""

    def validate_partition_key(self, partition_key: str, context: Any) -> None:
        domain, bar, policy = str(partition_key).partition("|")
        if not bar or domain not in known_domains():
            raise click.ClickException(
                f"{partition_key!r} is no partition. Fix: write <domain>|<policy>, for example "
                f"'medical|general-conduct'; the domains are {', '.join(known_domains())}."
            )
        try:
            super().validate_partition_key(partition_key, context)
        except dg.DagsterUnknownPartitionError:
            raise click.ClickException(
                f"policy {policy!r} is not registered for the domain {domain!r}. Fix: see that its "
                "folder with a policy.md is in policies/ and that its front matter lists the "
                f"domain, then run `{CATALOG}`."
            ) from None


NAME = "policies"  # under which Dagster keeps the keys
partitions = Partitions(name=NAME)


def domain_and_policy(partition: str) -> tuple[str, str]:
    """The parts of a partition's key; two empty texts for one that is no key of this pipeline."""
    domain, _, policy = str(partition).partition("|")
    return (domain, policy) if policy else ("", "")


def policy_of(run: dg.DagsterRun) -> str | None:
    """The policy that a run is about; None for runs without a partition."""
    return domain_and_policy(run.tags.get(PARTITION_TAG, ""))[1] or None
