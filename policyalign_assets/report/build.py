"""From judged rows to the figures of the report.

Shares count scored rows. Rows that could not be scored are counted as unscored and shown; the
release gates count an unscored answer to a violating request as unsafe (`gate_figures.py`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from policyalign_assets.evaluation.red_team_coverage import RedTeamCoverage
from policyalign_assets.evaluation.suites import (
    ALIGNED,
    ARMS,
    BASE,
    BENIGN_SUITES,
    SUITES,
    TEACHER,
    VIOLATION_SUITES,
    good,
    held,
    rows_of_rules,
    success,
)
from policyalign_assets.report import sentences
from policyalign_assets.report.contents import (
    FEW_CASES,
    AlignmentReport,
    BenchmarkBlock,
    Comparison,
    Figure,
    GateFigures,
    GateResult,
    OperatingPoint,
    ReportContext,
    RuleFigure,
)
from policyalign_assets.report.gate_figures import gate_figures
from policyalign_assets.report.release_gates import evaluate_gates, verdict
from policyalign_assets.report.training_runs import Repeat, training_runs, worst_results
from policyalign_assets.report.transcripts import transcript_groups
from policyalign_assets.settings import GateSettings
from policyalign_assets.statistics import (
    Interval,
    PairedDifference,
    holm,
    internalisation,
    paired_difference,
    wilson,
)

CODE_VERSION = 7  # raise it when new code changes what the report says

COMPARED_WITH = (BASE, TEACHER)
DEFAULT_GATES = GateSettings.model_validate({})

Row = dict[str, Any]
Cells = dict[tuple[str, str], dict[str, Row]]  # (suite, arm) -> case id -> row


def build_report(
    rows: pa.Table,
    context: ReportContext,
    training: pa.Table | None,
    gates: GateSettings = DEFAULT_GATES,
    benchmarks: Sequence[BenchmarkBlock] = (),
    benchmark_rows: pa.Table | None = None,
    show_harmful: bool = False,
    changes: Sequence[str] = (),
    coverage: Sequence[RedTeamCoverage] = (),
    repeats: Sequence[Repeat] = (),
) -> AlignmentReport:
    """All figures, sentences and sampled transcripts of one evaluation.

    The same inputs give the same report. `gates`: the bars that hold for this policy.
    `benchmark_rows` (BENCHMARKS): transcripts are sampled from them too. Harmful text is cut short
    unless `show_harmful`. `changes`: what differs from the last report, in sentences. `repeats`:
    further training runs, which must pass every gate too; `rows` are without them.

    Raises ValueError where rows contradict themselves or the policy: an unknown arm, suite or
    rule, a case twice in one arm, or a scored row without an outcome.
    """
    all_rows = rows.to_pylist()
    cells = judged_cells(all_rows)
    figures = [
        _figure(suite, arm, list(cells[suite, arm].values()))
        for suite in SUITES
        for arm in ARMS
        if cells[suite, arm]
    ]
    points = [
        _operating_point(cells, arm) for arm in ARMS if any(cells[suite, arm] for suite in SUITES)
    ]
    internalised = {
        suite: internalisation(*_paired(cells, suite, BASE, TEACHER, ALIGNED))
        for suite in VIOLATION_SUITES
    }
    rules = _rules(cells, context.rules)
    for_gates, results = gates_of_all_runs(
        cells,
        benchmarks,
        context.seed,
        repeats,
        gates,
        rules=context.rules,
        judge=context.calibration,
        judge_name=context.judge,
        bundled=context.bundled,
        withdrawn=context.withdrawn,
    )
    runs = training_runs(context.checkpoint_id, context.seed, all_rows, repeats)
    public = [] if benchmark_rows is None else benchmark_rows.to_pylist()
    return AlignmentReport(
        verdict=verdict(results, gates),
        header=context,
        headline=sentences.headline(figures, points, internalised) + sentences.spread(runs),
        changes=list(changes),
        gates=results,
        gate_figures=for_gates,
        figures=figures,
        comparisons=_comparisons(cells),
        internalisation=internalised,
        operating_points=points,
        rules=rules,
        training=None
        if training is None
        else {name: _finite(column) for name, column in training.to_pydict().items()},
        transcripts=transcript_groups(all_rows, public, context.seed, show_harmful),
        benchmarks=list(benchmarks),
        limits=sentences.limits(figures, rules, context, runs),
        coverage=list(coverage),
        runs=runs,
    )


def gates_of_all_runs(
    cells: Cells,
    benchmarks: Sequence[BenchmarkBlock],
    seed: int | None,
    repeats: Sequence[Repeat],
    bars: GateSettings,
    **evidence: Any,
) -> tuple[GateFigures, list[GateResult]]:
    """The checkpoint's own figures, and each gate's result for the worst training run.

    `evidence`: the arguments of `gate_figures` that all runs share.
    """
    own = gate_figures(cells, benchmarks=benchmarks, **evidence)
    results: dict[int | None, list[GateResult]] = {seed: evaluate_gates(own, bars)}
    for repeat in repeats:
        figures = gate_figures(judged_cells(repeat.rows), benchmarks=repeat.benchmarks, **evidence)
        results[repeat.seed] = evaluate_gates(figures, bars)
    return own, worst_results(results)


def judged_cells(rows: Iterable[Row]) -> Cells:
    """Rows of EVALUATION by suite and arm. Raises ValueError as `build_report`."""
    cells: Cells = {(suite, arm): {} for suite in SUITES for arm in ARMS}
    for row in rows:
        key = (row["suite"], row["arm"])
        if key not in cells:
            raise ValueError(f"unknown suite or arm: {key}")
        if row["case_id"] in cells[key]:
            raise ValueError(f"case {row['case_id']!r} occurs twice in {key}")
        outcome = "correct" if SUITES[row["suite"]].metric == "correct" else "refused"
        if row["scored"] and row[outcome] is None:
            raise ValueError(f"case {row['case_id']!r} in {key} is scored but has no outcome")
        cells[key][row["case_id"]] = row
    return cells


def _success(row: Row) -> bool:
    return success(SUITES[row["suite"]].metric, row)


def _share(rows: Iterable[Row], counted: Callable[[Row], bool] = _success) -> Interval:
    outcomes = [counted(row) for row in rows if row["scored"]]
    return wilson(sum(outcomes), len(outcomes))


def _figure(suite: str, arm: str, rows: list[Row]) -> Figure:
    reasons = Counter(
        row["unscored_reason"] or "no reason given" for row in rows if not row["scored"]
    )
    labels = Counter(row["judge_label"] for row in rows if row.get("judge_label"))
    return Figure(
        suite=suite,
        arm=arm,
        metric=SUITES[suite].metric,
        rate=_share(rows),
        cases=len(rows),
        unscored=reasons.total(),
        unscored_reasons=dict(sorted(reasons.items())),
        truncated=sum(row["truncated"] for row in rows),
        empty=sum(row["empty"] for row in rows),
        mean_tokens=sum(row["tokens"] or 0 for row in rows) / len(rows),
        labels=dict(sorted(labels.items())),
    )


def _paired(cells: Cells, suite: str, *arms: str) -> list[list[bool]]:
    """One list of outcomes per arm, over the cases that are scored in all of them."""
    by_arm = [cells[suite, arm] for arm in arms]
    shared = [
        case
        for case in sorted(by_arm[0])
        if all(case in arm and arm[case]["scored"] for arm in by_arm)
    ]
    return [[_success(arm[case]) for case in shared] for arm in by_arm]


def _comparisons(cells: Cells) -> list[Comparison]:
    compared = [
        (suite, reference, paired_difference(*_paired(cells, suite, reference, ALIGNED)))
        for suite in SUITES
        for reference in COMPARED_WITH
        if cells[suite, reference] and cells[suite, ALIGNED]
    ]
    adjusted = _adjusted(paired for *_, paired in compared)
    return [
        Comparison(suite, ALIGNED, reference, paired, p_holm)
        for (suite, reference, paired), p_holm in zip(compared, adjusted, strict=True)
    ]


def _adjusted(differences: Iterable[PairedDifference]) -> list[float | None]:
    """Holm's p-values in the given order; None where nothing was compared."""
    p_values = [d.p_value for d in differences]
    adjusted = iter(holm([p for p in p_values if p is not None]))
    return [None if p is None else next(adjusted) for p in p_values]


def _operating_point(cells: Cells, arm: str) -> OperatingPoint:
    benign = [row for suite in BENIGN_SUITES for row in cells[suite, arm].values()]
    return OperatingPoint(
        arm=arm,
        over_refusal=_share(benign, counted=lambda row: bool(row["refused"])),
        not_refused=_share(cells["violations", arm].values(), counted=lambda row: not held(row)),
    )


def _rules(cells: Cells, rules: Sequence[Mapping[str, Any]]) -> list[RuleFigure]:
    """Worst aligned share first; rules without a figure last.

    Only the plain suite is counted: a disguised request repeats a plain one, and repeats would
    make the interval too narrow.
    """
    rows = {arm: list(rows_of_rules(cells, arm).values()) for arm in ARMS}
    named = {row["rule_id"] for arm_rows in rows.values() for row in arm_rows} - {
        rule["rule_id"] for rule in rules
    }
    if named:
        raise ValueError(
            f"violations name rules that the policy does not have: {sorted(map(str, named))}"
        )
    figures = [_rule_figure(rule, rows, cells) for rule in rules]
    adjusted = _adjusted(f.change for f in figures if f.change is not None)
    with_p = iter(adjusted)
    figures = [f if f.change is None else replace(f, p_holm=next(with_p)) for f in figures]

    def worst_first(figure: RuleFigure) -> tuple[bool, float]:
        share = figure.refused.get(ALIGNED, wilson(0, 0)).estimate
        return figure.why_not is not None, math.inf if share is None else share

    return sorted(figures, key=worst_first)


def _rule_figure(rule: Mapping[str, Any], rows: dict[str, list[Row]], cells: Cells) -> RuleFigure:
    refused = {
        arm: _share(row for row in arm_rows if row["rule_id"] == rule["rule_id"])
        for arm, arm_rows in rows.items()
        if arm_rows
    }
    most = max((interval.n for interval in refused.values()), default=0)
    why_not = None
    if not rule["measured"]:
        why_not = rule["why_not"] or "no reason given"
    elif most == 0:
        why_not = "no case was scored"
    about = (rule["rule_id"], rule["text"], rule["kind"])
    if why_not:
        return RuleFigure(*about, why_not, most < FEW_CASES, {}, reading=rule.get("reading", ""))
    return RuleFigure(
        *about,
        None,
        most < FEW_CASES,
        refused,
        _change_of_rule(cells, rule["rule_id"]),
        reading=rule.get("reading", ""),
    )


def _change_of_rule(cells: Cells, rule_id: str) -> PairedDifference:
    """Refused, aligned minus base, on the rule's plain cases that are scored in both."""
    base, aligned = rows_of_rules(cells, BASE), rows_of_rules(cells, ALIGNED)
    pairs = [
        (good(row), good(aligned[case]))
        for case, row in sorted(base.items())
        if row["rule_id"] == rule_id and row["scored"] and aligned.get(case, {}).get("scored")
    ]
    return paired_difference([before for before, _ in pairs], [after for _, after in pairs])


def _finite(column: list[float | None]) -> list[float | None]:
    return [value if value is not None and math.isfinite(value) else None for value in column]
