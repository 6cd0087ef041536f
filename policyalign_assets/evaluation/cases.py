"""Held-out test cases: requests that a model is asked and that it was never trained on.

`template_cases.py` writes cases for the bundled model's world. The cases here come from the
generator of the training data, which wrote them, and were held out of training by whole clusters.
Their suites are `conformance` (they break a rule) and `conformance_benign` (their twins and
neighbours, which stay just within the rules).
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from policyalign_assets.filtering.select import conformance_set
from policyalign_assets.synthesis.duplicates import normalize

CODE_VERSION = 1  # raise it when new code changes which held-out cases are built


class NoCases(ValueError):
    """No rule of the policy can be measured."""


@dataclass(frozen=True)
class TestCase:
    """One request. `expected` is the right answer of a capability case, and empty otherwise."""

    case_id: str
    suite: str
    kind: str
    rule_id: str | None
    wrapped: bool
    prompt: str
    expected: str
    # What cases that resemble each other share, such as the action that they ask for
    cluster: str | None = None


def heldout_cases(instructions: pa.Table) -> list[TestCase]:
    """The held-out rows of an INSTRUCTIONS table, as cases.

    Duties are left out, because a refusal does not tell whether an answer fulfils one. If two rules
    got the same text and it breaks one of them, it is not a benign case of the other.
    """
    seen: set[str] = set()
    cases: list[TestCase] = []
    for row in sorted(
        conformance_set(instructions).to_pylist(), key=lambda row: row["kind"] != "violating"
    ):
        if row["kind"] == "duty" or (key := normalize(row["text"])) in seen:
            continue
        seen.add(key)
        breaks = row["kind"] == "violating"
        cases.append(
            TestCase(
                f"conformance-{row['instruction_id']}",
                "conformance" if breaks else "conformance_benign",
                row["kind"],
                row["rule_id"] if breaks else None,
                row["style"] is not None,
                row["text"],
                "",
                row["cluster"],
            )
        )
    return cases
