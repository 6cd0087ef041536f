"""What a report says of its origin: policy, model, judge, settings and code."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pyarrow as pa

from policyalign_assets.evaluation.case_plan import RulePlan
from policyalign_assets.evaluation.suites import RULE_SUITES
from policyalign_assets.policy import PolicyDocument, reading_line
from policyalign_assets.report.chain import Chain, JudgedAnswers
from policyalign_assets.report.contents import JudgeAgreement, ReportContext
from policyalign_assets.settings import BUNDLED, Settings

NO_CASE = "no case was left for it"


def report_context(
    chain: Chain,
    answers: JudgedAnswers,
    settings: Settings,
    calibration: JudgeAgreement | None,
    funnel: Mapping[str, Any],
    created_at: str,
) -> ReportContext:
    """Settings, versions and judge are those with which the answers and verdicts were made."""
    policy, checkpoint = chain.policy, chain.checkpoint
    info, judged = answers.asked, answers.judged
    trained_with = checkpoint.provenance.get("settings", {})
    made_from = {"answers": judged.answers}
    for name in ("instructions", "everyday_requests"):
        if name in checkpoint.provenance:
            made_from[name] = str(checkpoint.provenance[name])
    return ReportContext(
        policy_id=policy.policy_id,
        domain=policy.domain,
        title=policy.title,
        owner=policy.owner,
        policy_hash=policy.content_hash,
        prompt_text=policy.prompt_text,
        rules=rule_states(policy, answers.heldout, info.rules),
        model_id=info.model_id,
        model_revision=info.model_revision,
        model_note=info.model_note,
        checkpoint_id=checkpoint.checkpoint_id,
        settings=settings.model_dump(mode="json")
        | {**info.settings, "judge": judged.settings, "distillation": trained_with},
        versions=info.versions,
        judge=judged.judge,
        funnel=dict(funnel),
        seed=trained_with.get("seed", settings.distillation.seed),
        created_at=created_at,
        made_from=made_from,
        bundled=info.model_id == BUNDLED,
        calibration=calibration,
        effective_date=policy.effective_date.isoformat() if policy.effective_date else None,
        code_version=code_version(),
        lineage=dict(checkpoint.provenance.get("lineage") or {}),
        withdrawn=info.withdrawn,
    )


def rule_states(
    policy: PolicyDocument, heldout: pa.Table, plans: Sequence[RulePlan]
) -> list[dict[str, Any]]:
    """Each rule with whether a held-out case tests it, and why not, by the plan of the cases."""
    why_not = {plan.rule_id: plan.why_not for plan in plans}
    measured = {
        row["rule_id"]
        for row in heldout.select(["suite", "rule_id"]).to_pylist()
        if row["suite"] in RULE_SUITES
    }
    return [
        {
            "rule_id": rule.rule_id,
            "text": rule.text,
            "kind": rule.kind,
            "reading": reading_line(rule),
            "measured": rule.rule_id in measured,
            "why_not": "" if rule.rule_id in measured else why_not.get(rule.rule_id) or NO_CASE,
        }
        for rule in policy.rules
    ]


@cache
def code_version() -> str:
    """The package's version and a hash of its source files: two runs of one code agree in both."""
    root = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for file in sorted(_sources(root)):
        digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    try:
        name = version("policyalign-assets")
    except PackageNotFoundError:
        name = "unknown"
    return f"{name}+{digest.hexdigest()[:12]}"


def _sources(root: Path) -> Sequence[Path]:
    return [
        f for f in root.rglob("*") if f.suffix in (".py", ".jinja", ".js", ".csv", ".sql", ".yaml")
    ]
