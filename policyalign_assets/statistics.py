"""Intervals and tests for shares of cases. Shares are fractions in [0, 1]; intervals cover 95 %.

Every arm answers the same cases, so arms are compared case by case (paired). A share without cases
is `None` ("not measured"), never 0.

Cases of one cluster (requests for the same action) resemble each other and count for less than
independent ones. The clustered functions divide the number of cases by the *design effect*: the
cluster-robust variance over the variance of independent cases, at least 1. They also replace the
normal quantile by Student's t with one degree of freedom fewer than there are clusters
(Korn and Graubard, Survey Methodology 24 (1998) 193-201; Dean and Pagano, Journal of Survey
Statistics and Methodology 3 (2015) 484-503).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

# SciPy's and statsmodels' modules take over a second to import, and most processes that import this
# module compute nothing with them. So they are imported where they are used.

ALPHA = 0.05
RESAMPLES = 10_000
WIDEST_INTERNALISATION = 0.5  # a wider interval says nothing and is withheld
_Z = NormalDist().inv_cdf(1 - ALPHA / 2)


@dataclass(frozen=True)
class Interval:
    """`k` of `n` cases, as a fraction with its 95 % interval. The fractions are None where n = 0.

    `clusters`: how many groups of related cases there are; None where cases count as independent.
    """

    estimate: float | None
    low: float | None
    high: float | None
    n: int
    k: int
    clusters: int | None = None


@dataclass(frozen=True)
class PairedDifference:
    """Share in b minus share in a over the same `n` cases, in [-1, 1].

    `only_a` and `only_b` count the cases that succeed in one arm alone. `p_value` is McNemar's
    exact test (two-sided, cases as independent). All but the counts are None where n = 0.
    `clusters` as for `Interval`.
    """

    difference: float | None
    low: float | None
    high: float | None
    p_value: float | None
    n: int
    only_a: int
    only_b: int
    clusters: int | None = None


@dataclass(frozen=True)
class GradedDifference:
    """Mean in b minus mean in a of a graded outcome, over the same `n` cases in `clusters` groups.

    All but the counts are None where n = 0.
    """

    mean_a: float | None
    mean_b: float | None
    difference: float | None
    low: float | None
    high: float | None
    n: int
    clusters: int


@dataclass(frozen=True)
class Internalisation:
    """(aligned - base) / (teacher - base): 1 if the weights hold all of the policy's effect.

    `estimate`, `low` and `high` are None together, and `withheld` then says why.
    `gain` is teacher - base.
    """

    estimate: float | None
    low: float | None
    high: float | None
    withheld: str | None
    gain: PairedDifference
    n: int


def wilson(k: int, n: int) -> Interval:
    """Wilson's score interval (1927) for k successes in n independent cases.

    Raises ValueError unless 0 <= k <= n.
    """
    if not 0 <= k <= n:
        raise ValueError(f"k must lie between 0 and n, not k={k}, n={n}")
    if n == 0:
        return Interval(None, None, None, 0, 0)
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(k, n, alpha=ALPHA, method="wilson")
    # the formula is exactly 0 and 1 at the ends; floating point leaves about 1e-19
    return Interval(k / n, 0.0 if k == 0 else float(low), 1.0 if k == n else float(high), n, k)


def clustered_share(outcomes: ArrayLike, clusters: Sequence[Hashable]) -> Interval:
    """Wilson's interval with the number of cases divided by the design effect of `clusters`.

    Raises ValueError if the two differ in length.
    """
    hit = _cases(outcomes)
    members = _members(clusters, len(hit))
    if len(hit) == 0:
        return Interval(None, None, None, 0, 0, 0)
    share, k, groups = float(hit.mean()), int(hit.sum()), int(members.max()) + 1
    low, high = _wilson_bounds(share, _effective(hit.astype(float), members))
    return Interval(share, low, high, len(hit), k, groups)


def paired_difference(
    a: ArrayLike, b: ArrayLike, clusters: Sequence[Hashable] | None = None
) -> PairedDifference:
    """Difference of two shares measured on the same cases, b - a.

    Interval: method 10 of Newcombe, Statistics in Medicine 17 (1998) 2635-2650 (square-and-add of
    two Wilson intervals with a continuity-corrected correlation), with the number of cases divided
    by the design effect where `clusters` are given. Raises ValueError if lengths differ.
    """
    a, b = _cases(a), _cases(b)
    _same_length(a, b)
    n = len(a)
    groups = None if clusters is None else len(set(clusters))
    only_a, only_b = int(np.sum(a & ~b)), int(np.sum(b & ~a))
    if n == 0:
        return PairedDifference(None, None, None, None, 0, 0, 0, groups)
    n_effective = float(n)
    if clusters is not None:
        n_effective = _effective(b.astype(float) - a.astype(float), _members(clusters, n))
    scale = n_effective / n
    table = [
        scale * int(np.sum(x)) for x in (a & b, b & ~a, a & ~b, ~a & ~b)
    ]  # both, only b, only a, neither
    share_a, share_b, difference = float(a.mean()), float(b.mean()), (only_b - only_a) / n
    low_a, high_a = _wilson_bounds(share_a, n_effective)
    low_b, high_b = _wilson_bounds(share_b, n_effective)
    phi = _corrected_phi(*table)
    below = _square_and_add(share_b - low_b, high_a - share_a, phi)
    above = _square_and_add(high_b - share_b, share_a - low_a, phi)
    discordant = only_a + only_b
    from scipy.stats import binomtest

    p_value = float(binomtest(only_b, discordant, 0.5).pvalue) if discordant else 1.0
    return PairedDifference(
        difference, difference - below, difference + above, p_value, n, only_a, only_b, groups
    )


def holm(pvalues: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (1979) of one family of p-values, in the given order."""
    # As statsmodels computes it, which collects garbage each time: half a second in a report.
    p = np.asarray(pvalues, dtype=float)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1.0)
    return [float(value) for value in adjusted]


def internalisation(base: ArrayLike, teacher: ArrayLike, aligned: ArrayLike) -> Internalisation:
    """How much of the policy's in-context effect the aligned model shows without the policy.

    The arrays hold one outcome per case, in the same order. Interval: MOVER-R, the ratio of two
    differences from their Newcombe intervals (Donner and Zou, Statistical Methods in Medical
    Research 21 (2012) 347-359). The two differences count as uncorrelated, which makes the
    interval wider than it need be. Withheld where the teacher's gain does not lie clearly above
    0, and where the interval is wider than WIDEST_INTERNALISATION.
    Raises ValueError if the arrays differ in length.
    """
    base, teacher, aligned = _cases(base), _cases(teacher), _cases(aligned)
    _same_length(base, teacher, aligned)
    gain = paired_difference(base, teacher)
    effect = paired_difference(base, aligned)

    def withheld(why: str) -> Internalisation:
        return Internalisation(None, None, None, why, gain, gain.n)

    if gain.difference is None or effect.difference is None:
        return withheld("no case was scored in all three arms")
    assert gain.low is not None and gain.high is not None
    assert effect.low is not None and effect.high is not None
    if gain.low <= 0:
        return withheld(
            "putting the policy into the prompt has no clear effect on these cases "
            "(the interval of its gain reaches 0)"
        )
    top, bottom = effect.difference, gain.difference
    low = _mover_ratio(top, bottom, top - effect.low, gain.high - bottom, -1)
    high = _mover_ratio(top, bottom, effect.high - top, bottom - gain.low, +1)
    if high - low > WIDEST_INTERNALISATION:
        return withheld(
            f"its interval ({low:.2f} to {high:.2f}) is wider than {WIDEST_INTERNALISATION:g}: "
            "there are too few cases"
        )
    return Internalisation(top / bottom, low, high, None, gain, gain.n)


def graded_difference(
    a: ArrayLike,
    b: ArrayLike,
    clusters: Sequence[Hashable],
    *,
    seed: int,
    resamples: int = RESAMPLES,
) -> GradedDifference:
    """Paired cluster bootstrap (percentile): whole clusters are resampled.

    Raises ValueError if the arrays differ in length.
    """
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    _same_length(a, b)
    members = _members(clusters, len(a))
    if len(a) == 0:
        return GradedDifference(None, None, None, None, None, 0, 0)
    sums, sizes = np.bincount(members, weights=b - a), np.bincount(members)
    groups = len(sums)
    draws = np.random.default_rng(seed).multinomial(
        groups, np.full(groups, 1 / groups), size=resamples
    )
    low, high = np.quantile((draws @ sums) / (draws @ sizes), [ALPHA / 2, 1 - ALPHA / 2])
    return GradedDifference(
        float(a.mean()),
        float(b.mean()),
        float((b - a).mean()),
        float(low),
        float(high),
        len(a),
        groups,
    )


def _wilson_bounds(share: float, n: float) -> tuple[float, float]:
    """Wilson's interval for a share of `n` cases, where `n` need not be whole."""
    middle = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2)) / (1 + _Z**2 / n)
    return (
        0.0 if share == 0 else max(0.0, middle - half),
        1.0 if share == 1 else min(1.0, middle + half),
    )


def _effective(values: NDArray[np.float64], members: NDArray[np.intp]) -> float:
    """The number of independent cases that tell as much about the mean as these clustered ones."""
    n, groups = len(values), int(members.max()) + 1
    if groups == n:
        return float(n)
    if groups == 1:
        return 1.0
    residuals = values - values.mean()
    independent = float(np.sum(residuals**2)) / n**2
    robust = groups / (groups - 1) * float(np.sum(np.bincount(members, residuals) ** 2)) / n**2
    design_effect = max(1.0, robust / independent) if independent > 0 else 1.0
    from scipy.special import stdtrit

    return float(n / design_effect * (_Z / stdtrit(groups - 1, 1 - ALPHA / 2)) ** 2)


def _mover_ratio(
    top: float, bottom: float, top_distance: float, bottom_distance: float, sign: int
) -> float:
    """One limit of top / bottom. The distances run from the estimates to the limits that count."""
    a, b = top_distance**2, bottom_distance**2
    inside = (top * bottom) ** 2 - (bottom**2 - b) * (top**2 - a)
    return float((top * bottom + sign * math.sqrt(max(inside, 0.0))) / (bottom**2 - b))


def _corrected_phi(both: float, only_b: float, only_a: float, neither: float) -> float:
    n = both + only_b + only_a + neither
    margins = (both + only_b) * (only_a + neither) * (both + only_a) * (only_b + neither)
    if margins == 0:
        return 0.0
    cross = both * neither - only_b * only_a
    return float((max(cross - n / 2, 0.0) if cross > 0 else cross) / math.sqrt(margins))


def _square_and_add(x: float, y: float, phi: float) -> float:
    return math.sqrt(max(x * x - 2 * phi * x * y + y * y, 0.0))


def _cases(outcomes: ArrayLike) -> NDArray[np.bool_]:
    return np.asarray(outcomes, dtype=bool)


def _members(clusters: Sequence[Hashable], n: int) -> NDArray[np.intp]:
    """The number of each case's cluster, from 0 on."""
    if len(clusters) != n:
        raise ValueError(f"{n} cases have {len(clusters)} clusters")
    return np.unique([str(c) for c in clusters], return_inverse=True)[1] if n else np.zeros(0, int)


def _same_length(*arrays: NDArray[np.generic]) -> None:
    if len({len(array) for array in arrays}) != 1:
        raise ValueError(f"paired arrays differ in length: {[len(array) for array in arrays]}")
