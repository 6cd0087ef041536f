"""Held-out test cases: what a model is asked, and was never trained on.

The cases of a rule come from three sources, in this order:

1. Its author: the requests under `violates` and `allowed` that are held out of synthesis.
2. A generator: rows that were held out of training by whole clusters and that a judge, or the
   attribution test, ties to their rule.
3. Templates (template_cases.py), for the bundled model alone.

The bundled model's own requests are not tied to rules by a judge. They form suites of their own,
`conformance` and `conformance_benign`, which no gate reads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from policyalign_assets.evaluation.case_plan import is_duty
from policyalign_assets.evaluation.conversation import Conversation
from policyalign_assets.filtering.select import conformance_set
from policyalign_assets.policy import PolicyDocument, Rule
from policyalign_assets.policy.author_requests import heldout_requests
from policyalign_assets.synthesis.duplicates import normalize

CODE_VERSION = 3  # raise it when new code changes which held-out cases are built

Scoring = Literal["judge", "rule", "text"]


@dataclass(frozen=True)
class TestCase:
    """One conversation of a suite.

    kind: what sort of case it is within its suite.
    rule_id: the rule that the case tests, where it tests one.
    wrapped: the request is disguised.
    expected: of a question, its right answer. `alternatives` are wrong ones that it offers.
    cluster: what cases that resemble each other share, such as the action that they ask for.
    scoring: who scores the answer, see judging.py.
    """

    case_id: str
    suite: str
    kind: str
    rule_id: str | None
    wrapped: bool
    conversation: Conversation
    expected: str = ""
    cluster: str | None = None
    alternatives: tuple[str, ...] = ()
    scoring: Scoring = "judge"

    @property
    def prompt(self) -> str:
        """Everything that the case says, as one text."""
        return self.conversation.text


def capability_case(
    number: int, kind: str, question: str, right: str, wrong: tuple[str, ...]
) -> TestCase:
    """The `number`-th question of the suite `capability`. `wrong`: answers that do not count."""
    return TestCase(
        f"capability-{number:04d}",
        "capability",
        kind,
        None,
        False,
        Conversation.of(question),
        expected=right,
        alternatives=wrong,
        scoring="text",
    )


def author_cases(policy: PolicyDocument, seed: int, duties: bool) -> list[TestCase]:
    """The held-out requests of the policy's author.

    duties: whether a judge reads the rules, so that the requests of duties can be scored.
    """
    cases: list[TestCase] = []
    for rule in policy.rules:
        if rule.kind == "define" or (is_duty(rule) and not duties):
            continue
        requests = heldout_requests(rule, seed)
        for breaks, texts in ((True, requests.violates), (False, requests.allowed)):
            if rule.kind == "permit" and breaks:
                continue
            for number, text in enumerate(texts):
                side = "violates" if breaks else "allowed"
                suite = suite_of(rule, breaks, wrapped=False)
                cases.append(
                    TestCase(
                        f"author-{rule.rule_id}-{side}-{number}",
                        suite,
                        "author",
                        rule.rule_id,
                        False,
                        Conversation.of(text),
                        cluster=f"{rule.rule_id}: {normalize(text)}",
                        scoring="rule" if suite == "duties" else "judge",
                    )
                )
    return cases


def model_written_cases(
    policy: PolicyDocument, instructions: pa.Table, duties: bool
) -> tuple[list[TestCase], dict[str, Counter[str]]]:
    """The held-out rows of INSTRUCTIONS that are tied to their rule, and why others are no cases.

    duties: as in `author_cases`. The second value counts reasons by rule id.
    """
    rules = {rule.rule_id: rule for rule in policy.rules}
    cases: list[TestCase] = []
    left_out: dict[str, Counter[str]] = {}
    for row in _violating_first(conformance_set(instructions).to_pylist()):
        rule = rules.get(row["rule_id"])
        reason = _unusable(row, rule, duties)
        if rule is None or reason:
            left_out.setdefault(row["rule_id"], Counter())[reason] += 1
            continue
        breaks = row["kind"] in ("violating", "duty")
        suite = suite_of(rule, breaks, wrapped=row["style"] is not None)
        cases.append(
            TestCase(
                f"written-{row['instruction_id']}",
                suite,
                row["kind"],
                row["rule_id"],
                row["style"] is not None,
                Conversation.of(row["text"]),
                cluster=row["cluster"],
                scoring="rule" if suite == "duties" else "judge",
            )
        )
    return _distinct(cases), left_out


def conformance_cases(instructions: pa.Table) -> list[TestCase]:
    """The held-out rows of an INSTRUCTIONS table that nobody has tied to their rules.

    Duties are left out, because a refusal does not tell whether an answer fulfils one.
    """
    cases = []
    for row in _violating_first(conformance_set(instructions).to_pylist()):
        if row["kind"] == "duty":
            continue
        breaks = row["kind"] == "violating"
        cases.append(
            TestCase(
                f"conformance-{row['instruction_id']}",
                "conformance" if breaks else "conformance_benign",
                row["kind"],
                row["rule_id"] if breaks else None,
                row["style"] is not None,
                Conversation.of(row["text"]),
                cluster=row["cluster"],
            )
        )
    return _distinct(cases)


def suite_of(rule: Rule, breaks: bool, wrapped: bool) -> str:
    """The suite of a request that breaks `rule`, or that stays just within it."""
    if is_duty(rule):
        return "duties"
    if rule.condition or rule.exceptions or rule.kind == "permit":
        return "conditions_forbidden" if breaks else "conditions_allowed"
    if breaks:
        return "violations_wrapped" if wrapped else "violations"
    return "twins"


def _unusable(row: dict[str, Any], rule: Rule | None, duties: bool) -> str:
    """Why a held-out row is no case; empty if it is one."""
    if rule is None:
        return "its rule is not in the policy"
    if is_duty(rule) and not duties:
        return "no judge reads the rules, so nobody can tell whether an answer fulfils the duty"
    if row.get("entailed") is False or row.get("attributed") is False:
        return "it does not fit its rule"
    if not (row.get("entailed") or row.get("attributed")):
        return "no judge and no attribution test ties it to its rule"
    return ""


def _violating_first(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: row["kind"] not in ("violating", "duty"))


def _distinct(cases: Iterable[TestCase]) -> list[TestCase]:
    """One case per text. If two rules got the same text and it breaks one, it is not benign."""
    by_text: dict[str, TestCase] = {}
    for case in cases:
        by_text.setdefault(normalize(case.prompt), case)
    return list(by_text.values())
