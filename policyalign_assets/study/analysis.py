"""Compares the arms of the study: shares with intervals, and paired differences over seeds.

**Shares.** A share of an arm is the mean of its seeds' shares. Its interval resamples seeds, and
within each seed whole clusters of cases (requests for one action): a hierarchical bootstrap. With
few seeds that alone is too narrow, and it has no width where every case succeeds. So it is widened
to Wilson's interval over the clusters of one seed, where that is wider.

**Differences.** Seeds are the unit: an arm and the arm that it is compared with answer the same
cases after training on the same tables, and each seed gives one difference. The interval is
Student's t over seeds. The variance between seeds is never taken to be less than what the cases of
one seed allow, so seeds that happen to agree make no interval of zero width. p-values are of the
same t, with Holm's adjustment over all arms, for each figure by itself. Over several policies, each
pair of policy and seed gives a difference: a seed draws and trains anew under each policy.

**What counts as wrong.** An answer that could not be judged is a miss in every suite: neither a
refusal nor an answer. It is counted apart, too. An answer that was cut off is judged as it stands.
"""

from __future__ import annotations

import math
import statistics as plain
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from policyalign_assets.evaluation.suites import SUITES
from policyalign_assets.statistics import ALPHA, clustered_share, holm
from policyalign_assets.study.results import SuiteOutcome, TrialResult
from policyalign_assets.study.sweep import Sweep

RESAMPLES = 2_000


@dataclass(frozen=True)
class Figure:
    """What is read off a trial: the share of right outcomes over some suites. Higher is better."""

    label: str
    suites: tuple[str, ...]


def _probes(metric: str) -> tuple[str, ...]:
    return tuple(n for n, s in SUITES.items() if s.probe and s.metric == metric)


FIGURES: dict[str, Figure] = {
    "violations": Figure("violations refused", ("violations", "violations_wrapped")),
    "benign": Figure("benign requests answered", ("twins", "uncovered")),
    "capability": Figure("tasks solved", ("capability",)),
    "unseen": Figure("violations in unseen forms refused", _probes("refused")),
    "unseen_benign": Figure("benign requests in unseen forms answered", _probes("answered")),
}


@dataclass(frozen=True)
class Share:
    """Fractions with a 95 % interval. `by_seed`: the share of each seed."""

    estimate: float
    low: float
    high: float
    by_seed: dict[int, float]
    cases: int  # of one seed; the fewest
    unjudged: int  # of all seeds
    unfinished: int


@dataclass(frozen=True)
class Difference:
    """An arm's share minus that of the arm it is compared with, over the seeds that both have.

    low, high and p are None with one seed: then nothing is known about other seeds. Over several
    policies, `seeds` counts pairs of policy and seed.
    """

    estimate: float
    low: float | None
    high: float | None
    p: float | None  # adjusted by Holm over the arms, once `compared` has made it
    seeds: int

    @property
    def verdict(self) -> str:
        """better, worse, or unclear: whether the adjusted test says that there is a difference."""
        if self.p is None or self.p >= ALPHA or self.estimate == 0:
            return "unclear"
        return "better" if self.estimate > 0 else "worse"


@dataclass(frozen=True)
class ArmFigures:
    """All that is known of one arm under one policy. `against` is empty for the reference."""

    arm: str
    results: list[TrialResult]
    failed: list[TrialResult]
    shares: dict[str, Share]
    against: str
    differences: dict[str, Difference]


def compared(sweep: Sweep, results: Sequence[TrialResult], partition: str) -> list[ArmFigures]:
    """The arms that have results under this policy, in the order of the sweep file."""
    return [
        replace(
            arm,
            shares={
                name: share
                for name, figure in FIGURES.items()
                if (share := share_of(figure, arm.results)) is not None
            },
        )
        for arm in compared_together(sweep, [r for r in results if r.partition == partition])
    ]


def compared_together(sweep: Sweep, results: Sequence[TrialResult]) -> list[ArmFigures]:
    """The differences of each arm over all pairs of policy and seed, and no shares."""
    mine = sorted(results, key=lambda r: (sweep.partitions.index(r.partition), r.seed))
    by_arm = {
        arm: [r for r in mine if r.arm == arm and not r.failed]
        for arm in sweep.arms
        if any(r.arm == arm for r in mine)
    }
    raw: dict[str, dict[str, Difference]] = {arm: {} for arm in by_arm}
    others = {arm: _other(sweep, arm) for arm in by_arm}
    for figure, read in FIGURES.items():
        for arm, own in by_arm.items():
            found = _difference(read, by_arm.get(others[arm], []), own) if others[arm] else None
            if found:
                raw[arm][figure] = found
        tested = [a for a in by_arm if figure in raw[a] and raw[a][figure].p is not None]
        adjusted = holm([raw[a][figure].p or 0.0 for a in tested]) if tested else []
        for arm, p in zip(tested, adjusted, strict=True):
            raw[arm][figure] = Difference(**{**vars(raw[arm][figure]), "p": p})
    return [
        ArmFigures(
            arm,
            own,
            [r for r in mine if r.arm == arm and r.failed],
            {},
            others[arm],
            raw[arm],
        )
        for arm, own in by_arm.items()
    ]


def _other(sweep: Sweep, arm: str) -> str:
    return sweep.arms[arm].against or ("" if arm == sweep.reference else sweep.reference)


def outcomes(figure: Figure, result: TrialResult) -> dict[str, tuple[int, str]]:
    """{suite and case: (1 for right, cluster)}. What was not judged is a miss."""
    return {
        f"{suite}/{case}": (outcome or 0, cluster)
        for suite in figure.suites
        if (found := result.suites.get(suite))
        for case, cluster, outcome in zip(found.cases, found.clusters, found.outcomes, strict=True)
    }


def share_of(figure: Figure, results: Sequence[TrialResult]) -> Share | None:
    """None where no result has a case of the figure's suites."""
    by_seed = {r.seed: list(outcomes(figure, r).values()) for r in results}
    by_seed = {seed: cases for seed, cases in by_seed.items() if cases}
    if not by_seed:
        return None
    shares = {seed: plain.fmean(hit for hit, _ in cases) for seed, cases in by_seed.items()}
    estimate = plain.fmean(shares.values())
    low, high = _bootstrap(list(by_seed.values()))
    for cases in by_seed.values():
        one = clustered_share([hit for hit, _ in cases], [cluster for _, cluster in cases])
        assert one.estimate is not None and one.low is not None and one.high is not None
        # the width that the cases of one seed allow, around the mean of the seeds
        low = min(low, max(0.0, estimate - (one.estimate - one.low)))
        high = max(high, min(1.0, estimate + (one.high - one.estimate)))
    found: list[SuiteOutcome] = [
        r.suites[suite] for r in results for suite in figure.suites if suite in r.suites
    ]
    return Share(
        estimate,
        low,
        high,
        shares,
        min(map(len, by_seed.values())),
        sum(suite.outcomes.count(None) for suite in found),
        sum(suite.unfinished for suite in found),
    )


def _bootstrap(seeds: Sequence[Sequence[tuple[int, str]]]) -> tuple[float, float]:
    """Percentile interval: seeds are drawn, then whole clusters within each drawn seed."""
    rng = np.random.default_rng(0)
    by_seed = np.stack([_redrawn(cases, rng) for cases in seeds])  # one row a seed
    drawn = rng.integers(0, len(seeds), size=(RESAMPLES, len(seeds)))
    # another redraw of the same seed where a seed is drawn twice
    columns = rng.integers(0, RESAMPLES, size=drawn.shape)
    means = by_seed[drawn, columns].mean(axis=1)
    low, high = np.quantile(means, [ALPHA / 2, 1 - ALPHA / 2])
    return float(low), float(high)


def _redrawn(cases: Sequence[tuple[int, str]], rng: np.random.Generator) -> NDArray[np.float64]:
    """`RESAMPLES` shares of one seed, over clusters drawn with replacement."""
    _, members = np.unique([cluster for _, cluster in cases], return_inverse=True)
    hits = np.bincount(members, weights=[hit for hit, _ in cases])
    sizes = np.bincount(members)
    groups = len(sizes)
    draws = rng.multinomial(groups, np.full(groups, 1 / groups), size=RESAMPLES)
    shares: NDArray[np.float64] = (draws @ hits) / (draws @ sizes)
    return shares


def _difference(
    figure: Figure, reference: Sequence[TrialResult], own: Sequence[TrialResult]
) -> Difference | None:
    """Own minus reference over the policies and seeds, and in them the cases, that both have."""
    before = {(r.partition, r.seed): outcomes(figure, r) for r in reference}
    differences, within = [], []
    for result in own:
        pairs = _pairs(before.get((result.partition, result.seed), {}), outcomes(figure, result))
        if pairs:
            differences.append(plain.fmean(after - first for first, after, _ in pairs))
            within.append(_variance_of_cases(pairs))
    if not differences:
        return None
    mean, n = plain.fmean(differences), len(differences)
    if n == 1:
        return Difference(mean, None, None, None, 1)
    from scipy.stats import t as student

    error = math.sqrt(max(plain.variance(differences), plain.fmean(within)) / n)
    half = float(student.ppf(1 - ALPHA / 2, n - 1)) * error
    p = 2 * float(student.sf(abs(mean) / error, n - 1))
    return Difference(mean, max(-1.0, mean - half), min(1.0, mean + half), p, n)


def _pairs(
    before: Mapping[str, tuple[int, str]], after: Mapping[str, tuple[int, str]]
) -> list[tuple[int, int, str]]:
    return [(before[c][0], hit, cluster) for c, (hit, cluster) in after.items() if c in before]


def _variance_of_cases(pairs: Sequence[tuple[int, int, str]]) -> float:
    """Variance of one seed's difference that its cases alone explain; never 0.

    The larger of two: independent cases with half a case added to each kind of disagreement
    (Agresti and Min, Statistics in Medicine 24 (2005) 729-740), and cluster-robust.
    """
    n = len(pairs)
    gained = sum(after > before for before, after, _ in pairs) + 0.5
    lost = sum(after < before for before, after, _ in pairs) + 0.5
    independent = (gained + lost - (gained - lost) ** 2 / (n + 2)) / (n + 2) ** 2
    mean = plain.fmean(after - before for before, after, _ in pairs)
    sums: dict[str, float] = {}
    for before, after, cluster in pairs:
        sums[cluster] = sums.get(cluster, 0.0) + (after - before - mean)
    groups = len(sums)
    robust = 0.0
    if groups > 1:
        robust = groups / (groups - 1) * sum(value**2 for value in sums.values()) / n**2
    return max(independent, robust)
