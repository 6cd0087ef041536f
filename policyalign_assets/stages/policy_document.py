"""The policy of one partition, parsed from its files."""

from __future__ import annotations

from policyalign_assets.policy import parse_policy
from policyalign_assets.stages.facts import markdown_table
from policyalign_assets.stages.interface import StageContext, StageResult


def make(context: StageContext) -> StageResult:
    """Raises PolicyError, which names the file, the line and the fix."""
    if context.policies is None or context.partition is None:
        raise ValueError("policy_document needs `policies` and `partition` in its context.")
    domain, policy_id = context.partition
    policy = parse_policy(context.policies, policy_id, domain)
    return StageResult(
        policy,
        policy.content_hash,
        {
            "rules": len(policy.rules),
            "prohibitions": len(policy.prohibitions),
            "duties": len(policy.duties),
            "owner": policy.owner,
            "effective": str(policy.effective_date or "not stated"),
            "version": policy.content_hash[:12],
            "rule list": markdown_table(
                ("id", "kind", "rule"), [(r.rule_id, r.kind, r.text) for r in policy.rules]
            ),
        },
    )
