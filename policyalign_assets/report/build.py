"""From judged rows to the figures of the report. Only scored rows are counted; the others are counted as unscored and shown."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from policyalign_assets.evaluation.suites import (
    ARMS,
    BENIGN_SUITES,
    SUITES,
    TEACHER,
    VIOLATION_SUITES,
    held,
    may_harm,
    should_be_refused,
    success,
)
from policyalign_assets.report import sentences
from policyalign_assets.report.formatting import redacted
from policyalign_assets.report.gates import evaluate_gates
from policyalign_assets.report.model import (
    FEW_CASES,
    Acceptance,
    BenchmarkBlock,
    Comparison,
    Figure,
    OperatingPoint,
    ReleaseFigures,
    Report,
    ReportContext,
    RuleChange,
    RuleFigure,
    Transcript,
    TranscriptGroup,
)
from policyalign_assets.settings import GateSettings
from policyalign_assets.statistics import (
    Internalisation,
    Interval,
    PairedDifference,
    holm,
    internalisation,
    paired_difference,
    wilson,
)

CODE_VERSION = 2  # raise it when new code changes what the report says

TRANSCRIPTS = 5
COMPARED_WITH = ("base", TEACHER)
DEFAULT_ACCEPTANCE = Acceptance()
DEFAULT_GATES = GateSettings()

Row = dict[str, Any]
Cells = dict[tuple[str, str], dict[str, Row]]  # (suite, arm) -> case id -> row


def build_report(
    rows: pa.Table,
    context: ReportContext,
    training: pa.Table | None,
    acceptance: Acceptance = DEFAULT_ACCEPTANCE,
    gates: GateSettings = DEFAULT_GATES,
    benchmarks: Sequence[BenchmarkBlock] = (),
    benchmark_rows: pa.Table | None = None,
    show_harmful: bool = False,
) -> Report:
    """All figures, words and sampled transcripts of one evaluation. The same inputs give the same report.

    `benchmark_rows` (BENCHMARKS): transcripts are sampled from them too. Unless `show_harmful`, harmful text is cut short.

    Raises ValueError where rows contradict themselves or the policy: an unknown arm, suite or rule, a case twice in one arm,
    or a scored row without an outcome.
    """
    cells = _cells(rows)
    figures = [
        _figure(suite, arm, list(cells[suite, arm].values()))
        for suite in SUITES
        for arm in ARMS
        if cells[suite, arm]
    ]
    comparisons = _comparisons(cells)
    internalised = {
        suite: _internalisation(cells, suite, context.seed) for suite in VIOLATION_SUITES
    }
    points = [
        _operating_point(cells, arm) for arm in ARMS if any(cells[suite, arm] for suite in SUITES)
    ]
    rules = _rules(cells, context.rules)
    release = _release(cells, rules, figures)
    return Report(
        header=context,
        headline=sentences.headline(figures, points, internalised, context),
        verdict=sentences.verdict(figures, comparisons, acceptance),
        release=release,
        gates=evaluate_gates(release, gates),
        figures=figures,
        comparisons=comparisons,
        internalisation=internalised,
        operating_points=points,
        rules=rules,
        training=None
        if training is None
        else {name: _finite(column) for name, column in training.to_pydict().items()},
        transcripts=_transcripts(
            cells,
            [] if benchmark_rows is None else benchmark_rows.to_pylist(),
            context.seed,
            show_harmful,
        ),
        benchmarks=list(benchmarks),
        limits=sentences.limits(figures, rules, context),
    )


def _cells(rows: pa.Table) -> Cells:
    cells: Cells = {(suite, arm): {} for suite in SUITES for arm in ARMS}
    for row in rows.to_pylist():
        key = (row["suite"], row["arm"])
        if key not in cells:
            raise ValueError(f"unknown suite or arm: {key}")
        if row["case_id"] in cells[key]:
            raise ValueError(f"case {row['case_id']!r} occurs twice in {key}")
        if (
            row["scored"]
            and row["correct" if SUITES[row["suite"]].metric == "correct" else "refused"] is None
        ):
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
        mean_tokens=sum(row["tokens"] for row in rows) / len(rows),
        labels=dict(
            sorted(Counter(row["judge_label"] for row in rows if row.get("judge_label")).items())
        ),
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
        (suite, reference, paired_difference(*_paired(cells, suite, reference, "aligned")))
        for suite in SUITES
        for reference in COMPARED_WITH
        if cells[suite, reference] and cells[suite, "aligned"]
    ]
    adjusted = iter(holm([paired.p_value for *_, paired in compared if paired.p_value is not None]))
    return [
        Comparison(
            suite, "aligned", reference, paired, None if paired.p_value is None else next(adjusted)
        )
        for suite, reference, paired in compared
    ]


def _internalisation(cells: Cells, suite: str, seed: int) -> Internalisation:
    return internalisation(*_paired(cells, suite, "base", TEACHER, "aligned"), seed=seed)


def _release(cells: Cells, rules: list[RuleFigure], figures: list[Figure]) -> ReleaseFigures:
    def change(
        suites: Iterable[str], outcome: Callable[[Row], bool], rule: str | None = None
    ) -> PairedDifference:
        pairs = [
            (outcome(row), outcome(cells[suite, "aligned"][case]))
            for suite in suites
            for case, row in sorted(cells[suite, "base"].items())
            if row["scored"]
            and rule in (None, row["rule_id"])
            and cells[suite, "aligned"].get(case, {}).get("scored")
        ]
        return paired_difference([before for before, _ in pairs], [after for _, after in pairs])

    by_rule = {
        r.rule_id: change(("violations",), held, r.rule_id) for r in rules if r.why_not is None
    }
    compared = [rule for rule, paired in by_rule.items() if paired.p_value is not None]
    adjusted = dict(zip(compared, holm([by_rule[rule].p_value for rule in compared])))
    return ReleaseFigures(
        unsafe={
            suite: change((suite,), lambda row: not held(row))
            for suite in VIOLATION_SUITES
            if cells[suite, "aligned"]
        },
        over_refusal=change(BENIGN_SUITES, lambda row: row["refused"]),
        capability=change(("capability",), lambda row: row["correct"]),
        answers=sum(f.cases for f in figures),
        unscored=sum(f.unscored for f in figures),
        rules={rule: RuleChange(paired, adjusted.get(rule)) for rule, paired in by_rule.items()},
    )


def _operating_point(cells: Cells, arm: str) -> OperatingPoint:
    benign = [row for suite in BENIGN_SUITES for row in cells[suite, arm].values()]
    return OperatingPoint(
        arm=arm,
        over_refusal=_share(benign, counted=lambda row: row["refused"]),
        not_refused=_share(cells["violations", arm].values(), counted=lambda row: not held(row)),
    )


def _rules(cells: Cells, rules: list[dict[str, Any]]) -> list[RuleFigure]:
    """Worst aligned share first; rules without a figure last.

    Only the plain suite is counted: a disguised request repeats a plain one, and repeats would narrow the interval falsely.
    """
    rows = {arm: list(cells["violations", arm].values()) for arm in ARMS}
    named = {row["rule_id"] for arm_rows in rows.values() for row in arm_rows} - {
        rule["rule_id"] for rule in rules
    }
    if named:
        raise ValueError(
            f"violations name rules that the policy does not have: {sorted(map(str, named))}"
        )

    figures = [_rule_figure(rule, rows) for rule in rules]
    aligned = [figure.refused.get("aligned", wilson(0, 0)).estimate for figure in figures]
    order = sorted(
        range(len(figures)),
        key=lambda i: (
            figures[i].why_not is not None,
            math.inf if aligned[i] is None else aligned[i],
        ),
    )
    return [figures[i] for i in order]


def _rule_figure(rule: dict[str, Any], rows: dict[str, list[Row]]) -> RuleFigure:
    refused = {
        arm: _share(row for row in arm_rows if row["rule_id"] == rule["rule_id"])
        for arm, arm_rows in rows.items()
        if arm_rows
    }
    most = max((interval.n for interval in refused.values()), default=0)
    why_not = (
        (rule["why_not"] or "no reason given")
        if not rule["measured"]
        else "no case was scored"
        if most == 0
        else None
    )
    return RuleFigure(
        rule["rule_id"],
        rule["text"],
        rule["kind"],
        why_not,
        most < FEW_CASES,
        {} if why_not else refused,
    )


def _transcripts(
    cells: Cells, public: list[Row], seed: int, show_harmful: bool
) -> list[TranscriptGroup]:
    cases: dict[tuple[str, str], dict[str, Row]] = {}  # (suite or benchmark, case id) -> arm -> row
    for row in (row for cell in cells.values() for row in cell.values()):
        cases.setdefault((row["suite"], row["case_id"]), {})[row["arm"]] = row
    for row in public:
        if row["prompt"] is not None and row["kind"] in ("harmful", "benign"):
            cases.setdefault((row["benchmark"], row["case_id"]), {})[row["arm"]] = row

    def refused(arms: dict[str, Row], arm: str) -> bool | None:
        row = arms.get(arm)
        if not row or not row["scored"]:
            return None
        return held(row) if should_be_refused(row) else row["refused"]

    def group(title: str, belongs: Callable[[str, dict[str, Row]], bool]) -> TranscriptGroup:
        found = [key for key in sorted(cases) if belongs(key[0], cases[key])]
        # a generator per group: how many cases one group has must not change what another one shows
        chosen = np.random.default_rng([seed, *title.encode()]).choice(
            len(found), min(TRANSCRIPTS, len(found)), replace=False
        )
        return TranscriptGroup(
            title,
            len(found),
            [_transcript(*found[i], cases[found[i]], show_harmful) for i in sorted(chosen)],
        )

    def harmful(suite: str, arms: dict[str, Row]) -> bool:
        return suite not in SUITES and should_be_refused(next(iter(arms.values())))

    return [
        group(
            "Fixed: answered before, refused by the aligned model",
            lambda suite, arms: (
                suite in VIOLATION_SUITES
                and refused(arms, "base") is False
                and refused(arms, "aligned") is True
            ),
        ),
        group(
            "Remaining failures: still answered by the aligned model",
            lambda suite, arms: suite in VIOLATION_SUITES and refused(arms, "aligned") is False,
        ),
        group(
            "Over-refusals: benign requests that the aligned model refuses",
            lambda suite, arms: suite in BENIGN_SUITES and refused(arms, "aligned") is True,
        ),
        *(
            [
                group(
                    "Public benchmarks: harmful requests that the aligned model answers",
                    lambda suite, arms: harmful(suite, arms) and refused(arms, "aligned") is False,
                ),
                group(
                    "Public benchmarks: benign requests that the aligned model refuses",
                    lambda suite, arms: (
                        suite not in SUITES
                        and not harmful(suite, arms)
                        and refused(arms, "aligned") is True
                    ),
                ),
            ]
            if public
            else []
        ),
    ]


def _transcript(suite: str, case: str, arms: dict[str, Row], show_harmful: bool) -> Transcript:
    row = arms["aligned"]
    prompt = (
        redacted(row["prompt"])
        if should_be_refused(row) and suite not in SUITES and not show_harmful
        else row["prompt"]
    )
    return Transcript(
        case,
        suite,
        row.get("rule_id"),
        prompt,
        {
            arm: arms[arm]["response"]
            if show_harmful or not may_harm(arms[arm])
            else redacted(arms[arm]["response"])
            for arm in ARMS
            if arm in arms
        },
    )


def _finite(column: list[float | None]) -> list[float | None]:
    return [value if value is not None and math.isfinite(value) else None for value in column]
