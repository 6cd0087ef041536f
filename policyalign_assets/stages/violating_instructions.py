"""Requests that would break each rule, and requests just beyond it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from policyalign_assets.doctor.connections import require_judge
from policyalign_assets.doctor.examine import examine
from policyalign_assets.engine.base import Engine
from policyalign_assets.engine.generation.endpoint_engine import EndpointEngine
from policyalign_assets.engine.generation.opening import opened
from policyalign_assets.engine.generation.transformers_engine import TransformersEngine
from policyalign_assets.engine.loading import load_model
from policyalign_assets.evaluation.held_out import own_cases
from policyalign_assets.files import scratch_folder, sha256_table
from policyalign_assets.judges.choose import judge_of
from policyalign_assets.judges.local import local_model
from policyalign_assets.judges.verdict import Judge
from policyalign_assets.policy import PolicyDocument, Rule
from policyalign_assets.policy.author_requests import seed_requests
from policyalign_assets.settings import BUNDLED, Settings
from policyalign_assets.stages.coverage_facts import synthesis_coverage
from policyalign_assets.stages.facts import Facts, nested, preview
from policyalign_assets.stages.interface import StageContext, StageResult
from policyalign_assets.stages.prompt_length import require_fit, token_counter
from policyalign_assets.stages.run_plan import plan_run
from policyalign_assets.synthesis.attribution import Attribution
from policyalign_assets.synthesis.checks import PolicyChecks
from policyalign_assets.synthesis.drafting import Examples, main_kind
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
    count = None
    if not settings.generator.base_url:  # an endpoint writes the drafts: no model is at hand here
        # A policy that does not fit would otherwise be found out after all weights are loaded.
        require_fit(policy_document, settings.model, settings.sensitivity.max_new_tokens)
        count = token_counter(settings.model)
    plan = plan_run(policy_document, settings, count)
    plan.require_work()
    for line in plan.sentences:
        context.report(line)
    if finding := require_judge(settings, policy_document):
        context.report(str(finding))
    firewall, references = firewall_for(settings.firewall)

    # one model for all rules; beside the generator in memory, since drafts wait for verdicts
    weights = local_model(settings.judge) if settings.judge.engine == "local" else None
    entailed = settings.synthesis.entailment

    def judge(rule: Rule) -> Judge:
        task = RuleEntailment(rule, main_kind(rule))
        return judge_of(task, settings.judge, context.report, weights)

    # With a generator endpoint this stage needs no model; the next one examines it then.
    if not settings.generator.base_url:
        examine(
            settings,
            policy_document,
            context.data,
            log=context.report,
            measure_effect=settings.synthesis.teacher_check,
        ).require()
    held = weights.held() if weights and entailed else nullcontext()
    with _generator(settings) as (engine, generator_setup), held:
        attribution = _attribution(settings, policy_document, engine)
        if attribution:
            context.report(attribution.note)
        made = synthesize(
            policy_document,
            engine,
            settings.synthesis,
            context.report,
            PolicyChecks(
                firewall,
                lambda rule: own_cases(policy_document, rule, settings),
                judge if entailed else None,
                attribution,
            ),
            RuleStore(scratch_folder(context.data) / "synthesis", generator_setup),
            lambda rule: _examples(rule, settings),
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
            "estimate before the run": plan.cost.sentence,
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


def _examples(rule: Rule, settings: Settings) -> Examples:
    """The author's requests that are not held out; evaluation splits them with the same seed."""
    seeds = seed_requests(rule, settings.evaluation.seed)
    return Examples(seeds.violates, seeds.allowed)


def _totals(yields: list[RuleYield]) -> Facts:
    dropped: Counter[str] = sum((y.dropped for y in yields), start=Counter())
    return {
        "violating": sum(y.violating for y in yields),
        "twins": sum(y.twins for y in yields),
        "neighbours": sum(y.neighbours for y in yields),
        "by the policy's author": sum(y.written for y in yields),
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
    elif settings.model.engine != "transformers" or settings.model.id == BUNDLED:
        return Attribution(policy, None)
    else:
        loaded = load_model(settings.model)
    return Attribution(policy, LikelihoodScorer(loaded, settings.model.batch_tokens))


@contextmanager
def _generator(settings: Settings) -> Iterator[tuple[Engine, list[str]]]:
    """Who writes the drafts, and what decides its output besides its name and revision."""
    if settings.generator.base_url:
        yield EndpointEngine(settings.generator), ["endpoint"]
        return
    with opened(settings.model) as engine:
        yield engine, [settings.model.engine, settings.model.dtype, engine.device]
