"""The evidence on a deployed model: one report for each of its policies, and one page over them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from policyalign_assets.files import parquet_bytes, write_whole
from policyalign_assets.policy import PolicyDocument
from policyalign_assets.policy.deployments import NAME
from policyalign_assets.records import Checkpoint, ReportRecord, parent_of
from policyalign_assets.report.chain import Chain
from policyalign_assets.report.release import decide
from policyalign_assets.report.templates import rendered
from policyalign_assets.stages import benchmark_report, generations, judgements
from policyalign_assets.stages.facts import Facts, markdown_table, path
from policyalign_assets.stages.interface import StageContext, StageResult
from policyalign_assets.stages.parents import DEPLOYMENT_FILE, deployment_record, started_from
from policyalign_assets.stages.unfinished import remove_done

RELEASABLE = "RELEASABLE"
CODE_VERSION = 2  # raise it when new code changes what is written beside the reports of the members


@dataclass(frozen=True)
class Member:
    """What the report on one policy of the deployment says. `page` is relative to the data."""

    policy: str
    verdict: str
    releasable: bool
    page: str
    metrics: dict[str, float]


def make(
    context: StageContext,
    policy_document: dict[str, PolicyDocument],
    violating_instructions: dict[str, pa.Table],
    filtered_instructions: dict[str, pa.Table],
    deployed_checkpoint: Checkpoint,
) -> StageResult:
    """Answers that do not depend on the deployed model are those of the policy's own partition."""
    here = replace(context, deployment=deployed_checkpoint.provenance["deployment"])
    departed = _departed(here, policy_document)
    members: list[Member] = []
    for partition, policy in policy_document.items():
        context.report(f"policy {policy.policy_id}")
        others = tuple(p for key, p in policy_document.items() if key != partition)
        members.append(
            _member(
                # what left policies forbade is asked in the first report alone
                replace(here, others=others, departed=() if members else departed),
                policy,
                violating_instructions[partition],
                filtered_instructions[partition],
                deployed_checkpoint.under(partition),
            )
        )
    releasable = all(member.releasable for member in members)
    failing = [member.policy for member in members if not member.releasable]
    verdict = (
        f"{RELEASABLE}: under each of its {len(members)} policies"
        if releasable
        else f"NOT RELEASABLE: the gates fail under {', '.join(failing)}"
    )
    made = deployed_checkpoint.provenance
    accepted = deployment_record(here.results).get("accepted")
    hashes = {key: policy.content_hash for key, policy in policy_document.items()}
    if releasable:
        accepted = {"checkpoint": deployed_checkpoint.checkpoint_id, "policy_hashes": hashes}
    content: dict[str, Any] = {
        "deployment": here.deployment,
        "verdict": verdict,
        "releasable": releasable,
        "checkpoint": deployed_checkpoint.checkpoint_id,
        "teacher": made["teacher"],
        "policies": [asdict(member) for member in members],
        "policy_hashes": hashes,
        "conflicts": made["conflicts"],
        "teacher_conflicts": made.get("teacher conflicts", []),
        "rerouted": made["rerouted"],
        "unread": made["unread"],
        "lineage": made.get("lineage"),
        "started_from": started_from(deployed_checkpoint),
        "accepted": accepted,
    }
    text = json.dumps(content, indent=1, sort_keys=True)
    page = rendered("deployment.html.jinja", **content, back="../" * 2)
    folder = here.results
    write_whole(folder / "deployment.html", page.encode())
    write_whole(folder / DEPLOYMENT_FILE, text.encode())
    context.report(verdict)
    remove_done(context.data, "deployed_checkpoint", str(here.deployment))
    metrics = {f"{m.policy}: {name}": v for m in members for name, v in m.metrics.items()}
    version = hashlib.sha256(text.encode()).hexdigest()
    facts: Facts = {
        "verdict": verdict,
        "report": path(folder / "deployment.html"),
        "training started from": started_from(deployed_checkpoint),
        "policies": markdown_table(
            ("policy", "verdict", "report"), [(m.policy, m.verdict, m.page) for m in members]
        ),
        **metrics,
    }
    relative = str(folder)[len(str(context.data)) :].strip("/")
    may_stand = releasable or parent_of(deployed_checkpoint) is None
    return StageResult(ReportRecord(relative, version, metrics, may_stand), version, facts)


def _departed(
    context: StageContext, present: dict[str, PolicyDocument]
) -> tuple[tuple[str, str], ...]:
    """(domain, policy id) of policies that the last accepted checkpoint had, and this one lacks."""
    accepted = deployment_record(context.results).get("accepted")
    before = accepted.get("policy_hashes") if isinstance(accepted, dict) else None
    found = []
    for key in sorted(before) if isinstance(before, dict) else ():
        domain, _, policy = key.partition("|")
        if key not in present and NAME.fullmatch(domain) and NAME.fullmatch(policy):
            found.append((domain, policy))
    return tuple(found)


def _member(
    context: StageContext,
    policy: PolicyDocument,
    instructions: pa.Table,
    filtered: pa.Table,
    checkpoint: Checkpoint,
) -> Member:
    answers = generations.make(context, policy, instructions, checkpoint).value
    verdicts = judgements.make(context, policy, answers).value
    for name, table in (("generations", answers), ("judgements", verdicts)):  # for a release
        write_whole(
            context.results / "assets" / name / policy.domain / f"{policy.policy_id}.parquet",
            parquet_bytes(table),
        )
    record: ReportRecord = benchmark_report.make(
        context, policy, instructions, filtered, checkpoint, answers, verdicts
    ).value
    chain = Chain(policy, instructions, filtered, checkpoint, answers, verdicts)
    decision = decide(context.results, chain, context.settings.gates, context.data)
    return Member(
        policy.policy_id,
        decision.verdict.line,
        decision.verdict.releasable,
        str(Path(record.path) / "report.html"),
        record.metrics,
    )
