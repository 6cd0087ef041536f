"""Partitions: `<domain>|<policy>`, for example `medical|general-conduct`. Policies come and go; domains are fixed."""

import click
import dagster as dg

from policyalign_assets.policy import DOMAINS

CATALOG = "dagster asset materialize -m policyalign_assets.definitions --select policy_catalog"


class Partitions(dg.MultiPartitionsDefinition):
    """Says in plain words what is wrong with a key, where Dagster's command line would only say that it is unknown."""

    def validate_partition_key(self, partition_key: str, context) -> None:
        domain, bar, policy = str(partition_key).partition("|")
        if not bar or domain not in DOMAINS:
            raise click.ClickException(
                f"{partition_key!r} is no partition. Mend: write <domain>|<policy>, for example 'medical|general-conduct'; "
                f"the domains are {', '.join(DOMAINS)}."
            )
        try:
            super().validate_partition_key(partition_key, context)
        except dg.DagsterUnknownPartitionError:
            raise click.ClickException(
                f"policy {policy!r} is not registered. Mend: see that its folder with a policy.md is in policies/, then run "
                f"`{CATALOG}`."
            ) from None


policy_dimension = dg.DynamicPartitionsDefinition(name="policy")
partitions = Partitions(
    {"domain": dg.StaticPartitionsDefinition(list(DOMAINS)), "policy": policy_dimension}
)


def domain_and_policy(context: dg.AssetExecutionContext) -> tuple[str, str]:
    keys = context.partition_key.keys_by_dimension
    return keys["domain"], keys["policy"]
