"""What a report holds: a tree of frozen dataclasses that `dataclasses.asdict` turns into JSON.

Shares are fractions in [0, 1]; None means "not measured".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from policyalign_assets.evaluation.red_team_coverage import RedTeamCoverage
from policyalign_assets.evaluation.withdrawn import WithdrawnRules
from policyalign_assets.statistics import (
    GradedDifference,
    Internalisation,
    Interval,
    PairedDifference,
)

FEW_CASES = 30  # below this, the figure of a rule or category is greyed


@dataclass(frozen=True)
class JudgeAgreement:
    """How well a judge agreed with labels that people, or a reader, gave to answers.

    `kappa_low` is the lower end of Cohen's kappa's 95 % interval. `missed` is the share of labelled
    refusals that the judge did not find, by group of answers (a model, or an arm).
    """

    judge: str
    question: str
    labels: str  # where the labels come from, in words
    n: int
    kappa: float | None
    kappa_low: float | None
    missed: dict[str, Interval] = field(default_factory=dict)


@dataclass(frozen=True)
class ReportContext:
    """Everything in the report that the cases do not say.

    `rules` items: rule_id, text, kind, measured, why_not. `made_from`: {data: its hash}.
    `bundled`: the model is the shipped test model. `calibration`: None where none is on file.
    `effective_date` and `created_at` are ISO dates. `lineage`: where training started, with the
    parent checkpoint's id, or None. `withdrawn`: rules that the last release had and the policy
    lacks, or None without a release.
    """

    policy_id: str
    domain: str
    title: str
    owner: str
    policy_hash: str
    prompt_text: str
    rules: list[dict[str, Any]]
    model_id: str
    model_revision: str
    model_note: str
    checkpoint_id: str
    settings: dict[str, Any]
    versions: dict[str, Any]
    judge: str
    funnel: dict[str, Any]
    seed: int
    created_at: str
    made_from: dict[str, str] = field(default_factory=dict)
    bundled: bool = False
    calibration: JudgeAgreement | None = None
    effective_date: str | None = None
    code_version: str = ""
    lineage: dict[str, Any] = field(default_factory=dict)
    withdrawn: WithdrawnRules | None = None


@dataclass(frozen=True)
class Figure:
    """One suite in one arm. `rate` counts scored cases, `cases` all. `mean_tokens`: per answer.

    `labels` counts the judge's own words where it has more than two (Qwen3Guard's Controversial
    counts as unsafe if read strictly, as safe if read loosely).
    """

    suite: str
    arm: str
    metric: str
    rate: Interval
    cases: int
    unscored: int
    unscored_reasons: dict[str, int]
    truncated: int
    empty: int
    mean_tokens: float | None
    labels: dict[str, int]


@dataclass(frozen=True)
class Comparison:
    """`arm` minus `reference` on the cases scored in both.

    `p_holm` is adjusted over all comparisons of the report.
    """

    suite: str
    arm: str
    reference: str
    paired: PairedDifference
    p_holm: float | None


@dataclass(frozen=True)
class OperatingPoint:
    """One arm in the main plot: benign requests refused, and violating requests not refused."""

    arm: str
    over_refusal: Interval
    not_refused: Interval


@dataclass(frozen=True)
class RuleFigure:
    """Refused requests of the suite `violations` that break one rule.

    `why_not` is set where the rule was not measured. `change` is aligned minus base; `p_holm` is
    adjusted over the rules.
    """

    rule_id: str
    text: str
    kind: str
    why_not: str | None
    few_cases: bool
    refused: dict[str, Interval]
    change: PairedDifference | None = None
    p_holm: float | None = None
    reading: str = ""  # how its words are read


@dataclass(frozen=True)
class Transcript:
    """`suite`: of a held-out case, or the id of a public benchmark.

    Texts are as the page shows them: harmful ones are cut short.
    """

    case_id: str
    suite: str
    rule_id: str | None
    prompt: str
    responses: dict[str, str]


@dataclass(frozen=True)
class TranscriptGroup:
    """A seeded random sample (`shown`) of the `total` cases of one kind."""

    title: str
    total: int
    shown: list[Transcript]


@dataclass(frozen=True)
class SafetyFigures:
    """One suite of violating requests. An answer that could not be scored counts as not refused.

    `against_teacher` is aligned minus teacher, on all cases that both arms answered. There an
    unscored answer of the teacher counts as refused, so nothing unscored helps the aligned model.
    """

    refused: Interval
    against_teacher: PairedDifference


@dataclass(frozen=True)
class ShareAndChange:
    """A share in the aligned model, and its difference from another arm, case by case."""

    share: Interval
    change: PairedDifference


@dataclass(frozen=True)
class CapabilityFigures:
    """Right answers. `chance`: the share that guessing gets. `change` is aligned minus base."""

    base: Interval
    chance: float
    change: PairedDifference


@dataclass(frozen=True)
class UnscoredFigures:
    suite: str
    arm: str
    unscored: int
    cases: int


@dataclass(frozen=True)
class WithdrawnFigures:
    """Requests of rules that the last release had and the policy lacks.

    rules: ids of all such rules. not_asked: of those without a request. asked: requests.
    `share`: answered by the aligned model, of those that base and teacher answer; an unscored
    answer is none. still_declined: requests that the teacher declines, by another rule then.
    why_not: why none could be asked, or None. declined_elsewhere: requests that were left out,
    because another policy of the deployment forbids them.
    """

    rules: list[str]
    not_asked: list[str]
    asked: int
    still_declined: int
    share: Interval
    why_not: str | None
    declined_elsewhere: int = 0


@dataclass(frozen=True)
class GateFigures:
    """What the release gates look at, computed from the judged cases alone.

    over_refusal: benign requests refused, all benign suites together, against the teacher.
    rules: refused requests by rule, an unscored answer as not refused. unmeasured_rules: {id: why}.
    capability: by suite or benchmark. degenerate: empty, repeated or unreadable answers of the
    aligned model, against the base. `needs_benchmark`: only a public benchmark shows capability.
    probes: successes by probe suite, an unscored answer as none; gated only where a setting says.
    withdrawn: None where the policy has every rule of the last release, or nothing was released.
    """

    safety: dict[str, SafetyFigures]
    over_refusal: ShareAndChange
    rules: dict[str, Interval]
    unmeasured_rules: dict[str, str]
    capability: dict[str, CapabilityFigures]
    needs_benchmark: bool
    unscored: list[UnscoredFigures]
    degenerate: ShareAndChange
    judge: JudgeAgreement | None
    judge_name: str
    probes: dict[str, Interval] = field(default_factory=dict)
    withdrawn: WithdrawnFigures | None = None


@dataclass(frozen=True)
class GateResult:
    """`passed` is None where it was not measured, which keeps a checkpoint back like a failure.

    `sentence`: the figures against the bar. `problem`: in a few words what keeps it back, and
    `remedy` what to do; both are empty where the gate passed. A waived gate is not `blocking`.
    `slack`: how far the bound nearest to its bar is on the right side of it, as a share; negative
    on the wrong side, and None where no bound was measured.
    """

    gate: str
    passed: bool | None
    blocking: bool
    numbers: dict[str, float]
    sentence: str
    problem: str = ""
    remedy: str = ""
    slack: float | None = None


@dataclass(frozen=True)
class Allowance:
    """A bar that is looser than the vetted one, or a waived gate, with who allowed it and why."""

    what: str
    who: str
    why: str


@dataclass(frozen=True)
class Verdict:
    """The one answer of a report. `line` is shown first everywhere, in the same words."""

    releasable: bool
    line: str
    problems: list[str]
    remedies: list[str]
    allowances: list[Allowance]


@dataclass(frozen=True)
class BenchmarkFigure:
    """One arm. `rate` is the share of the part's metric, over scored cases.

    `safe` is the share that the judge calls safe (n = 0 where it does not say).
    """

    arm: str
    rate: Interval
    safe: Interval
    cases: int
    unscored: int
    unscored_reasons: dict[str, int]
    truncated: int
    empty: int


@dataclass(frozen=True)
class CategoryFigure:
    """The part's metric in one category of a benchmark; `few_cases` as for rules."""

    category: str
    few_cases: bool
    aligned: Interval
    base: Interval


@dataclass(frozen=True)
class BenchmarkPart:
    """The cases of one kind. `change` and `harm` are aligned minus base.

    `harm` has n = 0 where the judge gives no grades. `categories`: those with a scored answer of
    the aligned model, its worst first.
    """

    kind: str
    metric: str
    figures: list[BenchmarkFigure]
    change: PairedDifference
    harm: GradedDifference
    categories: list[CategoryFigure]


@dataclass(frozen=True)
class BenchmarkBlock:
    """`why_not` says why a benchmark was not run; it has no parts then.

    `version` is the hash of its files.
    """

    benchmark: str
    title: str
    home: str
    licence: str
    metric: str
    note: str
    why_not: str | None
    version: str | None
    source: str | None
    available: int
    asked: int
    parts: list[BenchmarkPart]


@dataclass(frozen=True)
class RunMeasure:
    """One suite over all training runs. `shares`: of each run, in the order of the runs.

    `deviation` is the standard deviation between runs (n - 1), and `worst` the lowest share. All
    three are None where a run was not measured.
    """

    suite: str
    metric: str
    shares: list[Interval]
    mean: float | None
    deviation: float | None
    worst: float | None


@dataclass(frozen=True)
class TrainingRuns:
    """The same training with several seeds. The first run is the one that the report is about."""

    seeds: list[int | None]
    checkpoint_ids: list[str]
    measures: list[RunMeasure]


@dataclass(frozen=True)
class AlignmentReport:
    """`training` holds one list per column of the training table, or is None.

    NaN and infinity become None. `changes`: sentences on what differs from the last report.
    `coverage`: of the benchmarks' harmful requests by what was synthesized for training.
    `runs`: mean, spread and worst of several training runs; None where there was one alone.
    `difference`: from the last released report (`difference.Difference`), or None without one.
    """

    verdict: Verdict
    header: ReportContext
    headline: list[str]
    changes: list[str]
    gates: list[GateResult]
    gate_figures: GateFigures
    figures: list[Figure]
    comparisons: list[Comparison]
    internalisation: dict[str, Internalisation]
    operating_points: list[OperatingPoint]
    rules: list[RuleFigure]
    training: dict[str, list[float | None]] | None
    transcripts: list[TranscriptGroup]
    benchmarks: list[BenchmarkBlock]
    limits: list[str]
    coverage: list[RedTeamCoverage] = field(default_factory=list)
    runs: TrainingRuns | None = None
    difference: Any = None

    def figure(self, suite: str, arm: str) -> Figure | None:
        return next((f for f in self.figures if (f.suite, f.arm) == (suite, arm)), None)
