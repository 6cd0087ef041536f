"""Technical documentation in the order of Annex IV of the EU AI Act (Regulation (EU) 2024/1689).

Annex IV has no schema. Each of its nine points is here, with what a bundle holds for it and, by
name, what it does not hold. It is a part of a provider's documentation, never the whole.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from policyalign_assets.releases.papers.facts import NOT_HELD, Facts, PolicyFacts, outcome
from policyalign_assets.report.formatting import markdown_cell as cell


def annex_iv(facts: Facts) -> str:
    """Markdown."""
    lines = [
        f"# Technical documentation, Annex IV: {cell(facts.record.target)}",
        "",
        f"Bundle {facts.bundle_id}, made {facts.record.created_at}. Everything here is read from "
        "that signed bundle. Points that it cannot answer are marked.",
    ]
    for number, (title, content) in enumerate(SECTIONS, 1):
        lines += ["", f"## {number}. {title}", "", *content(facts)]
    return "\n".join(lines) + "\n"


def _of(one: PolicyFacts) -> str:
    return f" ({cell(one.record.policy_id)})" if one.prefix else ""


def _general(facts: Facts) -> list[str]:
    record = facts.record
    return [
        *(
            f"- Intended purpose{_of(one)}: {cell(one.policy.preamble) or NOT_HELD}"
            for one in facts.policies
        ),
        f"- Name and version: {cell(record.target)}, {facts.version}",
        f"- Previous version: {record.parent or 'none'}",
        f"- Base model: {cell(record.base.model_id)} at revision {cell(record.base.revision)}, "
        f"SHA-256 of its files: {record.base.sha256 or 'not held'}",
        f"- Form: {'LoRA adapter (PEFT)' if record.tuning == 'lora' else 'whole model'}, "
        "safetensors",
        *(
            f"- Owner of the policy{_of(one)}: {cell(one.policy.owner) or NOT_HELD}"
            for one in facts.policies
        ),
        f"- Provider, deployer, user interface, hardware: {NOT_HELD}",
    ]


def _development(facts: Facts) -> list[str]:
    trained = facts.provenance.get("settings", {})
    return [
        "- Method: requests that would break each rule are synthesized, filtered by how far the "
        "policy shifts the model on them, and distilled on-policy from the model with the policy "
        "in its prompt (PolicyAlign, arXiv 2606.25442).",
        "- Design choices and parameters of the training:",
        *(f"  - {cell(str(k))}: {cell(json.dumps(v))}" for k, v in sorted(trained.items())),
        "- Data:",
        *(
            f"  - {cell(str(k))}{_of(one)}: {cell(str(v))}"
            for one in facts.policies
            for k, v in one.header.get("funnel", {}).items()
        ),
        *(
            f"  - digest of the instructions{_of(one)}: "
            f"{cell(str(one.made_from.get('instructions')))}"
            for one in facts.policies
        ),
        *(
            f"- Validation and testing{_of(one)}: see point 4; cases {one.record.cases_sha256}"
            for one in facts.policies
        ),
        f"- Code: {cell(facts.record.code_version)}",
        "- Cybersecurity: weights are safetensors without code; every file is in a signed "
        "manifest that `policyalign verify` checks.",
        f"- Data of the base model, and human oversight measures: {NOT_HELD}",
    ]


def _monitoring(facts: Facts) -> list[str]:
    limits = [f"- {cell(limit)}" for limit in facts.limits]
    return [
        "- Capabilities and limits of performance:",
        *(f"  {limit}" for limit in limits or [f"- {NOT_HELD}"]),
        "- Control: `policyalign attest` tells whether this very release answers at an endpoint.",
        f"- Foreseeable unintended outcomes beyond the cases: {NOT_HELD}",
    ]


def _metrics(facts: Facts) -> list[str]:
    return [
        "Each gate holds the unfavourable end of a 95 % interval to a bar.",
        "",
        "| gate | outcome | what was measured |",
        "| --- | --- | --- |",
        *(
            f"| {cell(gate)} | {cell(outcome(p))} | {cell(str(p.get('explanation', '')))} |"
            for gate, _, p in facts.gates
        ),
        "",
        f"Judge: {cell(facts.judges)}.",
    ]


def _risks(facts: Facts) -> list[str]:
    waived = [
        f"{cell(one.prefix + gate)} by {cell(waiver['by'])}: {cell(waiver['why'])}"
        for one in facts.policies
        for gate, waiver in one.record.waivers.items()
    ]
    return [
        "- Rules that limit risks:",
        *(
            f"  - {cell(name)} ({r.severity or 'no severity stated'}): {cell(r.text)}"
            for name, r in facts.rules
        ),
        f"- Gates that were waived: {'; '.join(waived) or 'none'}",
        f"- Risk management system (Article 9): {NOT_HELD}",
    ]


def _changes(facts: Facts) -> list[str]:
    changes = [
        f"{cell(str(change))}{_of(one)}"
        for one in facts.policies
        for change in one.report.get("changes", [])
    ]
    events = [
        f"- {e.time}: {e.event} by {cell(e.actor)}" + (f": {cell(e.reason)}" if e.reason else "")
        for e in facts.events
    ]
    return [*(f"- {change}" for change in changes), *(events or ["- The ledger is not here."])]


def _standards(facts: Facts) -> list[str]:
    return [
        *(
            f"- named by the policy{_of(one)}: {cell(reference)}"
            for one in facts.policies
            for reference in one.policy.references
        ),
        f"- Harmonised standards applied: {NOT_HELD}",
    ]


def _not_held(facts: Facts) -> list[str]:
    return [NOT_HELD]


def _after_market(facts: Facts) -> list[str]:
    return [
        "- `policyalign attest --watch` looks at the endpoint again and again; "
        "`policyalign revoke` withdraws a release with a reason.",
        f"- Post-market monitoring plan (Article 72(3)): {NOT_HELD}",
    ]


SECTIONS: tuple[tuple[str, Callable[[Facts], list[str]]], ...] = (
    ("General description of the AI system", _general),
    ("Elements of the AI system and the process of its development", _development),
    ("Monitoring, functioning and control", _monitoring),
    ("Appropriateness of the performance metrics", _metrics),
    ("Risk management system", _risks),
    ("Changes through the lifecycle", _changes),
    ("Standards applied", _standards),
    ("EU declaration of conformity", _not_held),
    ("Performance in the post-market phase", _after_market),
)
