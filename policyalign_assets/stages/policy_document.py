"""The policy of one partition, parsed from its files."""

from __future__ import annotations

from policyalign_assets.policy import parse_policy, reading_line, reading_rows
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
            "measured rules": sum(row["measured"] for row in reading_rows(policy)),
            "warnings": list(policy.warnings) or "none",
            "rule list": markdown_table(
                ("id", "kind", "rule", "read as", "trained and measured"),
                [
                    (rule.rule_id, rule.kind, rule.text, reading_line(rule), row["why"])
                    for rule, row in zip(policy.rules, reading_rows(policy), strict=True)
                ],
            ),
        },
    )
