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
from policyalign_assets.engine.generation.transformers_engine import TransformersEngine
from policyalign_assets.engine.loading import load_model
from policyalign_assets.evaluation.template_cases import own_cases
from policyalign_assets.files import scratch_folder, sha256_table
from policyalign_assets.judges.endpoint import EndpointJudge
from policyalign_assets.judges.phrases import judge_for
from policyalign_assets.judges.verdict import Judge
from policyalign_assets.policy import PolicyDocument, Rule
from policyalign_assets.settings import BUNDLED, Settings
from policyalign_assets.stages.coverage_facts import synthesis_coverage
from policyalign_assets.stages.facts import Facts, nested, preview
from policyalign_assets.stages.interface import StageContext, StageResult
from policyalign_assets.synthesis.attribution import Attribution
from policyalign_assets.synthesis.drafting import main_kind
from policyalign_assets.synthesis.entailment import RuleEntailment
from policyalign_assets.synthesis.firewall import firewall_for
from policyalign_assets.synthesis.likelihood import LikelihoodScorer
from policyalign_assets.synthesis.references import References
from policyalign_assets.synthesis.store import RuleStore
from policyalign_assets.synthesis.synthesize import synthesize
from policyalign_assets.synthesis.yields import RuleYield
from policyalign_assets.tables import YIELDS


def make(context: StageContext, policy_document: PolicyDocument) -> StageResult:
    settings = context.settings
    firewall, references = firewall_for(settings.firewall)

    def judge(rule: Rule) -> Judge:
        return EndpointJudge(RuleEntailment(rule, main_kind(rule)), settings.judge, context.report)

    if settings.synthesis.teacher_check:
        _require_a_teacher(context, policy_document)
    with _generator(settings) as (engine, generator_setup):
        attribution = _attribution(settings, policy_document, engine)
        if attribution:
            context.report(attribution.note)
        made = synthesize(
            policy_document,
            engine,
            settings.synthesis,
            context.report,
            firewall,
            (lambda rule: own_cases(policy_document, rule, settings))
            if settings.firewall.own_cases
            else None,
            RuleStore(scratch_folder(context.data) / "synthesis", generator_setup),
            judge if settings.synthesis.entailment else None,
            attribution,
        )
    tied = attribution.note if attribution else None
    yields = {rule_id: vars(counts) for rule_id, counts in made.yields.items()}
    table = made.table.replace_schema_metadata(
        {YIELDS: json.dumps({"rules": yields, "skipped": made.skipped, "attribution": tied})}
    )
    return StageResult(
        table,
        sha256_table(table),
        {
            "dagster/partition_row_count": table.num_rows,
            **_totals(list(made.yields.values())),
            "starved rules": _starved(made.yields),
            "not synthesized": nested(made.skipped) if made.skipped else "none",
            "rules in other languages": nested(made.notes) if made.notes else "none",
            "belongs to its rule": tied or "not checked (synthesis.attribution)",
            "firewall references": _references(references),
            **synthesis_coverage(table, yields),
            "preview": preview(table, ("rule_id", "kind", "text")),
        },
    )


def _totals(yields: list[RuleYield]) -> Facts:
    dropped: Counter[str] = sum((y.dropped for y in yields), start=Counter())
    return {
        "violating": sum(y.violating for y in yields),
        "twins": sum(y.twins for y in yields),
        "neighbours": sum(y.neighbours for y in yields),
        "drafted": sum(y.drafted for y in yields),
        "made by templates": sum(y.templated for y in yields),
        "kept": sum(y.kept for y in yields),
        "dropped": nested(dropped),
        "generator refused": dropped["refused"],
        "kept unjudged": sum(y.unjudged for y in yields),
    }


def _starved(yields: dict[str, RuleYield]) -> object:
    """Each starved rule with the reasons for which its drafts were dropped."""
    starved = {rule_id: counts.why_starved for rule_id, counts in yields.items() if counts.starved}
    return nested(starved) if starved else "none"


def _references(references: References | None) -> object:
    """What the firewall read, file by file, and what it ignored."""
    if references is None:
        return "none"
    files = {
        file.name: f"{len(file.prompts)} prompts, {file.empty} rows without one"
        for file in references.files
    }
    return nested(files | ({"ignored": list(references.ignored)} if references.ignored else {}))


def _attribution(settings: Settings, policy: PolicyDocument, engine: Engine) -> Attribution | None:
    """Ties drafts to their rules; None where it is off.

    The likelihoods are those of the model that is aligned, also where an endpoint drafts. Only
    words decide where vLLM holds that model, or where it is the bundled one, which reads only the
    bundled world.
    """
    if not settings.attributes_drafts:
        return None
    if isinstance(engine, TransformersEngine):
        loaded = engine.loaded
    elif settings.model.engine == "vllm" or settings.model.id == BUNDLED:
        return Attribution(policy, None)
    else:
        loaded = load_model(settings.model)
    return Attribution(policy, LikelihoodScorer(loaded, settings.model.batch_tokens))


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
    """Who writes the drafts, and what decides its output besides its name and revision."""
    if settings.generator.base_url:
        yield EndpointEngine(settings.generator), ["endpoint"]
        return
    with opened(settings.model) as engine:
        yield engine, [settings.model.engine, settings.model.dtype, engine.device]
