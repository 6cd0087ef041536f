"""Intervals and tests for shares of cases. Every share is a fraction in [0, 1] and every interval covers 95 %.

One idea throughout: the same cases are shown to every arm, so arms are compared case by case (paired), and a share without
cases is `None` ("not measured"), never 0.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

ALPHA = 0.05
RESAMPLES = 10_000


@dataclass(frozen=True)
class Interval:
    """`k` of `n` cases, as a fraction with its 95 % interval. The three fractions are None where n = 0."""

    estimate: float | None
    low: float | None
    high: float | None
    n: int
    k: int


@dataclass(frozen=True)
class PairedDifference:
    """Share in b minus share in a over the same `n` cases, in [-1, 1]; `only_a` and `only_b` are the discordant counts.

    `p_value` is McNemar's exact test (two-sided). All but the counts are None where n = 0.
    """

    difference: float | None
    low: float | None
    high: float | None
    p_value: float | None
    n: int
    only_a: int
    only_b: int


@dataclass(frozen=True)
class GradedDifference:
    """Mean in b minus mean in a of a graded outcome over the same `n` cases in `clusters` groups. None where n = 0."""

    mean_a: float | None
    mean_b: float | None
    difference: float | None
    low: float | None
    high: float | None
    n: int
    clusters: int


@dataclass(frozen=True)
class Internalisation:
    """(aligned - base) / (teacher - base): 1 means that all of the policy's in-context effect is now in the weights.

    `estimate`, `low` and `high` are None together, and `withheld` then says why. `gain` is teacher - base.
    """

    estimate: float | None
    low: float | None
    high: float | None
    withheld: str | None
    gain: PairedDifference
    n: int
    resamples: int


def wilson(k: int, n: int) -> Interval:
    """Wilson's score interval (1927) for k successes in n cases.

    Raises ValueError unless 0 <= k <= n.
    """
    if not 0 <= k <= n:
        raise ValueError(f"k must lie between 0 and n, not k={k}, n={n}")
    if n == 0:
        return Interval(None, None, None, 0, 0)
    low, high = proportion_confint(k, n, alpha=ALPHA, method="wilson")
    # the formula is exactly 0 and 1 at the ends; floating point leaves about 1e-19
    return Interval(k / n, 0.0 if k == 0 else float(low), 1.0 if k == n else float(high), n, k)


def paired_difference(a: ArrayLike, b: ArrayLike) -> PairedDifference:
    """Difference of two shares measured on the same cases, b - a.

    Interval: method 10 of Newcombe, Statistics in Medicine 17 (1998) 2635-2650 (square-and-add of two Wilson intervals with
    a continuity-corrected correlation). Test: McNemar's exact. Raises ValueError if a and b differ in length.
    """
    a, b = _cases(a), _cases(b)
    _same_length(a, b)
    n = len(a)
    only_a, only_b = int(np.sum(a & ~b)), int(np.sum(b & ~a))
    if n == 0:
        return PairedDifference(None, None, None, None, 0, 0, 0)

    share_a, share_b = wilson(int(a.sum()), n), wilson(int(b.sum()), n)
    phi = _corrected_phi(int(np.sum(a & b)), only_b, only_a, int(np.sum(~a & ~b)))
    difference = (only_b - only_a) / n
    below = _square_and_add(share_b.estimate - share_b.low, share_a.high - share_a.estimate, phi)
    above = _square_and_add(share_b.high - share_b.estimate, share_a.estimate - share_a.low, phi)
    discordant = only_a + only_b
    p_value = float(binomtest(only_b, discordant, 0.5).pvalue) if discordant else 1.0
    return PairedDifference(
        difference, difference - below, difference + above, p_value, n, only_a, only_b
    )


def holm(pvalues: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (1979) of one family of p-values, in the given order."""
    return [float(p) for p in multipletests(pvalues, method="holm")[1]] if len(pvalues) else []


def internalisation(
    base: ArrayLike,
    teacher: ArrayLike,
    aligned: ArrayLike,
    *,
    seed: int,
    resamples: int = RESAMPLES,
) -> Internalisation:
    """How much of the policy's in-context effect the aligned model shows without the policy.

    The arrays hold one outcome per case, in the same order. Interval: percentile bootstrap over cases. The ratio means nothing
    where the policy has no sure effect to begin with, so it is withheld unless the teacher's gain lies surely above 0.
    Raises ValueError if the arrays differ in length.
    """
    base, teacher, aligned = _cases(base), _cases(teacher), _cases(aligned)
    _same_length(base, teacher, aligned)
    gain = paired_difference(base, teacher)
    withheld = _why_withheld(gain)
    if withheld:
        return Internalisation(None, None, None, withheld, gain, gain.n, 0)

    # three yes/no outcomes make 8 kinds of case; redrawing cases is one multinomial draw of how many there are of each kind
    kinds = np.bincount(base * 4 + teacher * 2 + aligned, minlength=8)
    draws = np.random.default_rng(seed).multinomial(gain.n, kinds / gain.n, size=resamples)
    bits = (np.arange(8)[:, None] >> np.array([2, 1, 0])) & 1
    in_base, in_teacher, in_aligned = (draws @ bits).T
    usable = (
        in_teacher > in_base
    )  # a redraw without a gain has no ratio; rare, as the gain's interval lies above 0
    ratios = (in_aligned - in_base)[usable] / (in_teacher - in_base)[usable]
    low, high = np.quantile(ratios, [ALPHA / 2, 1 - ALPHA / 2])
    estimate = (aligned.sum() - base.sum(dtype=int)) / (teacher.sum() - base.sum(dtype=int))
    return Internalisation(float(estimate), float(low), float(high), None, gain, gain.n, resamples)


def graded_difference(
    a: ArrayLike,
    b: ArrayLike,
    clusters: Sequence[Hashable],
    *,
    seed: int,
    resamples: int = RESAMPLES,
) -> GradedDifference:
    """Paired cluster bootstrap (percentile): whole clusters are redrawn, because cases of one cluster resemble each other.

    Raises ValueError if the arrays differ in length.
    """
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    _same_length(a, b, np.asarray(clusters, dtype=object))
    if len(a) == 0:
        return GradedDifference(None, None, None, None, None, 0, 0)
    names, member = np.unique([str(c) for c in clusters], return_inverse=True)
    sums, sizes = np.bincount(member, weights=b - a), np.bincount(member)
    draws = np.random.default_rng(seed).multinomial(
        len(names), np.full(len(names), 1 / len(names)), size=resamples
    )
    low, high = np.quantile((draws @ sums) / (draws @ sizes), [ALPHA / 2, 1 - ALPHA / 2])
    return GradedDifference(
        float(a.mean()),
        float(b.mean()),
        float((b - a).mean()),
        float(low),
        float(high),
        len(a),
        len(names),
    )


def _why_withheld(gain: PairedDifference) -> str | None:
    if gain.n == 0:
        return "no case was scored in all three arms"
    if gain.low <= 0:
        return "putting the policy into the prompt has no sure effect on these cases (the interval of its gain reaches 0)"
    return None


def _corrected_phi(both: int, only_b: int, only_a: int, neither: int) -> float:
    n = both + only_b + only_a + neither
    margins = (both + only_b) * (only_a + neither) * (both + only_a) * (only_b + neither)
    if margins == 0:
        return 0.0
    cross = both * neither - only_b * only_a
    return (max(cross - n / 2, 0.0) if cross > 0 else cross) / math.sqrt(margins)


def _square_and_add(x: float, y: float, phi: float) -> float:
    return math.sqrt(max(x * x - 2 * phi * x * y + y * y, 0.0))


def _cases(outcomes: ArrayLike) -> NDArray[np.bool_]:
    return np.asarray(outcomes, dtype=bool)


def _same_length(*arrays: NDArray[np.bool_]) -> None:
    if len({len(array) for array in arrays}) != 1:
        raise ValueError(f"paired arrays differ in length: {[len(array) for array in arrays]}")
