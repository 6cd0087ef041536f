"""The sentences of the report: the findings, the worst rules and the limits, from the figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from policyalign_assets.evaluation.suites import ALIGNED, BASE, SUITES, TEACHER
from policyalign_assets.report.contents import (
    AlignmentReport,
    Figure,
    OperatingPoint,
    ReportContext,
    RuleFigure,
    TrainingRuns,
)
from policyalign_assets.report.formatting import (
    p_value,
    percent,
    points,
    share_with_interval,
)
from policyalign_assets.statistics import Internalisation, Interval, wilson

SHOWN_RULES = 5
SHOWN_PROBES = 3


def headline(
    figures: Sequence[Figure],
    operating_points: Sequence[OperatingPoint],
    internalised: Mapping[str, Internalisation],
) -> list[str]:
    """What was found, one sentence or two for each subject that was measured."""
    refused = {f.arm: f.rate for f in figures if f.suite == "violations"}
    disguised = {f.arm: f.rate for f in figures if f.suite == "violations_wrapped"}
    over = {point.arm: point.over_refusal for point in operating_points}
    correct = {f.arm: f.rate for f in figures if f.suite == "capability"}
    found = []
    if ALIGNED in refused:
        found.append(
            "Without the policy in its prompt, the aligned model refuses "
            f"{share_with_interval(refused[ALIGNED])} of the requests that break the policy"
            + _if_known("; the unaligned model refuses {}", refused, BASE)
            + "."
        )
    if TEACHER in refused:
        found.append(
            "The teacher, which is the unaligned model with the policy in its prompt, refuses "
            f"{percent(refused[TEACHER].estimate)}: alignment tries to match that. "
            f"{_internalised(internalised['violations'])}"
        )
    if ALIGNED in disguised:
        found.append(
            "Where the request is disguised, the aligned model refuses "
            f"{share_with_interval(disguised[ALIGNED])}"
            + _if_known("; the teacher {}", disguised, TEACHER)
            + "."
        )
    if ALIGNED in over:
        found.append(
            "Of benign requests, the aligned model wrongly refuses "
            f"{share_with_interval(over[ALIGNED])}"
            + _if_known("; the teacher {}", over, TEACHER)
            + "."
        )
    if ALIGNED in correct:
        found.append(
            "Of tasks with one exact answer, the aligned model gets "
            f"{share_with_interval(correct[ALIGNED])} right"
            + _if_known("; the unaligned model {}", correct, BASE)
            + "."
        )
    return found


def spread(runs: TrainingRuns | None) -> list[str]:
    """How far the training runs differ, where there are several."""
    if runs is None:
        return []
    said = []
    for measure in runs.measures:
        if measure.suite not in ("violations", "violations_wrapped"):
            continue
        label = SUITES[measure.suite].label[0].lower() + SUITES[measure.suite].label[1:]
        if measure.mean is None or measure.deviation is None:
            said.append(f"{label}: not measured in every run")
        else:
            deviation = f"{100 * measure.deviation:.1f}"
            said.append(
                f"{label}: {percent(measure.mean)} refused on average, standard deviation "
                f"{deviation} points, worst run {percent(measure.worst)}"
            )
    if not said:
        return []
    return [f"Over {len(runs.seeds)} training runs (seeds {_seeds(runs)}), {'; '.join(said)}."]


def _seeds(runs: TrainingRuns) -> str:
    return ", ".join(str(seed) for seed in runs.seeds)


def tested(figures: Sequence[Figure], context: ReportContext) -> str:
    """What was tested, on what, and by whom it was judged."""
    aligned = [f for f in figures if f.arm == ALIGNED]
    cases = sum(f.cases for f in aligned)
    return (
        f"Checkpoint {context.checkpoint_id} of {context.model_id} ({context.model_note}), on "
        f"{cases:,} held-out requests in {len(aligned)} suites, without the policy in its prompt. "
        f"Answers were judged by {context.judge}."
    )


def limits(
    figures: Sequence[Figure],
    rules: Sequence[RuleFigure],
    context: ReportContext,
    runs: TrainingRuns | None = None,
) -> list[str]:
    """What the figures do not show."""
    found = [
        f"One training run (seed {context.seed}): intervals cover the choice of cases, not the "
        "luck of a training run."
        if runs is None
        else f"{len(runs.seeds)} training runs (seeds {_seeds(runs)}): the gates hold for the "
        "worst of them. Intervals cover the choice of cases; the table of training runs shows how "
        "far the runs differ.",
        f"Answers were judged by {context.judge}. Its own mistakes are not part of the intervals.",
        _turns(figures) + " Nobody tried to break the aligned model with attacks adapted to it.",
        "Shares by suite treat cases as independent. The over-refusal gate does not: it groups "
        "the requests for the same action.",
    ]
    found += _probes(figures, gated_probes(context))
    if any(f.suite.startswith("conformance") for f in figures):
        found.append(
            "Held-out requests of the training generator were checked by nobody. They show how "
            "the model answers such requests, and decide nothing."
        )
    measured = [f for f in figures if f.rate.n]
    if measured:
        smallest = min(measured, key=lambda f: f.rate.n)
        most = percent(wilson(0, smallest.rate.n).high)
        found.append(
            f"The smallest measured suite has {smallest.rate.n} scored cases "
            f"({SUITES[smallest.suite].label.lower()}): even without a single failure, a true "
            f"failure rate of up to {most} would be possible."
        )
    cases = sum(f.cases for f in figures)
    reasons = sum((Counter(f.unscored_reasons) for f in figures), Counter[str]())
    listed = ", ".join(f"{reason}: {count}" for reason, count in sorted(reasons.items()))
    for count, what in (
        (reasons.total(), f"could not be judged and are in no share ({listed})"),
        (sum(f.truncated for f in figures), "were cut off at the token limit"),
        (sum(f.empty for f in figures), "were empty"),
    ):
        if count:
            found.append(f"{count} of {cases} answers {what}.")
    unmeasured = sum(rule.why_not is not None for rule in rules)
    if unmeasured:
        found.append(
            f"{unmeasured} of {len(rules)} rules were not measured; the table by rule says why."
        )
    return found


def _turns(figures: Sequence[Figure]) -> str:
    if any(f.suite == "pressure" for f in figures):
        return "Requests are in English, and single turns except where a suite says otherwise."
    return "Requests are single turns in English."


def gated_probes(context: ReportContext) -> list[str]:
    """The probe suites that gates read (`gates.probes`)."""
    return list((context.settings.get("gates") or {}).get("probes") or ())


def _probes(figures: Sequence[Figure], gated: Sequence[str]) -> list[str]:
    """Where the aligned model refuses least beyond the suites that decide."""
    refused = [
        (f.rate.estimate, SUITES[f.suite].label)
        for f in figures
        if f.arm == ALIGNED
        and SUITES[f.suite].probe
        and f.suite not in gated
        and f.metric == "refused"
        and f.rate.estimate is not None
    ]
    if not refused:
        return []
    least = sorted(refused)[:SHOWN_PROBES]
    listed = "; ".join(f"{label.lower()} {percent(share)}" for share, label in least)
    return [
        "The verdict holds for requests like those of the suites that decide. Refused least in "
        f"the probes, which no gate reads: {listed}."
    ]


def worst_rules(report: AlignmentReport) -> str:
    """The rules that the aligned model keeps least, and those it keeps less than before."""
    shares: dict[str, Interval] = {
        rule.rule_id: rule.refused[ALIGNED]
        for rule in report.rules
        if rule.why_not is None and rule.refused.get(ALIGNED, wilson(0, 0)).n
    }
    if not shares:
        return "No rule was measured."
    estimates = {interval.estimate for interval in shares.values()}
    if len(estimates) == 1:
        (same,) = estimates
        said = (
            f"All {len(shares)} measured rules are kept alike: {percent(same)} of their requests "
            "are refused."
            if len(shares) > 1
            else f"The one measured rule is kept in {percent(same)} of its requests."
        )
    else:
        best = max(e for e in estimates if e is not None)
        worst = [(r, i) for r, i in shares.items() if i.estimate is not None and i.estimate < best]
        listed = ", ".join(f"{rule} ({percent(i.estimate)})" for rule, i in worst[:SHOWN_RULES])
        said = f"Kept least: {listed}."
    worse = [
        f"{rule.rule_id} ({points(rule.change)} points, p {p_value(rule.p_holm)})"
        for rule in report.rules
        if rule.change is not None and (rule.change.difference or 0) < 0
    ]
    return said + (f" Kept less than by the unaligned model: {'; '.join(worse)}." if worse else "")


def _internalised(result: Internalisation) -> str:
    if result.estimate is None or result.low is None or result.high is None:
        return f"How much of that effect was matched cannot be said: {result.withheld}."
    low, high = percent(result.low), percent(result.high)
    return (
        f"The aligned model keeps {percent(result.estimate)} (between {low} and {high}) of that "
        "effect without the policy."
    )


def _if_known(sentence: str, rates: Mapping[str, Interval], arm: str) -> str:
    return sentence.format(percent(rates[arm].estimate)) if arm in rates else ""
