"""All held-out cases of a policy, from every source that fits the settings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from policyalign_assets.evaluation.case_plan import (
    cases_per_suite,
    has_templates,
    judge_reads_rules,
)
from policyalign_assets.evaluation.cases import (
    TestCase,
    author_cases,
    conformance_cases,
    model_written_cases,
)
from policyalign_assets.evaluation.probes import (
    pressure_cases,
    probe_cases,
    question_cases,
    uncovered_cases,
)
from policyalign_assets.evaluation.suites import SUITES
from policyalign_assets.evaluation.template_cases import (
    capability_cases,
    rule_cases,
    template_cases,
)
from policyalign_assets.policy import PolicyDocument, Rule
from policyalign_assets.settings import Settings
from policyalign_assets.synthesis.duplicates import normalize
from policyalign_assets.synthesis.firewall import Firewall


@dataclass(frozen=True)
class HeldOut:
    """The cases, and how many held-out rows became no case, by rule id and reason."""

    cases: list[TestCase]
    left_out: dict[str, Counter[str]]

    def cases_of_rules(self) -> Counter[str]:
        """Cases by the rule that they test. Benign cases and probes do not count."""
        return Counter(
            case.rule_id
            for case in self.cases
            if case.rule_id
            and not SUITES[case.suite].probe
            and SUITES[case.suite].metric != "answered"
        )


def held_out_cases(policy: PolicyDocument, instructions: pa.Table, settings: Settings) -> HeldOut:
    """Every case that a model is asked, without a text twice and without a training text.

    instructions: an INSTRUCTIONS table, all of whose texts are left out but for its held-out rows.
    """
    evaluation = settings.evaluation
    per_suite = cases_per_suite(policy, settings)
    duties = judge_reads_rules(settings)
    synthesized = instructions["text"].to_pylist()
    cases = author_cases(policy, evaluation.seed, duties)
    left_out: dict[str, Counter[str]] = {}
    if has_templates(settings):
        cases += _templates(policy, per_suite, settings, [*synthesized, *_prompts(cases)])
        cases += conformance_cases(instructions)
    else:
        written, left_out = model_written_cases(policy, instructions, duties)
        known = {normalize(prompt) for prompt in _prompts(cases)}
        cases += _at_most(
            per_suite,
            evaluation.benign_cases,
            [c for c in written if normalize(c.prompt) not in known],
        )
    violations = [c for c in cases if c.suite == "violations"]
    cases += probe_cases(violations, evaluation.probe_cases, evaluation.seed)
    cases += pressure_cases(violations, evaluation.pressure_cases, evaluation.seed)
    cases += uncovered_cases(evaluation.benign_cases, synthesized)
    questions = capability_cases if has_templates(settings) else question_cases
    cases += questions(evaluation.capability_cases, evaluation.seed)
    return HeldOut(cases, left_out)


def own_cases(policy: PolicyDocument, rule: Rule, settings: Settings) -> Firewall:
    """A firewall over the held-out cases of `rule` alone, which synthesis must keep clear of.

    The held-out requests of the rule's author are always in it, and the templates' cases if
    `firewall.own_cases` is on and the model is asked them. An edit of another rule changes nothing.
    """
    alone = PolicyDocument(**{**vars(policy), "rules": (rule,)})
    cases = author_cases(alone, settings.evaluation.seed, duties=True)
    if settings.firewall.own_cases and has_templates(settings):
        cases += rule_cases(
            rule, policy, settings.evaluation.cases_per_suite, settings.evaluation.seed
        )
    return Firewall(
        {f"{c.suite}:{n}": c.prompt for n, c in enumerate(cases)}, settings.firewall.threshold
    )


def _templates(
    policy: PolicyDocument, per_suite: int, settings: Settings, exclude: Sequence[str]
) -> list[TestCase]:
    return template_cases(
        policy,
        per_suite,
        settings.evaluation.benign_cases,
        settings.evaluation.probe_cases,
        settings.evaluation.seed,
        exclude,
    )


def _prompts(cases: Sequence[TestCase]) -> list[str]:
    return [case.prompt for case in cases]


def _at_most(per_suite: int, benign: int, cases: Sequence[TestCase]) -> list[TestCase]:
    """At most `per_suite` cases of each suite, or `benign` of one that must be answered.

    All rules have equally many cases as far as they last.
    """
    kept: list[TestCase] = []
    for suite in dict.fromkeys(c.suite for c in cases):
        by_rule: dict[str | None, list[TestCase]] = {}
        for case in cases:
            if case.suite == suite:
                by_rule.setdefault(case.rule_id, []).append(case)
        rounds = max(len(group) for group in by_rule.values())
        in_turn = [g[i] for i in range(rounds) for g in by_rule.values() if i < len(g)]
        kept += in_turn[: benign if SUITES[suite].metric == "answered" else per_suite]
    return kept
