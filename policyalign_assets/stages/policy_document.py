"""The policy of one partition, parsed from its files."""

from __future__ import annotations

from policyalign_assets.policy import parse_policy, reading_line
from policyalign_assets.stages.facts import markdown_table
from policyalign_assets.stages.interface import StageContext, StageResult
from policyalign_assets.stages.run_plan import plan_run


def make(context: StageContext) -> StageResult:
    """Raises PolicyError, which names the file, the line and the fix.

    Raises NothingTrained or NoCases where a run would teach or show nothing.
    """
    if context.policies is None or context.partition is None:
        raise ValueError("policy_document needs `policies` and `partition` in its context.")
    domain, policy_id = context.partition
    policy = parse_policy(context.policies, policy_id, domain)
    plan = plan_run(policy, context.settings)
    plan.require_work()
    for line in plan.sentences:
        context.report(line)
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
            "trained rules": sum(rule.trained for rule in plan.rules),
            "measured rules": sum(rule.measured for rule in plan.rules),
            "thinly measured rules": sum(rule.cases.thin for rule in plan.rules),
            "estimate": plan.cost.sentence,
            "warnings": list(policy.warnings) or "none",
            "rule list": markdown_table(
                ("id", "kind", "rule", "read as", "trained and measured"),
                [
                    (p.rule.rule_id, p.rule.kind, p.rule.text, reading_line(p.rule), p.why)
                    for p in plan.rules
                ],
            ),
        },
    )
