"""Several training runs with other seeds: mean, spread and worst, and gates for the worst run.

A report is about one checkpoint. With `distillation.seeds` above 1, the same training was repeated
with the seeds that follow, and each result answered the same cases. The checkpoint of the first
seed is the one that can be released: it is named before any run is evaluated, so no run is chosen
for its figures. Every gate must be passed by every run, which is the same as by the worst.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from policyalign_assets.evaluation.suites import ALIGNED, BASE, SUITES, TEACHER, repeat_arm, success
from policyalign_assets.records import Checkpoint
from policyalign_assets.report.benchmarks import benchmark_blocks
from policyalign_assets.report.chain import JudgedAnswers
from policyalign_assets.report.contents import (
    BenchmarkBlock,
    GateResult,
    RunMeasure,
    TrainingRuns,
)
from policyalign_assets.statistics import Interval, wilson

Row = dict[str, Any]
_WORST_FIRST = {False: 0, None: 1, True: 2}


@dataclass(frozen=True)
class Repeat:
    """A further training run. Its answers stand in `rows` and `benchmarks` as those of ALIGNED."""

    seed: int
    checkpoint_id: str
    rows: list[Row]
    benchmarks: list[BenchmarkBlock]


def repeats_of(checkpoint: Checkpoint, answers: JudgedAnswers) -> list[Repeat]:
    """Each further run with the answers of base and teacher beside its own."""
    seed = answers.asked.settings["evaluation"]["seed"]
    found = []
    for repeat in checkpoint.repeats:
        if repeat.seed is None:  # `chain.checked` has refused such a checkpoint
            raise ValueError(f"checkpoint {repeat.checkpoint_id} does not say its seed")
        arm = repeat_arm(repeat.seed)
        blocks = benchmark_blocks(
            answers.asked.benchmarks,
            pa.Table.from_pylist(_of_run(answers.benchmarks, arm), answers.benchmarks.schema),
            seed,
        )
        found.append(
            Repeat(repeat.seed, repeat.checkpoint_id, _of_run(answers.heldout, arm), blocks)
        )
    return found


def without_repeats(rows: pa.Table, answers: JudgedAnswers) -> pa.Table:
    """The rows of the checkpoint that the report is about, and of its base."""
    others = pa.array(list(answers.asked.repeats), pa.string())
    return rows.filter(pc.invert(pc.is_in(rows["arm"], others)))


def _of_run(table: pa.Table, arm: str) -> list[Row]:
    """Rows of base and teacher, and of `arm` under the name of the aligned model."""
    return [
        {**row, "arm": ALIGNED} if row["arm"] == arm else row
        for row in table.to_pylist()
        if row["arm"] in (BASE, TEACHER, arm)
    ]


def worst_results(by_seed: Mapping[int | None, Sequence[GateResult]]) -> list[GateResult]:
    """One result per gate, from the results of every run. With one run, those of that run.

    Of each gate the worst run's figures are shown: a failure before what was not measured, and
    among equals the bound that is nearest to its bar.
    """
    if len(by_seed) == 1:
        return list(next(iter(by_seed.values())))
    return [_worst(dict(zip(by_seed, of_gate, strict=True))) for of_gate in zip(*by_seed.values())]


def _worst(by_seed: Mapping[int | None, GateResult]) -> GateResult:
    def badness(seed: int | None) -> tuple[int, float]:
        result = by_seed[seed]
        return _WORST_FIRST[result.passed], 0.0 if result.slack is None else result.slack

    seed = min(by_seed, key=badness)
    worst = by_seed[seed]
    missed = [str(s) for s, r in by_seed.items() if r.passed is not True]
    which = f"seed {', '.join(missed)}" if len(missed) < len(by_seed) else "every seed"
    return replace(
        worst,
        numbers=worst.numbers | {"training runs": len(by_seed)},
        sentence=f"Worst of {len(by_seed)} training runs (seed {seed}): {worst.sentence}",
        problem=f"{worst.problem} (training with {which})" if worst.problem else "",
    )


def training_runs(
    checkpoint_id: str, seed: int | None, own_rows: Sequence[Row], repeats: Sequence[Repeat]
) -> TrainingRuns | None:
    """Shares of every suite over the runs; None where there is one run alone."""
    if not repeats:
        return None
    rows = [own_rows, *(repeat.rows for repeat in repeats)]
    measures = [_measure(suite, rows) for suite in SUITES]
    return TrainingRuns(
        [seed, *(repeat.seed for repeat in repeats)],
        [checkpoint_id, *(repeat.checkpoint_id for repeat in repeats)],
        [measure for measure in measures if any(share.n for share in measure.shares)],
    )


def _measure(suite: str, runs: Sequence[Sequence[Row]]) -> RunMeasure:
    """Every metric of a suite counts successes, so the worst run is the one with the lowest."""
    metric = SUITES[suite].metric
    shares: list[Interval] = []
    for rows in runs:
        scored = [r for r in rows if (r["suite"], r["arm"]) == (suite, ALIGNED) and r["scored"]]
        shares.append(wilson(sum(success(metric, row) for row in scored), len(scored)))
    known = [share.estimate for share in shares if share.estimate is not None]
    if len(known) < len(shares):
        return RunMeasure(suite, metric, shares, None, None, None)
    return RunMeasure(
        suite, metric, shares, statistics.fmean(known), statistics.stdev(known), min(known)
    )
