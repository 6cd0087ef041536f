"""Finds the requests of withdrawn rules, which a report asks again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from policyalign_assets.engine.base import Engine
from policyalign_assets.evaluation.cases import TestCase
from policyalign_assets.evaluation.withdrawn import (
    WithdrawnRules,
    not_declined,
    of_policy,
    withdrawn_cases,
    withdrawn_rules,
)
from policyalign_assets.policy import PolicyDocument
from policyalign_assets.report.changes import read_report
from policyalign_assets.report.difference import NotAReport, read_reported
from policyalign_assets.stages.interface import StageContext
from policyalign_assets.stages.last_release import last_release
from policyalign_assets.stages.teachers import declines_of


def withdrawn_requests(
    context: StageContext,
    policy: PolicyDocument,
    known: Sequence[str],
    engine: Callable[[], Engine],
) -> tuple[WithdrawnRules | None, list[TestCase]]:
    """Rules that the last release had and the policy lacks, and their requests.

    known: texts that are cases already, or trained on. Those of policies that have left the
    deployment (`context.departed`) are among the rules. In a deployment, a request that the teacher
    of another of its policies declines is still forbidden, so it is left out and counted. `engine`
    opens the base model, and is called only then.
    """
    about, cases = _of_policy(context, policy, known)
    for domain, policy_id in context.departed:
        gone = replace(policy, domain=domain, policy_id=policy_id, rules=())
        about, cases = _with_departed(context, gone, about, cases, known)
    if about and cases and context.others:
        declines = declines_of(context.others, engine(), context.settings)
        prompts = [case.prompt for case in cases]
        by_teacher = [declines(i, prompts) for i in range(len(context.others))]
        about, cases = not_declined(about, cases, [any(no) for no in zip(*by_teacher, strict=True)])
    if about and about.rules:
        context.report(f"{len(cases)} requests of withdrawn rules: {', '.join(about.rules)}")
    return about, cases


def _of_policy(
    context: StageContext, policy: PolicyDocument, known: Sequence[str]
) -> tuple[WithdrawnRules | None, list[TestCase]]:
    found = last_release(context, policy)
    if found is None:
        return None, []
    folder, name = found
    last = read_report(folder)
    rules = withdrawn_rules((last or {"header": {}})["header"].get("rules") or (), policy)
    if last is not None and not rules:
        return WithdrawnRules(name), []
    try:
        rows = read_reported(folder, name).rows
    except NotAReport as error:
        context.report(f"requests of withdrawn rules cannot be asked: {error}")
        return WithdrawnRules(name, rules, why_not=str(error)), []
    cases = withdrawn_cases(rules, rows, known)
    counts = Counter(case.kind for case in cases)
    return WithdrawnRules(name, rules, {rule: counts[rule] for rule in rules}), cases


def _with_departed(
    context: StageContext,
    gone: PolicyDocument,
    about: WithdrawnRules | None,
    cases: list[TestCase],
    known: Sequence[str],
) -> tuple[WithdrawnRules, list[TestCase]]:
    """Adds the rules of a policy that has left the deployment, and their requests."""
    policy_id = gone.policy_id
    found, more = _of_policy(context, gone, [*known, *(case.prompt for case in cases)])
    if found is None:
        why = f"no released report on the policy {policy_id}, which has left, was found"
        found = WithdrawnRules("", why_not=why)
    so_far = about or WithdrawnRules(found.report)
    named = {f"{policy_id} {rule}": text for rule, text in found.rules.items()}
    asked = {f"{policy_id} {rule}": n for rule, n in found.asked.items()}
    return (
        replace(
            so_far,
            rules=so_far.rules | named,
            asked=so_far.asked | asked,
            why_not=so_far.why_not or found.why_not,
        ),
        [*cases, *of_policy(policy_id, more)],
    )
