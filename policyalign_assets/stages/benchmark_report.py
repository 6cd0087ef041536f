"""The figures, the page and the gates' numbers, from answers and verdicts that are there already: no model, no judge."""

from __future__ import annotations

from datetime import UTC, datetime

import pyarrow as pa

from policyalign_assets.files import sha256_table, uploading, write_parquet
from policyalign_assets.policy import PolicyDocument
from policyalign_assets.records import Checkpoint, ReportRecord, training_table
from policyalign_assets.report.benchmarks import benchmark_blocks
from policyalign_assets.report.build import build_report
from policyalign_assets.report.judged import JudgedAnswers, judged_answers
from policyalign_assets.report.model import ReportContext
from policyalign_assets.report.plots import main_plot
from policyalign_assets.report.render import write_report
from policyalign_assets.report.summary import markdown_summary, metric_values
from policyalign_assets.stages.coverage_facts import yields_of
from policyalign_assets.stages.facts import image, markdown, markdown_table, path
from policyalign_assets.stages.interface import StageContext, StageResult

MET = {True: "yes", False: "NO", None: "not measured"}


def make(
    context: StageContext,
    policy_document: PolicyDocument,
    violating_instructions: pa.Table,
    filtered_instructions: pa.Table,
    distilled_checkpoint: Checkpoint,
    generations: pa.Table,
    judgements: pa.Table,
) -> StageResult:
    settings = context.settings
    answers = judged_answers(generations, judgements, distilled_checkpoint.checkpoint_id)
    report = build_report(
        answers.heldout,
        _context(
            context,
            policy_document,
            distilled_checkpoint,
            answers,
            _funnel(violating_instructions, filtered_instructions),
        ),
        training_table(distilled_checkpoint, context.data),
        gates=settings.gates,
        benchmarks=benchmark_blocks(
            answers.asked.benchmarks,
            answers.benchmarks,
            answers.asked.settings["evaluation"]["seed"],
        ),
        benchmark_rows=answers.benchmarks,
        show_harmful=settings.report.show_harmful,
    )
    folder = f"{context.reports}/{policy_document.policy_id}/{policy_document.domain}"
    with uploading(context.data / folder) as local:
        write_report(report, local)
        write_parquet(answers.heldout, local / "cases.parquet")
        write_parquet(answers.benchmarks, local / "benchmark_cases.parquet")
    page = context.data / folder / "report.html"
    context.report(f"report: {page}")
    figures = f"{sha256_table(answers.heldout)[:32]}{sha256_table(answers.benchmarks)[:32]}"
    metrics = metric_values(report)
    return StageResult(
        ReportRecord(folder, figures, metrics),
        figures,
        {
            "report": path(page),
            "summary": markdown(markdown_summary(report)),
            "main plot": image(main_plot(report), "over-refusal against violations not refused"),
            **metrics,
            "acceptance": markdown_table(
                ("bar", "met", "detail"),
                [(v.name, MET[v.passed], v.detail) for v in report.verdict],
            ),
        },
    )


def _context(
    context: StageContext,
    policy: PolicyDocument,
    checkpoint: Checkpoint,
    answers: JudgedAnswers,
    funnel: dict[str, int],
) -> ReportContext:
    """Settings, versions and judge are those with which the answers and verdicts were made, not those of now."""
    asked, judged = answers.asked, answers.judged
    measured = {
        row["rule_id"] for row in answers.heldout.to_pylist() if row["suite"] == "violations"
    }
    made_with = {
        **asked.settings,
        "judge": judged.settings,
        "distillation": checkpoint.provenance.get("settings", {}),
    }
    return ReportContext(
        policy_id=policy.policy_id,
        domain=policy.domain,
        title=policy.title,
        owner=policy.owner,
        policy_hash=policy.content_hash,
        prompt_text=policy.prompt_text,
        rules=[
            {
                "rule_id": r.rule_id,
                "text": r.text,
                "kind": r.kind,
                "measured": r.rule_id in measured,
                "why_not": ""
                if r.rule_id in measured
                else "a positive duty needs a judge that reads"
                if r.kind == "require"
                else "its wording states no action that a test case can ask for",
            }
            for r in policy.rules
        ],
        model_id=asked.model_id,
        model_revision=asked.model_revision,
        model_note=asked.model_note,
        checkpoint_id=checkpoint.checkpoint_id,
        settings=context.settings.model_dump(mode="json") | made_with,
        versions=asked.versions,
        judge=judged.judge,
        funnel=funnel,
        seed=checkpoint.provenance.get("settings", {}).get(
            "seed", context.settings.distillation.seed
        ),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        made_from={
            "answers": judged.answers,
            **{
                name: str(checkpoint.provenance[name])
                for name in ("instructions", "everyday_requests")
                if name in checkpoint.provenance
            },
        },
    )


def _funnel(instructions: pa.Table, filtered: pa.Table) -> dict[str, int]:
    yields = yields_of(instructions).values()
    funnel = {"drafts": sum(y["drafted"] for y in yields)}
    for reason in sorted({r for y in yields for r in y["dropped"]}):
        funnel[f"dropped in synthesis: {reason}"] = sum(y["dropped"].get(reason, 0) for y in yields)
    funnel["violating instructions"] = sum(y["violating"] for y in yields)
    funnel["twins"] = sum(y["twins"] for y in yields)
    funnel["neighbours"] = sum(y["neighbours"] for y in yields)
    for c in sorted(filtered["reason"].value_counts().to_pylist(), key=lambda c: c["values"]):
        funnel[c["values"]] = c["counts"]
    return funnel
