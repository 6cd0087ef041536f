"""One in-toto statement a gate: what was measured, on which data, and the outcome.

The predicate holds the fields that in-toto's proposal for evaluation results names (metric,
threshold, passed, sample size, dataset digests). Its type is our own until that proposal is
accepted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://policyalign.dev/attestations/gate/v1"


def gate_statement(
    gate: Mapping[str, Any],
    subjects: Mapping[str, str],
    datasets: Mapping[str, str],
    waiver: Mapping[str, str] | None,
) -> dict[str, Any]:
    """The statement of one gate.

    gate: a gate result with `gate`, `passed`, `blocking`, `numbers` and `sentence`.
    subjects, datasets: SHA-256 digests by name. waiver: who waived the gate, and why.
    """
    return {
        "_type": STATEMENT_TYPE,
        "subject": [
            {"name": name, "digest": {"sha256": digest}}
            for name, digest in sorted(subjects.items())
        ],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "metric": gate["gate"],
            "passed": gate["passed"],
            "blocking": gate["blocking"],
            "measurements": dict(sorted(gate["numbers"].items())),
            "explanation": gate["sentence"],
            "waiver": dict(waiver) if waiver else None,
            "datasets": [
                {"name": name, "digest": {"sha256": digest}}
                for name, digest in sorted(datasets.items())
            ],
        },
    }


def gates_of(statements: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The predicates of gate statements, by gate."""
    return {s["predicate"]["metric"]: s["predicate"] for s in statements}
