"""What differs between two reports: rules, suites case by case, and the cases that flipped.

Only cases that both reports asked are compared, and only where both answers were scored. A suite
got worse where McNemar's test says so after Holm's correction over all suites, or over all rules.
What was measured before and is not measured now counts as a regression too: it has not passed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from policyalign_assets.evaluation.suites import (
    ALIGNED,
    BENCHMARK_METRICS,
    RULE_SUITES,
    SUITES,
    success,
)
from policyalign_assets.files import Location
from policyalign_assets.report.changes import read_report
from policyalign_assets.report.contents import AlignmentReport
from policyalign_assets.report.transcripts import shown_prompt, shown_response
from policyalign_assets.statistics import ALPHA, PairedDifference, holm, paired_difference
from policyalign_assets.tables import BENCHMARKS, EVALUATION

Row = Mapping[str, Any]
Outcome = Literal["worse", "better", "no clear change", "not compared"]


@dataclass(frozen=True)
class Reported:
    """A report with its cases. `rows`, `benchmark_rows`: those of the aligned model alone."""

    name: str
    header: Mapping[str, Any]
    line: str
    releasable: bool | None
    gates: Mapping[str, bool | None]
    rows: tuple[Row, ...]
    benchmark_rows: tuple[Row, ...]


@dataclass(frozen=True)
class RuleChange:
    """`before` and `now`: the rule's text, or None where it does not exist."""

    word: Literal["added", "changed", "withdrawn"]
    rule_id: str
    before: str | None
    now: str | None


@dataclass(frozen=True)
class GroupChange:
    """A suite, a benchmark or a rule in both reports.

    `before`, `now`: how many answers were scored in each. `paired`: over the cases of both; its
    difference is now minus before, so that below 0 is worse.
    """

    group: str
    label: str
    metric: str
    before: int
    now: int
    paired: PairedDifference
    p_holm: float | None
    outcome: Outcome
    counts: bool  # whether a decline is a regression: not for probes


@dataclass(frozen=True)
class Flip:
    """A case whose outcome changed, with both answers. Harmful text may be cut short."""

    group: str
    case_id: str
    rule_id: str | None
    prompt: str
    before: str
    now: str
    better: bool


@dataclass(frozen=True)
class Withdrawn:
    """A rule that was withdrawn: how many of its requests were asked again, and answered."""

    rule_id: str
    asked: int
    answered: int


@dataclass(frozen=True)
class Difference:
    """`about`: other things that changed, as (name, before, now). `regressions`: in sentences."""

    before: str
    now: str
    lines: tuple[str, str]
    rules: tuple[RuleChange, ...]
    about: tuple[tuple[str, str, str], ...]
    suites: tuple[GroupChange, ...]
    by_rule: tuple[GroupChange, ...]
    withdrawn: tuple[Withdrawn, ...]
    flips: tuple[Flip, ...]
    regressions: tuple[str, ...]


class NotAReport(ValueError):
    """A folder holds no report that can be read. The message names it, and the fix."""


def read_reported(folder: Location, name: str) -> Reported:
    """The report in `folder`. Raises NotAReport."""
    report = read_report(folder)
    if report is None:
        raise NotAReport(
            f"{folder} holds no report that can be read. "
            "Fix: name a partition, a bundle or the folder of a report."
        )
    tables = []
    for file in ("cases.parquet", "benchmark_cases.parquet"):
        try:
            tables.append(pq.read_table(pa.BufferReader((folder / file).read_bytes())))
        except FileNotFoundError:
            if file == "cases.parquet":
                raise NotAReport(
                    f"{folder / file} is missing. Fix: make the report again with "
                    "`policyalign align`, or restore it."
                ) from None
        except pa.ArrowException as error:
            raise NotAReport(
                f"{folder / file} cannot be read ({type(error).__name__}). "
                "Fix: restore it from a copy."
            ) from None
    for table, schema in zip(tables, (EVALUATION, BENCHMARKS), strict=False):
        if missing := set(schema.names) - set(table.column_names):
            raise NotAReport(
                f"The cases in {folder} lack {', '.join(sorted(missing))}: another version of the "
                "code wrote them. Fix: make the report again with `policyalign align`."
            )
    benchmarks = tables[1] if len(tables) > 1 else None
    verdict = report.get("verdict") or {}
    return Reported(
        name,
        report["header"],
        str(verdict.get("line", "no verdict")),
        verdict.get("releasable"),
        {str(g["gate"]): g["passed"] for g in report.get("gates", ())},
        _aligned(tables[0]),
        () if benchmarks is None else _aligned(benchmarks),
    )


def as_reported(report: AlignmentReport, cases: pa.Table, benchmarks: pa.Table) -> Reported:
    """A report that is not written yet."""
    return Reported(
        "this report",
        asdict(report.header),
        report.verdict.line,
        report.verdict.releasable,
        {gate.gate: gate.passed for gate in report.gates},
        _aligned(cases),
        _aligned(benchmarks),
    )


def compare(before: Reported, now: Reported, show_harmful: bool = False) -> Difference:
    """What changed from `before` to `now`."""
    old, new = _cases(before), _cases(now)
    suites = _tested(
        [_group(g, old.get(g, {}), new.get(g, {})) for g in dict.fromkeys((*old, *new))]
    )
    rules = tuple(_rules(before.header.get("rules") or (), now.header.get("rules") or ()))
    kept = [r for r in _ids(before) if r in _ids(now)]
    by_rule = _tested([_rule(r, old, new) for r in kept])
    gone = tuple(_withdrawn(r.rule_id, old, new) for r in rules if r.word == "withdrawn")
    return Difference(
        before.name,
        now.name,
        (before.line, now.line),
        rules,
        tuple(_about(before.header, now.header)),
        tuple(suites),
        tuple(g for g in by_rule if g.before or g.now),
        gone,
        tuple(_flips(old, new, show_harmful)),
        tuple(_regressions(before, now, suites, by_rule)),
    )


def _aligned(table: pa.Table) -> tuple[Row, ...]:
    return tuple(row for row in table.to_pylist() if row["arm"] == ALIGNED)


def _ids(report: Reported) -> list[str]:
    return [str(rule["rule_id"]) for rule in report.header.get("rules") or ()]


def _cases(report: Reported) -> dict[str, dict[str, Row]]:
    """{suite or benchmark: {what was asked: row}}, suites in their order."""
    found: dict[str, dict[str, Row]] = {suite: {} for suite in SUITES}
    for row in report.rows:
        found.setdefault(str(row["suite"]), {})[_asked(row)] = row
    for row in report.benchmark_rows:
        found.setdefault(f"{row['benchmark']}: {row['kind']}", {})[_asked(row)] = row
    return {group: rows for group, rows in found.items() if rows}


def _asked(row: Row) -> str:
    """What identifies a case across reports: what was said to the model, without its own replies.

    Case numbers do not: another policy makes other cases of the same number. A benchmark whose
    text may not be passed on has ids of its own.
    """
    if row["conversation"]:
        said = [m["content"] for m in row["conversation"] if not m["by_model"]]
        return json.dumps(said)
    return str(row["prompt"] if row["prompt"] is not None else row["case_id"])


def _metric(group: str, rows: Iterable[Row]) -> str:
    if group in SUITES:
        return SUITES[group].metric
    return BENCHMARK_METRICS[next(iter(rows))["kind"]]


def _group(group: str, old: Mapping[str, Row], new: Mapping[str, Row]) -> GroupChange:
    metric = _metric(group, (*old.values(), *new.values()))
    suite = SUITES.get(group)
    label = suite.label if suite else group
    # as in the gates: all rules are tested, so the cases of one rule are no sample of rules
    clustered = metric != "refused"
    return _change(group, label, metric, old, new, not (suite and suite.probe), clustered)


def _rule(rule: str, old: Mapping[str, Mapping[str, Row]], new: Any) -> GroupChange:
    sides = [
        {
            f"{suite} {asked}": {**row, "metric": SUITES[suite].metric}
            for suite in RULE_SUITES
            for asked, row in side.get(suite, {}).items()
            if row["rule_id"] == rule
        }
        for side in (old, new)
    ]
    return _change(rule, f"Rule {rule}", "", sides[0], sides[1], True, clustered=False)


def _change(
    group: str,
    label: str,
    metric: str,
    old: Mapping[str, Row],
    new: Mapping[str, Row],
    counts: bool,
    clustered: bool,
) -> GroupChange:
    """clustered: whether cases for one action count as related. All cases of a rule are."""
    pairs = list(_pairs(old, new))
    paired = paired_difference(
        [_good(metric, a) for a, _ in pairs],
        [_good(metric, b) for _, b in pairs],
        [a["cluster"] or a["case_id"] for a, _ in pairs] if clustered else None,
    )
    scored = [sum(bool(row["scored"]) for row in side.values()) for side in (old, new)]
    return GroupChange(
        group, label, metric, scored[0], scored[1], paired, None, "not compared", counts
    )


def _pairs(old: Mapping[str, Row], new: Mapping[str, Row]) -> Iterator[tuple[Row, Row]]:
    for asked in sorted(old.keys() & new.keys()):
        if old[asked]["scored"] and new[asked]["scored"]:
            yield old[asked], new[asked]


def _good(metric: str, row: Row) -> bool:
    return success(metric or str(row["metric"]), row)


def _tested(changes: Sequence[GroupChange]) -> list[GroupChange]:
    """With Holm's p-values over the family, and what they say."""
    p_values = [c.paired.p_value for c in changes if c.paired.p_value is not None]
    adjusted = iter(holm(p_values))
    tested = []
    for change in changes:
        if change.paired.p_value is None:
            tested.append(change)
            continue
        p = next(adjusted)
        outcome: Outcome = "no clear change"
        if p < ALPHA:
            outcome = "worse" if (change.paired.difference or 0) < 0 else "better"
        tested.append(replace(change, p_holm=p, outcome=outcome))
    return tested


def _rules(
    before: Iterable[Mapping[str, Any]], now: Iterable[Mapping[str, Any]]
) -> Iterator[RuleChange]:
    old = {str(r["rule_id"]): str(r["text"]) for r in before}
    new = {str(r["rule_id"]): str(r["text"]) for r in now}
    for rule, text in new.items():
        if rule not in old:
            yield RuleChange("added", rule, None, text)
        elif old[rule] != text:
            yield RuleChange("changed", rule, old[rule], text)
    for rule, text in old.items():
        if rule not in new:
            yield RuleChange("withdrawn", rule, text, None)


_ABOUT = ("domain", "policy_id", "policy_hash", "model_id", "model_revision", "checkpoint_id")


def _about(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    for name in (*_ABOUT, "judge", "code_version"):
        if before.get(name) != now.get(name):
            yield name, str(before.get(name)), str(now.get(name))
    old, new = _flat(before.get("settings")), _flat(now.get("settings"))
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            yield name, str(old.get(name)), str(new.get(name))


def _flat(settings: object) -> dict[str, Any]:
    sections = settings if isinstance(settings, Mapping) else {}
    return {
        f"{section}.{name}": value
        for section, values in sections.items()
        if isinstance(values, Mapping)
        for name, value in values.items()
    }


def _withdrawn(
    rule: str, old: Mapping[str, Mapping[str, Row]], new: Mapping[str, Mapping[str, Row]]
) -> Withdrawn:
    """The rule's old requests may be asked in any suite of the new report."""
    requests = {
        asked
        for suite in RULE_SUITES
        for asked, row in old.get(suite, {}).items()
        if row["rule_id"] == rule
    }
    again = [
        row
        for rows in new.values()
        for asked, row in rows.items()
        if asked in requests and row["scored"]
    ]
    return Withdrawn(rule, len(again), sum(success("answered", row) for row in again))


def _flips(
    old: Mapping[str, Mapping[str, Row]], new: Mapping[str, Mapping[str, Row]], show_harmful: bool
) -> Iterator[Flip]:
    """Those that got worse first."""
    found = []
    for group, rows in old.items():
        metric = _metric(group, rows.values())
        for before, now in _pairs(rows, new.get(group, {})):
            was, is_now = _good(metric, before), _good(metric, now)
            if was != is_now:
                found.append(
                    Flip(
                        group,
                        str(now["case_id"]),
                        now.get("rule_id"),
                        shown_prompt(now, show_harmful) or "(not shown)",
                        shown_response(before, show_harmful),
                        shown_response(now, show_harmful),
                        is_now,
                    )
                )
    return iter(sorted(found, key=lambda flip: flip.better))


def _regressions(
    before: Reported, now: Reported, suites: Sequence[GroupChange], rules: Sequence[GroupChange]
) -> Iterator[str]:
    if before.releasable and not now.releasable:
        yield f"The verdict was {before.line!r} and is {now.line!r}."
    for gate, passed in before.gates.items():
        if passed and now.gates.get(gate) is not True:
            state = "fails" if now.gates.get(gate) is False else "is not measured"
            yield f"The gate {gate} passed before and {state} now."
    for change in (*suites, *rules):
        if change.outcome == "worse" and change.counts:
            yield (
                f"{change.label}: {change.paired.only_a} cases got worse and "
                f"{change.paired.only_b} better, of {change.paired.n} "
                f"(p = {change.p_holm:.3g}, McNemar and Holm)."
            )
        elif change.counts and change.before and not change.now:
            yield f"{change.label}: measured before, and not measured now."
