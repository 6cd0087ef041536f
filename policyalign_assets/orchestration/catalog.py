"""Registers what `policies/` and `deployments/` hold as partitions."""

from pathlib import Path
from typing import Any

import dagster as dg

from policyalign_assets.orchestration import deployments
from policyalign_assets.orchestration.dead_runs import bury_dead_runs
from policyalign_assets.orchestration.found_policies import find_policies
from policyalign_assets.orchestration.instance import NO_INSTANCE, history_is_kept
from policyalign_assets.orchestration.partitions import NAME
from policyalign_assets.orchestration.resources import Pipeline
from policyalign_assets.policy.deployments import find_deployments


@dg.asset(group_name="policy", kinds={"markdown"})
def policy_catalog(
    context: dg.AssetExecutionContext, pipeline: Pipeline
) -> dg.MaterializeResult[Any]:
    """Registers every policy in `policies/`, with each of its domains, and every deployment.

    Materialize this first. A policy or deployment with a mistake is left out, and the mistake is
    logged.
    """
    if not history_is_kept() and not context.instance.is_ephemeral:
        raise dg.Failure(NO_INSTANCE.format(folder=Path.cwd()), allow_retries=False)
    bury_dead_runs(context.instance)
    found = find_policies(pipeline.policies, context.log.warning)
    declared, broken = find_deployments(found.keys, Path(deployments.DEPLOYMENTS_DIR))
    for name, why in broken.items():
        context.log.warning(f"skipped: deployment {name}: {why}")
    _register(context.instance, NAME, found.keys)
    _register(context.instance, deployments.NAME, list(declared))
    context.log.info(f"policies: {', '.join(found.policies)}")
    return dg.MaterializeResult(
        metadata={
            "policies": sorted(found.policies),
            "partitions": found.keys,
            "deployments": list(declared),
            "not read": sorted([*found.broken, *broken]) or "none",
            "dagster/row_count": len(found.policies),
        }
    )


def _register(instance: dg.DagsterInstance, name: str, keys: list[str]) -> None:
    known = set(instance.get_dynamic_partitions(name))
    instance.add_dynamic_partitions(name, [key for key in keys if key not in known])
