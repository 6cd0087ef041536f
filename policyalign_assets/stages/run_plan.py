"""What a run will do with each rule, and what it will cost: from policy and settings alone.

`policyalign lint` and the first stage show it. Where nothing can be trained, or nothing measured,
the first stage refuses the policy, before any model is loaded. The answers come from the code that
synthesizes and plans the cases, so that what is announced is what happens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from policyalign_assets.evaluation.case_plan import NoCases, RulePlan, planned_cases
from policyalign_assets.policy import PolicyDocument, Rule
from policyalign_assets.policy.reading.reader import is_short_form
from policyalign_assets.settings import BUNDLED, Settings
from policyalign_assets.synthesis.cost import Estimate, estimate
from policyalign_assets.synthesis.drafting import main_kind
from policyalign_assets.synthesis.synthesize import ENGLISH, covered_rules, language_note


class NothingTrained(ValueError):
    """No rule of the policy gets training requests. The message says why, rule by rule."""


@dataclass(frozen=True)
class PlannedRule:
    """`not_trained`: why no training request is written for the rule; empty if some are.

    note: what the English parts of synthesis mean for a rule in another language.
    """

    rule: Rule
    not_trained: str
    cases: RulePlan
    least: int  # evaluation.cases_per_rule
    note: str = ""

    @property
    def trained(self) -> bool:
        return not self.not_trained

    @property
    def measured(self) -> bool:
        return self.cases.measured

    @property
    def why(self) -> str:
        """How the rule is trained and measured, or why not, in one sentence."""
        if not self.trained and not self.measured:
            if self.rule.kind in ("permit", "define"):
                limits = f"; it limits {self.rule.limits}" if self.rule.limits else ""
                return f"neither trained nor measured: {self.cases.why_not}{limits}"
            return f"not trained: {self.not_trained}; not measured: {self.cases.why_not}"
        note = f"; note: {self.note}" if self.note else ""
        return f"{self._training()}; {self._measuring()}{note}"

    def _training(self) -> str:
        if not self.trained:
            return f"not trained: {self.not_trained}"
        if main_kind(self.rule) == "duty":
            return "trained with requests whose answers it shapes"
        return "trained with requests that break it"

    def _measuring(self) -> str:
        if not self.measured:
            return f"not measured: {self.cases.why_not}"
        sources = ", ".join(f"{n} {_SOURCES[name]}" for name, n in self.cases.sources.items())
        thin = f", thin: fewer than {self.least}" if self.cases.thin else ""
        return f"measured with about {self.cases.cases} cases ({sources}{thin})"


_SOURCES = {
    "author": "by its author",
    "model": "written by the model and held out",
    "template": "from templates",
}


@dataclass(frozen=True)
class RunPlan:
    """The plan of one partition."""

    policy: PolicyDocument
    rules: tuple[PlannedRule, ...]
    cases_per_suite: int
    cost: Estimate
    unlike: int = 0  # trained rules that the bundled model was not made to read; 0 for others

    @property
    def sentences(self) -> list[str]:
        """What the run will make and cost, and how its rules will be measured."""
        measured = [rule for rule in self.rules if rule.measured]
        thin = sum(rule.cases.thin for rule in measured)
        trained = sum(rule.trained for rule in self.rules)
        unlike = (
            f"{self.unlike} of {trained} trained rules have another form than 'Never help anyone "
            "<do something>.', the only one that the bundled model was made to follow: expect it "
            "to fail them. Fix: set model.id to a model that follows instructions."
        )
        return [
            self.cost.sentence,
            f"{len(measured)} of {len(self.rules)} rules are measured, {thin} of them thinly; a "
            f"suite has up to {self.cases_per_suite} cases.",
            *([unlike] if self.unlike else []),
        ]

    def require_work(self) -> None:
        """Raises NothingTrained or NoCases where no rule would be trained, or none measured."""
        if not any(rule.trained for rule in self.rules):
            raise NothingTrained(self._refusal("trained", "a run would teach nothing"))
        if not any(rule.measured for rule in self.rules):
            raise NoCases(
                self._refusal("measured", "nothing would show whether a model follows it")
            )

    def _refusal(self, what: str, so: str) -> str:
        reasons = "\n".join(f"  {rule.rule.rule_id}: {rule.why}" for rule in self.rules)
        return (
            f"no rule of policy {self.policy.policy_id!r} ({self.policy.domain}) can be {what}, so "
            f"{so}:\n{reasons}\nFix: write at least one rule as 'Never <do something>.', or set "
            "judge.kind='policy' with a judge that reads the rules, which measures duties too."
        )


def plan_run(
    policy: PolicyDocument, settings: Settings, count: Callable[[str], int] | None = None
) -> RunPlan:
    """count: the tokens of a text under the model's tokenizer; without it, a rule of thumb."""
    _, skipped = covered_rules(policy, settings.synthesis)
    cases = planned_cases(policy, settings)
    of_bundled = [r for r in policy.rules if settings.model.id == BUNDLED]
    return RunPlan(
        policy,
        tuple(
            PlannedRule(
                rule,
                skipped.get(rule.rule_id, ""),
                plan,
                settings.evaluation.cases_per_rule,
                _note(rule, settings),
            )
            for rule, plan in zip(policy.rules, cases.rules, strict=True)
        ),
        cases.cases_per_suite,
        estimate(policy, settings, count),
        sum(r.rule_id not in skipped and not is_short_form(r.text) for r in of_bundled),
    )


def _note(rule: Rule, settings: Settings) -> str:
    return "" if rule.language == ENGLISH else language_note(rule, settings.synthesis)
