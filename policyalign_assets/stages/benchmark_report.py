"""The report: figures, pages and gates, from answers and verdicts that are there already.

No model is loaded and no judge is asked.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa

from policyalign_assets.files import Location, sha256_table, write_parquet
from policyalign_assets.policy import PolicyDocument
from policyalign_assets.records import Checkpoint, ReportRecord, parent_of, training_table
from policyalign_assets.report.benchmarks import benchmark_blocks
from policyalign_assets.report.build import build_report
from policyalign_assets.report.calibration import find_calibration
from policyalign_assets.report.chain import Chain, JudgedAnswers, checked
from policyalign_assets.report.changes import changes_since, read_report
from policyalign_assets.report.contents import AlignmentReport
from policyalign_assets.report.context import code_version, report_context
from policyalign_assets.report.difference import (
    NotAReport,
    as_reported,
    compare,
    read_reported,
)
from policyalign_assets.report.difference_text import headlines
from policyalign_assets.report.folders import (
    current_report,
    partition_folder,
    publish,
    report_id,
    withdraw_release,
)
from policyalign_assets.report.history import write_history
from policyalign_assets.report.plots import main_plot
from policyalign_assets.report.release import margins
from policyalign_assets.report.release_gates import with_policy_margins
from policyalign_assets.report.render import write_report
from policyalign_assets.report.summary import RESULTS, markdown_summary, metric_values
from policyalign_assets.report.training_runs import repeats_of, without_repeats
from policyalign_assets.stages.coverage_facts import yields_of
from policyalign_assets.stages.facts import image, link, markdown, markdown_table, path
from policyalign_assets.stages.interface import StageContext, StageResult
from policyalign_assets.stages.last_release import last_release
from policyalign_assets.stages.parents import OFF, started_from
from policyalign_assets.stages.unfinished import remove_done


def make(
    context: StageContext,
    policy_document: PolicyDocument,
    violating_instructions: pa.Table,
    filtered_instructions: pa.Table,
    distilled_checkpoint: Checkpoint,
    generations: pa.Table,
    judgements: pa.Table,
) -> StageResult:
    """Raises NotOfOnePiece, before anything is written, where the inputs were not made from each
    other. An earlier release of the partition is withdrawn first: it was for another report.
    """
    settings, data, results = context.settings, context.data, context.results
    domain, policy_id = policy_document.domain, policy_document.policy_id
    chain = Chain(
        policy_document,
        violating_instructions,
        filtered_instructions,
        distilled_checkpoint,
        generations,
        judgements,
    )
    released = last_release(context, policy_document)
    withdraw_release(results, domain, policy_id)
    answers = checked(chain)
    bars = with_policy_margins(settings.gates, margins(chain))
    calibration = find_calibration(answers, data)
    funnel = _funnel(violating_instructions, filtered_instructions)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    header = report_context(chain, answers, settings, calibration, funnel, now)
    own_public = without_repeats(answers.benchmarks, answers)
    report = build_report(
        without_repeats(answers.heldout, answers),
        replace(header, settings=header.settings | {"gates": bars.model_dump(mode="json")}),
        training_table(distilled_checkpoint, data),
        gates=bars,
        benchmarks=benchmark_blocks(
            answers.asked.benchmarks,
            own_public,
            answers.asked.settings["evaluation"]["seed"],
        ),
        benchmark_rows=own_public,
        show_harmful=settings.report.show_harmful,
        coverage=answers.asked.coverage,
        repeats=repeats_of(distilled_checkpoint, answers),
    )
    report = _compared(
        report, answers, released, _last(results, domain, policy_id), settings.report.show_harmful
    )
    if header.lineage and header.lineage.get("why") != OFF:
        started = f"Training started from {started_from(distilled_checkpoint)}."
        report = replace(report, changes=[*report.changes, started])

    def write(folder: Path) -> None:
        write_parquet(answers.heldout, folder / "cases.parquet")
        write_parquet(answers.benchmarks, folder / "benchmark_cases.parquet")
        write_report(report, folder, answers.heldout, settings.report.show_harmful)

    version = f"{sha256_table(answers.heldout)[:32]}{sha256_table(answers.benchmarks)[:32]}"
    made_from = [
        sha256_table(answers.heldout),
        sha256_table(answers.benchmarks),
        policy_document.content_hash,
        policy_document.title,
        policy_document.owner,
        header.effective_date,
        header.settings,
        bars.model_dump(mode="json"),
        code_version(),
        None if calibration is None else [calibration.n, calibration.kappa],
        [asdict(figure) for figure in answers.asked.coverage],
    ]
    partition = partition_folder(results, domain, policy_id)
    folder = publish(partition, report_id(distilled_checkpoint.checkpoint_id, made_from), write)
    write_history(partition)
    page = folder / "report.html"
    relative = str(folder)[len(str(data)) :].strip("/")
    context.report(report.verdict.line)
    if parent_of(distilled_checkpoint) and not report.verdict.releasable:
        context.report(
            "the warm start is not accepted: make the partition again, and training starts from "
            "the base model (the sensor does so by itself)"
        )
    context.report(f"report: {page}")
    for stage in ("sensitivity_scores", "distilled_checkpoint"):
        remove_done(data, stage, policy_document)
    metrics = metric_values(report)
    return StageResult(
        ReportRecord(
            relative,
            version,
            metrics,
            may_stand=report.verdict.releasable or parent_of(distilled_checkpoint) is None,
        ),
        version,
        {
            "verdict": report.verdict.line,
            "report": place_of(page, data, settings.report.address),
            "summary": markdown(markdown_summary(report)),
            "main plot": image(main_plot(report), "over-refusal against violations not refused"),
            **metrics,
            "gates": markdown_table(
                ("gate", "result", "figures and bars", "what to do"),
                [
                    (
                        g.gate,
                        RESULTS[g.passed] + ("" if g.blocking else ", WAIVED"),
                        g.sentence,
                        g.remedy,
                    )
                    for g in report.gates
                ],
            ),
        },
    )


def _last(results: Location, domain: str, policy_id: str) -> Location | None:
    try:
        return current_report(results, domain, policy_id)
    except FileNotFoundError:
        return None


def _compared(
    report: AlignmentReport,
    answers: JudgedAnswers,
    released: tuple[Location, str] | None,
    last: Location | None,
    show_harmful: bool,
) -> AlignmentReport:
    """With what changed since the last released report, or else since the last report."""
    if released is None:
        said = "Nothing was released yet." if last is not None else None
        changes = changes_since(read_report(last), report)
        return replace(report, changes=[said, *changes] if said else changes)
    folder, name = released
    changes = changes_since(read_report(folder), report, "last released report")
    try:
        before = read_reported(folder, name)
    except NotAReport as error:
        return replace(report, changes=[*changes, f"Cases were not compared: {error}"])
    now = as_reported(report, answers.heldout, answers.benchmarks)
    difference = compare(before, now, show_harmful)
    return replace(report, changes=changes + headlines(difference), difference=difference)


def _funnel(instructions: pa.Table, filtered: pa.Table) -> dict[str, int]:
    yields = yields_of(instructions).values()
    funnel = {"drafts": sum(y["drafted"] for y in yields)}
    if written := sum(y.get("written", 0) for y in yields):
        funnel = {"requests by the policy's author": written} | funnel
    for reason in sorted({r for y in yields for r in y["dropped"]}):
        funnel[f"dropped in synthesis: {reason}"] = sum(y["dropped"].get(reason, 0) for y in yields)
    funnel["violating instructions"] = sum(y["violating"] for y in yields)
    funnel["twins"] = sum(y["twins"] for y in yields)
    funnel["neighbours"] = sum(y["neighbours"] for y in yields)
    for c in sorted(filtered["reason"].value_counts().to_pylist(), key=lambda c: c["values"]):
        funnel[c["values"]] = c["counts"]
    return funnel


def place_of(page: Location, data: Location, address: str | None) -> dict[str, str]:
    """A link to the page where `address` shows `<data>/reports`, otherwise its path."""
    reports = f"{data / 'reports'}/"
    if address and str(page).startswith(reports):
        return link(f"{address.rstrip('/')}/{quote(str(page)[len(reports) :])}")
    return path(page)
