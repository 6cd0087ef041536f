"""Partitions: `<domain>|<policy>`, for example `medical|general-conduct`. Policies come and go; domains are fixed."""

import dagster as dg

from policyalign_assets.policy import DOMAINS

policy_dimension = dg.DynamicPartitionsDefinition(name="policy")
partitions = dg.MultiPartitionsDefinition({"domain": dg.StaticPartitionsDefinition(list(DOMAINS)), "policy": policy_dimension})


def domain_and_policy(context: dg.AssetExecutionContext) -> tuple[str, str]:
    keys = context.partition_key.keys_by_dimension
    return keys["domain"], keys["policy"]
