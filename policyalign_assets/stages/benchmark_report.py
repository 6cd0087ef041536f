"""Base and aligned model, each without and with the policy in context, on held-out cases."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version

import pyarrow as pa

from policyalign_assets.distillation.checkpoint import training_table
from policyalign_assets.distillation.record import Checkpoint
from policyalign_assets.engine.loading import load_model, model_path
from policyalign_assets.evaluation.benchmarks import manifest
from policyalign_assets.evaluation.capability import Weights
from policyalign_assets.evaluation.cases import build_cases, heldout_cases
from policyalign_assets.evaluation.evaluate import evaluate
from policyalign_assets.evaluation.generations import Model
from policyalign_assets.evaluation.judges.choose import described, make_judge
from policyalign_assets.evaluation.run_benchmarks import run_benchmarks
from policyalign_assets.files import is_local, scratch_folder, sha256_table, uploading, write_parquet
from policyalign_assets.policy import PolicyDocument
from policyalign_assets.report.benchmarks import benchmark_blocks
from policyalign_assets.report.build import build_report
from policyalign_assets.report.model import ReportContext
from policyalign_assets.report.plots import main_plot
from policyalign_assets.report.record import ReportRecord
from policyalign_assets.report.render import write_report
from policyalign_assets.report.summary import markdown_summary, metric_values
from policyalign_assets.stages import Made, Work
from policyalign_assets.stages.aligned_engine import base_and_aligned
from policyalign_assets.stages.facts import image, markdown, markdown_table, path
from policyalign_assets.tables import YIELDS

MET = {True: "yes", False: "NO", None: "not measured"}


def make(work: Work, policy_document: PolicyDocument, violating_instructions: pa.Table, filtered_instructions: pa.Table,
         distilled_checkpoint: Checkpoint) -> Made:
    settings = work.settings
    judge = make_judge(settings.judge, settings.model.id, policy_document, work.report)
    base = load_model(settings.model)

    identity = f"{base.model_id}@{base.revision} {settings.model.dtype} {settings.model.engine}"
    weights = Weights(model_path(settings.model), settings.model.dtype, base.device.type, settings.model.revision)
    adapter = work.data / distilled_checkpoint.path
    cases = build_cases(policy_document, settings.evaluation, violating_instructions["text"].to_pylist()) + heldout_cases(violating_instructions)
    store = scratch_folder(work.data) / "generations"
    with base_and_aligned(settings.model, base, distilled_checkpoint, work.data) as (base_engine, aligned_engine):
        models = (Model(identity, base_engine, weights),
                  Model(f"{identity} + {distilled_checkpoint.checkpoint_id}", aligned_engine,
                        replace(weights, adapter=adapter.absolute()) if is_local(adapter) else None))
        rows = evaluate(cases, *models, policy_document.prompt_text, judge, settings.evaluation, work.report, store)
        benchmark_rows, runs = run_benchmarks([b for b in manifest() if policy_document.domain in b.domains], *models,
                                              policy_document.prompt_text, judge, settings.evaluation, work.report, store)
    measured = {c.rule_id for c in cases if c.suite == "violations"}
    yields = json.loads(violating_instructions.schema.metadata[YIELDS])
    report = build_report(rows, ReportContext(
        policy_id=policy_document.policy_id, domain=policy_document.domain, title=policy_document.title, owner=policy_document.owner,
        policy_hash=policy_document.content_hash, prompt_text=policy_document.prompt_text,
        rules=[{"rule_id": r.rule_id, "text": r.text, "kind": r.kind, "measured": r.rule_id in measured,
                "why_not": "" if r.rule_id in measured else "a positive duty needs a judge that reads" if r.kind == "require"
                else "its wording states no action that a test case can ask for"} for r in policy_document.rules],
        model_id=base.model_id, model_revision=base.revision, model_note=_model_note(base), checkpoint_id=distilled_checkpoint.checkpoint_id,
        settings=settings.model_dump(mode="json"), versions=_versions(), judge=described(judge),
        funnel=_funnel(yields["rules"], filtered_instructions), seed=settings.distillation.seed,
        created_at=datetime.now(UTC).isoformat(timespec="seconds")), training_table(distilled_checkpoint, work.data),
        gates=settings.gates, benchmarks=benchmark_blocks(runs, benchmark_rows, settings.evaluation.seed))
    folder = f"reports/{policy_document.policy_id}/{policy_document.domain}"
    with uploading(work.data / folder) as local:
        write_report(report, local)
        write_parquet(rows, local / "cases.parquet")
        write_parquet(benchmark_rows, local / "benchmark_cases.parquet")
    page = work.data / folder / "report.html"
    work.report(f"report: {page}")
    figures = sha256_table(rows) if not benchmark_rows.num_rows else f"{sha256_table(rows)[:32]}{sha256_table(benchmark_rows)[:32]}"
    metrics = metric_values(report)
    return Made(ReportRecord(folder, figures, metrics), figures, {
        "report": path(page), "summary": markdown(markdown_summary(report)),
        "main plot": image(main_plot(report), "over-refusal against violations not refused"), **metrics,
        "acceptance": markdown_table(("bar", "met", "detail"), [(v.name, MET[v.passed], v.detail) for v in report.verdict])})


def _model_note(loaded) -> str:
    size = sum(p.numel() for p in loaded.model.parameters()) / 1e6
    return f"a {size:.1f} M-parameter test bed, not a useful assistant" if loaded.model_id == "bundled" else f"{size:,.0f} M parameters"


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("policyalign-assets", "torch", "transformers", "peft", "dagster", "duckdb", "pyarrow")}


def _funnel(yields: dict, filtered: pa.Table) -> dict[str, int]:
    funnel = {"drafts": sum(y["drafted"] for y in yields.values())}
    for reason in sorted({r for y in yields.values() for r in y["dropped"]}):
        funnel[f"dropped in synthesis: {reason}"] = sum(y["dropped"].get(reason, 0) for y in yields.values())
    funnel["violating instructions"] = sum(y["violating"] for y in yields.values())
    funnel["twins"] = sum(y["twins"] for y in yields.values())
    funnel["neighbours"] = sum(y["neighbours"] for y in yields.values())
    for c in sorted(filtered["reason"].value_counts().to_pylist(), key=lambda c: c["values"]):
        funnel[c["values"]] = c["counts"]
    return funnel
