"""Held-out cases from templates, which fit the bundled model's world alone (`world/`).

Templates write the cases from the rules, independently of the synthesizer. Every text that was
synthesized for training is left out. Suites:

* `violations`: the action of a rule, asked plainly
* `violations_wrapped`: the same, disguised as role-play, claimed authority and the like
* `twins`: the object of a rule with a permitted verb
* `uncovered`: requests that no rule names
* `capability`: arithmetic and lookup questions with one right answer
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator
from dataclasses import replace

from policyalign_assets.evaluation.cases import NoCases, TestCase
from policyalign_assets.policy import PolicyDocument, Rule
from policyalign_assets.settings import EvaluationSettings, Settings
from policyalign_assets.synthesis.duplicates import normalize
from policyalign_assets.synthesis.firewall import Firewall
from policyalign_assets.world.world import UNCOVERED_KINDS, Action, Case, World, WorldPolicy


def build_cases(
    policy: PolicyDocument, settings: EvaluationSettings, exclude: Collection[str] = ()
) -> list[TestCase]:
    """`settings.cases_per_suite` distinct cases per suite, spread evenly over rules and kinds.

    A suite has fewer cases if its templates give no more distinct texts.

    exclude: texts that were synthesized from this policy. Raises NoCases if no rule has an action.
    """
    rules = {r.action: r.rule_id for r in policy.prohibitions if r.action}
    if not rules:
        raise NoCases(
            f"no rule of policy {policy.policy_id!r} ({policy.domain}) has the form "
            "'Never help anyone <do something>.', so no test case can be written. "
            "Fix: phrase at least one prohibition that way."
        )
    world = World(random.Random(settings.seed), "train", frozenset(rules), invented=0.0)
    stated = WorldPolicy(policy.prompt_text, tuple(Action.parse(a) for a in rules))
    seen = {normalize(t) for t in exclude}

    def distinct(suite: str, n: int, draw: Iterator[Case]) -> list[TestCase]:
        cases: list[TestCase] = []
        for _, case in zip(range(50 * n), draw):
            if len(cases) == n:
                break
            if (key := normalize(case.request)) in seen:
                continue
            seen.add(key)
            rule_id = rules.get(case.action.text) if case.action else None
            cases.append(
                TestCase(
                    f"{suite}-{len(cases):04d}",
                    suite,
                    case.kind,
                    rule_id,
                    case.wrapped,
                    case.request,
                    case.expected,
                    case.action.text if case.action else None,
                )
            )
        return cases

    def violations(wrapped: bool) -> Iterator[Case]:
        while True:
            for action in stated.actions:
                yield world.ask("covered", action, wrapped)

    def uncovered(kinds: tuple[str, ...]) -> Iterator[Case]:
        while True:
            for kind in kinds:
                yield world.case(stated, kind, wrapped=False)

    def capability() -> Iterator[Case]:
        heldout = World(random.Random(settings.seed), "heldout")
        while True:
            yield heldout.capability()

    kinds = tuple(k for k in UNCOVERED_KINDS if k != "crossed" or len(rules) > 1)
    n = settings.cases_per_suite
    return [
        *distinct("violations", n, violations(False)),
        *distinct("violations_wrapped", n, violations(True)),
        *distinct("twins", settings.benign_cases, uncovered(("twin",))),
        *distinct("uncovered", settings.benign_cases, uncovered(kinds)),
        *distinct("capability", settings.capability_cases, capability()),
    ]


def own_cases(policy: PolicyDocument, rule: Rule, settings: Settings) -> Firewall:
    """A firewall over the held-out cases of `rule` alone, which synthesis must keep clear of.

    Only this rule is used, so an edit of another rule changes nothing here.
    """
    try:
        cases = build_cases(replace(policy, rules=(rule,)), settings.evaluation)
    except NoCases:
        cases = []
    return Firewall(
        {f"{c.suite}:{n}": c.prompt for n, c in enumerate(cases) if c.suite != "capability"},
        settings.firewall.threshold,
    )
