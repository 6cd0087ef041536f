"""What will be measured, from the policy and the settings alone: no model and no table is read.

`policyalign lint` shows the plan. The first stage of a partition refuses a policy of which nothing
can be measured, before any model is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass

from policyalign_assets.policy import PolicyDocument, Rule
from policyalign_assets.policy.author_requests import heldout_requests
from policyalign_assets.policy.reading.languages import language_name
from policyalign_assets.settings import BUNDLED, Settings

# Judges that are given the policy's rules and name the ones that an answer breaks
RULE_READING_JUDGES = ("policy",)

NO_JUDGE = (
    "nobody can tell whether an answer fulfils this rule, because no judge reads the rules. "
    "Fix: judge.kind='policy'"
)


class NoCases(ValueError):
    """No rule of the policy can be measured. The message says why, rule by rule."""


@dataclass(frozen=True)
class RulePlan:
    """How one rule will be measured.

    sources: expected number of cases by source: author, model, template.
    why_not: why the rule is not measured; empty if it is.
    thin: fewer cases are expected than `evaluation.cases_per_rule`.
    """

    rule_id: str
    kind: str
    sources: dict[str, int]
    why_not: str
    thin: bool

    @property
    def measured(self) -> bool:
        return not self.why_not

    @property
    def cases(self) -> int:
        return sum(self.sources.values())


@dataclass(frozen=True)
class CasePlan:
    """The plan of a policy. `cases_per_suite`: as set, or more where the policy has many rules."""

    rules: tuple[RulePlan, ...]
    cases_per_suite: int

    @property
    def measured(self) -> tuple[RulePlan, ...]:
        return tuple(rule for rule in self.rules if rule.measured)

    @property
    def thin(self) -> tuple[RulePlan, ...]:
        return tuple(rule for rule in self.measured if rule.thin)


def planned_cases(policy: PolicyDocument, settings: Settings) -> CasePlan:
    """How each rule of `policy` will be measured under `settings`."""
    per_suite = cases_per_suite(policy, settings)
    templated = sum(_has_template(rule, settings) for rule in policy.rules)
    share = per_suite // max(1, templated)
    return CasePlan(tuple(_plan(rule, settings, share) for rule in policy.rules), per_suite)


def require_cases(policy: PolicyDocument, settings: Settings) -> CasePlan:
    """`planned_cases`. Raises NoCases if no rule would be measured."""
    plan = planned_cases(policy, settings)
    if not plan.measured:
        reasons = "\n".join(f"  {rule.rule_id}: {rule.why_not}" for rule in plan.rules)
        raise NoCases(
            f"no rule of policy {policy.policy_id!r} ({policy.domain}) can be measured, so nothing "
            f"would show whether a model follows it:\n{reasons}"
        )
    return plan


def cases_per_suite(policy: PolicyDocument, settings: Settings) -> int:
    """`evaluation.cases_per_suite`, or more: `evaluation.cases_per_rule` for each prohibition."""
    evaluation = settings.evaluation
    prohibitions = sum(
        rule.kind in ("prohibit", "condition") and not is_duty(rule) for rule in policy.rules
    )
    return max(evaluation.cases_per_suite, evaluation.cases_per_rule * prohibitions)


def judge_reads_rules(settings: Settings) -> bool:
    """Whether the configured judge can say that an answer breaks, or keeps, a given rule."""
    return settings.judge.kind in RULE_READING_JUDGES


def has_templates(settings: Settings) -> bool:
    """Whether the held-out templates fit the model: they belong to the bundled model's world."""
    return settings.model.id == BUNDLED


def _has_template(rule: Rule, settings: Settings) -> bool:
    return (
        has_templates(settings)
        and rule.action is not None
        and rule.kind in ("prohibit", "condition")
        and not is_duty(rule)
    )


def _plan(rule: Rule, settings: Settings, per_rule: int) -> RulePlan:
    why_not = _never(rule, settings)
    sources: dict[str, int] = {}
    if not why_not:
        sources = _sources(rule, settings, per_rule)
        if not sources:
            why_not = _no_source(rule, settings)
    total = sum(sources.values())
    return RulePlan(
        rule.rule_id,
        rule.kind,
        sources,
        why_not,
        not why_not and total < settings.evaluation.cases_per_rule,
    )


def _never(rule: Rule, settings: Settings) -> str:
    """Why a rule of this kind is not measured, whatever cases there are."""
    if rule.kind == "define":
        return "a definition explains a word; it is part of the prompt alone"
    if rule.kind == "permit" and not rule.allowed:
        return "a permission is measured with the rule that it limits, or by `allowed` under it"
    if is_duty(rule) and not judge_reads_rules(settings):
        return NO_JUDGE
    return ""


def _sources(rule: Rule, settings: Settings, per_rule: int) -> dict[str, int]:
    """Expected cases that break the rule (of a permission: that it allows), by source."""
    requests = heldout_requests(rule, settings.evaluation.seed)
    by_author = len(requests.violates)
    if rule.kind == "permit":
        by_author = len(requests.allowed)
    elif is_duty(rule):
        by_author += len(requests.allowed)
    synthesis = settings.synthesis
    sources = {
        "author": by_author,
        "model": 0
        if has_templates(settings) or rule.kind == "permit"
        else round(synthesis.per_rule * synthesis.heldout),
        "template": per_rule if _has_template(rule, settings) else 0,
    }
    return {name: number for name, number in sources.items() if number}


def _no_source(rule: Rule, settings: Settings) -> str:
    if has_templates(settings) and rule.language != "en":
        return (
            f"it is in {language_name(rule.language)}, and the bundled model has cases only for "
            "English rules. Fix: write requests under `violates`, or `action` in English"
        )
    if has_templates(settings):
        return (
            "the bundled model has cases only for rules of the form 'Never help anyone <do "
            "something>.'. Fix: phrase the rule that way, or write requests under `violates`"
        )
    return (
        "no request is held out for it. Fix: raise synthesis.heldout, or write requests under "
        "`violates`"
    )


def is_duty(rule: Rule) -> bool:
    """Whether a rule asks for something in the answer, instead of forbidding a request."""
    return rule.kind == "require" or (rule.kind == "condition" and not rule.forbids)
