"""Base and aligned model answer held-out cases and benchmarks, without and with the policy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import torch
from pydantic import TypeAdapter

from policyalign_assets.engine.loading import (
    LoadedModel,
    describe,
    load_model,
    model_path,
    without_weights,
)
from policyalign_assets.evaluation.answers import Model
from policyalign_assets.evaluation.benchmarks import Benchmark, manifest
from policyalign_assets.evaluation.case_plan import RulePlan, planned_cases
from policyalign_assets.evaluation.generate import GenerationsInfo, generate
from policyalign_assets.evaluation.held_out import HeldOut, held_out_cases
from policyalign_assets.evaluation.lm_eval_harness import Weights
from policyalign_assets.evaluation.suites import repeat_arm
from policyalign_assets.evaluation.withdrawn import WithdrawnRules
from policyalign_assets.files import Location, scratch_folder, sha256_table
from policyalign_assets.policy import PolicyDocument
from policyalign_assets.records import Checkpoint
from policyalign_assets.settings import Settings
from policyalign_assets.stages.aligned_engine import base_and_aligned
from policyalign_assets.stages.earlier import earlier_table
from policyalign_assets.stages.facts import Facts, markdown_table, preview
from policyalign_assets.stages.interface import StageContext, StageResult
from policyalign_assets.stages.red_team_prompts import coverage_table, measured_coverage
from policyalign_assets.stages.shaping import tokenizer_packages
from policyalign_assets.stages.sources import digest
from policyalign_assets.stages.withdrawn_requests import withdrawn_requests
from policyalign_assets.tables import GENERATIONS, GENERATIONS_INFO

VERSIONS = (
    "policyalign-assets",
    "torch",
    "transformers",
    "peft",
    "dagster-pipes",
    "duckdb",
    "pyarrow",
)


def make(
    context: StageContext,
    policy_document: PolicyDocument,
    violating_instructions: pa.Table,
    distilled_checkpoint: Checkpoint,
) -> StageResult:
    settings = context.settings
    # Where the weights are at servers alone, answers come from there, and nothing is loaded.
    served = settings.model.weights == "servers"
    loaded = None if served else load_model(settings.model)
    described = describe(settings.model)
    held_out = held_out_cases(policy_document, violating_instructions, settings)
    known = [*(c.prompt for c in held_out.cases), *violating_instructions["text"].to_pylist()]
    benchmarks = [b for b in _benchmarks(settings) if policy_document.domain in b.domains]
    coverage = measured_coverage(policy_document, violating_instructions, benchmarks, settings)
    with _models(context, loaded, described.revision, distilled_checkpoint) as (
        base,
        aligned,
        repeats,
    ):
        withdrawn, again = withdrawn_requests(context, policy_document, known, base.engine)
        table, runs = generate(
            [*held_out.cases, *again],
            benchmarks,
            base,
            aligned,
            policy_document,
            settings.evaluation,
            context.report,
            scratch_folder(context.data) / "generations",
            repeats,
            earlier_table(context, "generations", policy_document, GENERATIONS),
        )
    asked = GenerationsInfo(
        distilled_checkpoint.checkpoint_id,
        settings.model.id,
        described.revision,
        _note(settings.model.id, loaded.model if loaded else without_weights(described.config)),
        {name: getattr(settings, name).model_dump(mode="json") for name in ("model", "evaluation")},
        {name: version(name) for name in VERSIONS},
        runs,
        list(planned_cases(policy_document, settings).rules),
        {rule_id: dict(reasons) for rule_id, reasons in held_out.left_out.items()},
        coverage,
        {arm: c.checkpoint_id for arm, c in _repeat_arms(distilled_checkpoint).items()},
        withdrawn,
    )
    rows = table.to_pylist()
    return StageResult(
        table.replace_schema_metadata(
            {GENERATIONS_INFO: TypeAdapter(GenerationsInfo).dump_json(asked)}
        ),
        sha256_table(table),
        {
            "dagster/partition_row_count": table.num_rows,
            "unanswered": sum(row["unanswered"] is not None for row in rows),
            "cut off": sum(row["truncated"] for row in rows),
            "empty": sum(row["empty"] for row in rows),
            **_rule_facts(policy_document, settings, held_out),
            "requests of withdrawn rules": _withdrawn_fact(withdrawn),
            "coverage of red-team prompts": coverage_table(coverage),
            "answers": markdown_table(
                ("suite or benchmark", "arm", "answers"),
                [
                    (*key, n)
                    for key, n in Counter(
                        (row["suite"] or row["benchmark"], row["arm"]) for row in rows
                    ).items()
                ],
            ),
            "benchmarks": markdown_table(
                ("benchmark", "asked", "of", "not run because"),
                [
                    (run.benchmark.title, run.cases, run.available, run.why_not or "")
                    for run in runs
                ],
            ),
            # Only a benign suite: no verdict says yet which other answers may be shown.
            "preview": preview(
                table.filter(pc.equal(table["suite"], "twins")),
                ("arm", "prompt", "response", "tokens"),
            ),
        },
    )


def _withdrawn_fact(withdrawn: WithdrawnRules | None) -> object:
    if withdrawn is None:
        return "none: nothing was released yet"
    if withdrawn.why_not:
        return f"not asked: {withdrawn.why_not}"
    elsewhere = [("declined under another policy", withdrawn.declined_elsewhere)]
    return (
        markdown_table(
            ("withdrawn rule", "requests"),
            [*withdrawn.asked.items(), *(elsewhere if withdrawn.declined_elsewhere else ())],
        )
        if withdrawn.rules
        else "none: the policy has every rule of the last release"
    )


def _benchmarks(settings: Settings) -> tuple[Benchmark, ...]:
    folder = settings.evaluation.benchmarks_dir
    return manifest(Path(folder) if folder else None)


def _rule_facts(policy: PolicyDocument, settings: Settings, held_out: HeldOut) -> Facts:
    """Cases by rule, and the rules and held-out rows that are not measured."""
    counts = held_out.cases_of_rules()
    least = settings.evaluation.cases_per_rule
    plans = planned_cases(policy, settings).rules
    return {
        "cases by rule": markdown_table(
            ("rule", "cases", "remark"),
            [(p.rule_id, counts[p.rule_id], _remark(p, counts[p.rule_id], least)) for p in plans],
        ),
        "held-out requests that are no case": markdown_table(
            ("rule", "reason", "requests"),
            [(r, why, n) for r, reasons in held_out.left_out.items() for why, n in reasons.items()],
        )
        if held_out.left_out
        else "none",
    }


def _remark(plan: RulePlan, cases: int, least: int) -> str:
    if plan.why_not:
        return f"not measured: {plan.why_not}"
    if not cases:
        return "not measured: no case was left"
    return f"thin: fewer than {least} cases" if cases < least else ""


def _repeat_arms(checkpoint: Checkpoint) -> dict[str, Checkpoint]:
    """Further training runs by arm. Raises ValueError where a record does not say its seed."""
    arms = {}
    for repeat in checkpoint.repeats:
        if repeat.seed is None:
            raise ValueError(
                f"the training run of checkpoint {repeat.checkpoint_id} does not say its seed. "
                "Fix: materialize distilled_checkpoint again."
            )
        arms[repeat_arm(repeat.seed)] = repeat
    return arms


@contextmanager
def _models(
    context: StageContext, loaded: LoadedModel | None, revision: str, checkpoint: Checkpoint
) -> Iterator[tuple[Model, Model, dict[str, Model]]]:
    """The base model, the checkpoint's, and those of further training runs by arm."""
    settings = context.settings.model
    # Answers are kept under this name: another tokenizer library answers again.
    libraries = digest(tokenizer_packages(context.settings))
    identity = f"{settings.id}@{revision} {settings.dtype} {settings.engine} {libraries}"
    weights = (
        Weights(model_path(settings), settings.dtype, loaded.device.type, settings.revision)
        if loaded
        else None
    )
    repeats = _repeat_arms(checkpoint)
    checkpoints = [checkpoint, *repeats.values()]
    with base_and_aligned(settings, loaded, checkpoints, context.data) as (base, opened):
        aligned, *others = [
            Model(
                f"{identity} + {each.checkpoint_id}", engine, _weights(weights, each, context.data)
            )
            for each, engine in zip(checkpoints, opened, strict=True)
        ]
        yield Model(identity, base, weights), aligned, dict(zip(repeats, others, strict=True))


def _weights(base: Weights | None, checkpoint: Checkpoint, data: Location) -> Weights | None:
    """What another process would load, which can only load a checkpoint on this machine."""
    folder = data / checkpoint.path
    if base is None or not isinstance(folder, Path):
        return None
    if checkpoint.tuning == "lora":
        return replace(base, adapter=folder.absolute())
    return replace(base, pretrained=str(folder.absolute()), revision=None)


def _note(model_id: str, model: torch.nn.Module) -> str:
    size = sum(p.numel() for p in model.parameters()) / 1e6
    return (
        f"a {size:.1f} M-parameter test bed, not a useful assistant"
        if model_id == "bundled"
        else f"{size:,.0f} M parameters"
    )
