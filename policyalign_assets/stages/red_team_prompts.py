"""How much of the benchmarks' harmful requests is near what was synthesized for training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from policyalign_assets.evaluation.benchmarks import Benchmark, NotRun, load
from policyalign_assets.evaluation.red_team_coverage import (
    RedTeamCoverage,
    red_team_coverage,
    transformer_encoder,
)
from policyalign_assets.policy import PolicyDocument
from policyalign_assets.settings import Settings
from policyalign_assets.stages.facts import markdown_table


def measured_coverage(
    policy: PolicyDocument,
    instructions: pa.Table,
    benchmarks: Sequence[Benchmark],
    settings: Settings,
) -> list[RedTeamCoverage]:
    """For each of `benchmarks` with harmful requests; benign ones of all of them are the control.

    Empty where none can be read. Raises ValueError if `evaluation.coverage_encoder` cannot be.
    """
    harmful, harmless = _requests(benchmarks, settings)
    if not harmful:
        return []
    by_rule: dict[str, list[str]] = {rule.rule_id: [] for rule in policy.rules}
    for row in instructions.select(["rule_id", "kind", "text"]).to_pylist():
        if row["kind"] == "violating":
            by_rule[row["rule_id"]].append(row["text"])
    path, seed = settings.evaluation.coverage_encoder, settings.evaluation.seed
    encoder = transformer_encoder(path) if path else None
    return [
        figure
        for title, prompts in harmful.items()
        for figure in red_team_coverage(title, prompts, by_rule, harmless, seed, encoder)
    ]


def _requests(
    benchmarks: Sequence[Benchmark], settings: Settings
) -> tuple[dict[str, list[str]], list[str]]:
    """Harmful requests by benchmark, and the benign ones of all."""
    harmful: dict[str, list[str]] = {}
    harmless: list[str] = []
    evaluation = settings.evaluation
    folder = Path(evaluation.benchmarks_dir) if evaluation.benchmarks_dir else None
    for benchmark in benchmarks:
        if benchmark.scoring != "judge":
            continue
        try:
            loaded = load(benchmark, folder, evaluation.benchmarks_from_hub)
        except NotRun:  # the reason stands with the benchmark's run
            continue
        for case in loaded.cases:
            if case.kind == "harmful":
                harmful.setdefault(benchmark.title, []).append(case.prompt)
            else:
                harmless.append(case.prompt)
    return harmful, harmless


def coverage_table(coverage: Sequence[RedTeamCoverage]) -> object:
    """A fact of the stage: a Markdown table, or why there is none."""
    if not coverage:
        return "not measured: no benchmark with enough harmful requests was read"
    return markdown_table(
        (
            *("benchmark", "rule", "instructions", "compared"),
            *("coverage", "ceiling", "control", "between"),
        ),
        [
            (
                c.benchmark,
                c.rule_id or "all",
                c.instructions,
                c.compared,
                f"{c.coverage:.2f}",
                f"{c.ceiling:.2f}",
                "none" if c.control is None else f"{c.control:.2f}",
                "not measured" if c.between is None else f"{c.between:.2f}",
            )
            for c in coverage
        ],
    )
