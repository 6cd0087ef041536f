"""OSCAL assessment results: each rule of the policy is a control, and each gate an observation.

compliance-trestle's classes are generated from NIST's schema and validate what is put into them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from policyalign_assets.releases.errors import ReleaseError
from policyalign_assets.releases.papers.facts import Facts, PolicyFacts, outcome


def assessment_results(facts: Facts) -> str:
    """OSCAL assessment results as JSON. Raises ReleaseError without the library."""
    try:
        from trestle.oscal import OSCAL_VERSION
        from trestle.oscal.assessment_results import Model
    except ImportError as error:
        raise ReleaseError(
            f"OSCAL needs the extra `papers` ({error}). "
            "Fix: pip install 'policyalign-assets[papers]'."
        ) from None
    time = facts.time.isoformat()
    document = {
        "assessment-results": {
            "uuid": facts.id("assessment-results"),
            "metadata": {
                "title": f"Assessment of {facts.record.target} against {facts.title}",
                "last-modified": time,
                "version": facts.version,
                "oscal-version": OSCAL_VERSION,
            },
            "import-ap": {
                "href": "#assessment-plan",
                "remarks": "The plan is the settings of the evaluation in the bundle.",
            },
            "results": [
                {
                    "uuid": facts.id("result"),
                    "title": f"Release gates of bundle {facts.version}",
                    "description": _verdicts(facts),
                    "start": time,
                    "props": [
                        _property("bundle", facts.bundle_id),
                        _property("base-model", facts.record.base.model_id),
                        _property("base-revision", facts.record.base.revision),
                        _property("judge", facts.judges),
                    ],
                    "reviewed-controls": {
                        "control-selections": [
                            {
                                "include-controls": [
                                    {"control-id": _token(name)} for name, _ in facts.rules
                                ]
                            }
                        ]
                    },
                    "observations": [
                        _observation(facts, gate, one, predicate, time)
                        for gate, one, predicate in facts.gates
                    ],
                    "findings": [
                        _finding(facts, gate, predicate) for gate, _, predicate in facts.gates
                    ],
                }
            ],
        }
    }
    made = Model.model_validate(document)
    return str(made.model_dump_json(by_alias=True, exclude_none=True, indent=1)) + "\n"


def _verdicts(facts: Facts) -> str:
    said = [
        f"{one.prefix.replace('/', ': ')}{one.report.get('verdict', {}).get('line', 'no verdict')}"
        for one in facts.policies
    ]
    return "; ".join(said)


def _observation(
    facts: Facts, gate: str, one: PolicyFacts, predicate: Mapping[str, Any], time: str
) -> dict[str, Any]:
    return {
        "uuid": facts.id("observation", gate),
        "title": f"Gate {gate}",
        "description": str(predicate.get("explanation") or gate),
        "methods": ["TEST"],
        "collected": time,
        "props": [
            _property(name, f"{value}")
            for name, value in sorted(predicate.get("measurements", {}).items())
        ],
        "relevant-evidence": [
            {
                "description": "Every case with its answer and verdict",
                "props": [_property("sha256", one.record.cases_sha256)],
            }
        ],
    } | ({} if predicate.get("measurements") else {"props": [_property("measured", "no")]})


def _finding(facts: Facts, gate: str, predicate: Mapping[str, Any]) -> dict[str, Any]:
    state = "satisfied" if predicate.get("passed") is True else "not-satisfied"
    return {
        "uuid": facts.id("finding", gate),
        "title": f"Gate {gate}: {outcome(predicate)}",
        "description": str(predicate.get("explanation") or gate),
        "target": {
            "type": "objective-id",
            "target-id": f"gate-{_token(gate)}",
            "status": {"state": state, "reason": "pass" if state == "satisfied" else "fail"},
        },
        "related-observations": [{"observation-uuid": facts.id("observation", gate)}],
    }


def _property(name: str, value: str) -> dict[str, str]:
    return {"name": _token(name), "value": " ".join(value.split()) or "none"}


def _token(text: str) -> str:
    """OSCAL names begin with a letter and hold letters, digits, hyphens, dots and underscores."""
    kept = "".join(c if c.isalnum() or c in "-._" else "-" for c in text)
    return kept if kept[:1].isalpha() or kept[:1] == "_" else f"_{kept}"
