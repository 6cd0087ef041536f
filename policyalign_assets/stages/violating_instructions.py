"""Requests that would break each rule, and requests just beyond it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from policyalign_assets.doctor.in_context import direct_requests, in_context_effect
from policyalign_assets.engine.base import Engine
from policyalign_assets.engine.generation.endpoint_engine import EndpointEngine
from policyalign_assets.engine.generation.opening import opened
from policyalign_assets.evaluation.template_cases import own_cases
from policyalign_assets.files import scratch_folder, sha256_table
from policyalign_assets.judges.endpoint import EndpointJudge
from policyalign_assets.judges.phrases import judge_for
from policyalign_assets.judges.verdict import Judge
from policyalign_assets.policy import PolicyDocument, Rule
from policyalign_assets.settings import Settings
from policyalign_assets.stages.coverage_facts import synthesis_coverage
from policyalign_assets.stages.facts import nested, preview
from policyalign_assets.stages.interface import StageContext, StageResult
from policyalign_assets.synthesis.drafting import main_kind
from policyalign_assets.synthesis.entailment import RuleEntailment
from policyalign_assets.synthesis.firewall import firewall_for
from policyalign_assets.synthesis.store import RuleStore
from policyalign_assets.synthesis.synthesize import synthesize
from policyalign_assets.tables import YIELDS


def make(context: StageContext, policy_document: PolicyDocument) -> StageResult:
    settings = context.settings
    firewall = firewall_for(settings.firewall)

    def judge(rule: Rule) -> Judge:
        return EndpointJudge(RuleEntailment(rule, main_kind(rule)), settings.judge, context.report)

    if settings.synthesis.teacher_check:
        _require_a_teacher(context, policy_document)
    with _generator(settings) as (engine, made_on):
        made = synthesize(
            policy_document,
            engine,
            settings.synthesis,
            context.report,
            firewall,
            (lambda rule: own_cases(policy_document, rule, settings))
            if settings.firewall.own_cases
            else None,
            RuleStore(scratch_folder(context.data) / "synthesis", made_on),
            judge if settings.synthesis.entailment else None,
        )
    starved = sorted(r for r, y in made.yields.items() if y.starved)
    dropped = sum((y.dropped for y in made.yields.values()), start=Counter())
    yields = {rule_id: vars(y) for rule_id, y in made.yields.items()}
    table = made.table.replace_schema_metadata(
        {YIELDS: json.dumps({"rules": yields, "skipped": made.skipped})}
    )
    return StageResult(
        table,
        sha256_table(table),
        {
            "dagster/partition_row_count": table.num_rows,
            "violating": sum(y.violating for y in made.yields.values()),
            "twins": sum(y.twins for y in made.yields.values()),
            "neighbours": sum(y.neighbours for y in made.yields.values()),
            "drafted": sum(y.drafted for y in made.yields.values()),
            "dropped": nested(dropped),
            "generator refused": dropped["refused"],
            "kept unjudged": sum(y.unjudged for y in made.yields.values()),
            "starved rules": starved or "none",
            "not synthesized": nested(made.skipped) if made.skipped else "none",
            **synthesis_coverage(table, yields),
            "preview": preview(table, ("rule_id", "kind", "text")),
        },
    )


def _require_a_teacher(context: StageContext, policy_document: PolicyDocument) -> None:
    """Raises PolicyNotFollowed where the model ignores the policy in its prompt."""
    requests = direct_requests(policy_document)
    with opened(context.settings.model) as engine:
        found = in_context_effect(
            engine, policy_document, requests, judge_for(context.settings.model.id)
        )
    context.report(found.sentence)
    found.require()


@contextmanager
def _generator(settings: Settings) -> Iterator[tuple[Engine, list[str]]]:
    """Who writes the drafts, and what beside its name and revision decides what it writes."""
    if settings.generator.base_url:
        yield EndpointEngine(settings.generator), ["endpoint"]
        return
    with opened(settings.model) as engine:
        yield engine, [settings.model.engine, settings.model.dtype, engine.device]
