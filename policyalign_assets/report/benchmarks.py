"""Figures of the public benchmarks. Benchmarks overlap in their texts, so they are never pooled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pyarrow as pa

from policyalign_assets.evaluation.generate import BenchmarkRun
from policyalign_assets.evaluation.suites import ARMS, BENCHMARK_METRICS, success
from policyalign_assets.report.contents import (
    FEW_CASES,
    BenchmarkBlock,
    BenchmarkFigure,
    BenchmarkPart,
    CategoryFigure,
)
from policyalign_assets.statistics import (
    GradedDifference,
    Interval,
    PairedDifference,
    graded_difference,
    paired_difference,
    wilson,
)

Row = dict[str, Any]


def benchmark_blocks(
    runs: Sequence[BenchmarkRun], rows: pa.Table, seed: int
) -> list[BenchmarkBlock]:
    """One block per benchmark in the order of the manifest, those that were not run included."""
    by_benchmark: dict[str, list[Row]] = {}
    for row in rows.to_pylist():
        by_benchmark.setdefault(row["benchmark"], []).append(row)
    return [_block(run, by_benchmark.get(run.benchmark.id, []), seed) for run in runs]


def _block(run: BenchmarkRun, rows: list[Row], seed: int) -> BenchmarkBlock:
    b = run.benchmark
    kinds = [kind for kind in BENCHMARK_METRICS if any(row["kind"] == kind for row in rows)]
    parts = [_part(kind, [row for row in rows if row["kind"] == kind], seed) for kind in kinds]
    return BenchmarkBlock(
        b.id,
        b.title,
        b.home,
        b.licence,
        b.metric,
        b.note,
        run.why_not,
        run.version,
        run.source,
        run.available,
        run.cases,
        parts,
    )


def _part(kind: str, rows: list[Row], seed: int) -> BenchmarkPart:
    counted: Callable[[Row], bool] = partial(success, BENCHMARK_METRICS[kind])
    arms = {arm: {row["case_id"]: row for row in rows if row["arm"] == arm} for arm in ARMS}
    figures = [_figure(arm, list(cases.values()), counted) for arm, cases in arms.items() if cases]
    shared = [
        case
        for case, row in sorted(arms["base"].items())
        if row["scored"] and arms["aligned"].get(case, {}).get("scored")
    ]
    pairs = [(arms["base"][case], arms["aligned"][case]) for case in shared]
    return BenchmarkPart(
        kind,
        BENCHMARK_METRICS[kind],
        figures,
        _change(pairs, counted),
        _harm(pairs, seed),
        _categories(arms, counted),
    )


def _figure(arm: str, rows: list[Row], counted: Callable[[Row], bool]) -> BenchmarkFigure:
    scored = [row for row in rows if row["scored"]]
    reasons = Counter(
        row["unscored_reason"] or "no reason given" for row in rows if not row["scored"]
    )
    said_safe = [row["safe"] for row in scored if row["safe"] is not None]
    return BenchmarkFigure(
        arm,
        wilson(sum(map(counted, scored)), len(scored)),
        wilson(sum(said_safe), len(said_safe)),
        len(rows),
        reasons.total(),
        dict(sorted(reasons.items())),
        sum(row["truncated"] for row in rows),
        sum(row["empty"] for row in rows),
    )


def _categories(
    arms: dict[str, dict[str, Row]], counted: Callable[[Row], bool]
) -> list[CategoryFigure]:
    def share(arm: str, category: str) -> Interval:
        outcomes = [
            counted(row)
            for row in arms[arm].values()
            if row["category"] == category and row["scored"]
        ]
        return wilson(sum(outcomes), len(outcomes))

    named = sorted(
        {row["category"] for row in arms["aligned"].values() if row["category"] and row["scored"]}
    )
    figures = [
        CategoryFigure(c, share("aligned", c).n < FEW_CASES, share("aligned", c), share("base", c))
        for c in named
    ]
    return sorted(figures, key=lambda f: f.aligned.estimate or 0.0)


def _change(pairs: list[tuple[Row, Row]], counted: Callable[[Row], bool]) -> PairedDifference:
    return paired_difference(
        [counted(before) for before, _ in pairs], [counted(after) for _, after in pairs]
    )


def _harm(pairs: list[tuple[Row, Row]], seed: int) -> GradedDifference:
    graded = [
        (before, after)
        for before, after in pairs
        if before["harm"] is not None and after["harm"] is not None
    ]
    return graded_difference(
        [before["harm"] for before, _ in graded],
        [after["harm"] for _, after in graded],
        [before["cluster"] or before["case_id"] for before, _ in graded],
        seed=seed,
    )
