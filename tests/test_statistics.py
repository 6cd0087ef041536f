import numpy as np
import pytest

from policyalign_assets.statistics import (
    clustered_share,
    graded_difference,
    holm,
    internalisation,
    paired_difference,
    wilson,
)

# Newcombe (1998), table III, method 10: (both, only b, only a, neither) -> limits of b - a
NEWCOMBE_TABLE_III = [
    ((36, 12, 2, 0), (0.0569, 0.3404)),
    ((20, 12, 2, 16), (0.0562, 0.3292)),
    ((18, 12, 2, 18), (0.0562, 0.3290)),
    ((36, 14, 0, 0), (0.1528, 0.4167)),
    ((35, 14, 0, 1), (0.1461, 0.4175)),
    ((1, 97, 1, 1), (0.8736, 0.9850)),
    ((0, 30, 0, 0), (0.8395, 1.0)),
    ((54, 0, 0, 0), (-0.0664, 0.0664)),
    ((30, 0, 0, 24), (-0.0358, 0.0358)),
]


def pairs(both: int, only_b: int, only_a: int, neither: int) -> tuple[list[bool], list[bool]]:
    a = [True] * both + [False] * only_b + [True] * only_a + [False] * neither
    b = [True] * (both + only_b) + [False] * (only_a + neither)
    return a, b


def test_wilson_known_values():
    assert wilson(0, 520).high == pytest.approx(0.0073, abs=5e-5)
    assert wilson(0, 313).high == pytest.approx(0.0121, abs=5e-5)
    assert (wilson(0, 520).low, wilson(520, 520).high) == (0.0, 1.0)
    # Newcombe (1998), Statistics in Medicine 17, 857-872, table I: 81 of 263
    assert (wilson(81, 263).low, wilson(81, 263).high) == pytest.approx((0.2553, 0.3662), abs=5e-5)


def test_no_cases_is_not_measured_rather_than_zero():
    assert wilson(0, 0).estimate is wilson(0, 0).low is wilson(0, 0).high is None
    empty = paired_difference([], [])
    assert empty.difference is empty.low is empty.p_value is None and empty.n == 0


@pytest.mark.parametrize("k, n", [(-1, 5), (6, 5), (0, -1)])
def test_wilson_refuses_impossible_counts(k, n):
    with pytest.raises(ValueError):
        wilson(k, n)


@pytest.mark.parametrize("cells, limits", NEWCOMBE_TABLE_III)
def test_paired_interval_matches_the_published_table(cells, limits):
    result = paired_difference(*pairs(*cells))
    assert (result.low, result.high) == pytest.approx(
        limits, abs=1e-4
    )  # the paper rounds its Wilson limits first
    assert (result.only_b, result.only_a) == cells[1:3]


def test_paired_difference_is_b_minus_a_and_mirrors():
    a, b = pairs(36, 12, 2, 0)
    forward, backward = paired_difference(a, b), paired_difference(b, a)
    assert forward.difference == pytest.approx(0.2)
    assert (backward.low, backward.high) == pytest.approx((-forward.high, -forward.low))
    assert forward.p_value == backward.p_value


def test_mcnemar_is_the_exact_binomial_test():
    # 2 of 14 discordant: 2 * (1 + 14 + 91) / 2**14
    assert paired_difference(*pairs(36, 12, 2, 0)).p_value == pytest.approx(2 * 106 / 2**14)
    assert paired_difference(*pairs(10, 0, 0, 3)).p_value == 1.0


def test_paired_arrays_must_match():
    with pytest.raises(ValueError, match="differ in length"):
        paired_difference([True], [True, False])


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


def test_internalisation_by_hand():
    base = [False] * 100
    teacher = [True] * 80 + [False] * 20
    aligned = [True] * 60 + [False] * 40
    result = internalisation(base, teacher, aligned)
    assert result.estimate == pytest.approx(60 / 80)
    assert 0.6 < result.low < 0.75 < result.high < 0.92
    assert result.gain.difference == pytest.approx(0.8)


@pytest.mark.slow
@pytest.mark.parametrize("n", [34, 330])
@pytest.mark.parametrize("true", [0.999, 0.99, 0.95])
def test_internalisations_interval_covers_the_truth_near_1(n, true):
    """By simulation; the percentile bootstrap covered 28 % of the time at 0.999."""
    rng = np.random.default_rng(int(1000 * true) + n)
    covered = []
    for _ in range(400):
        base, teacher = rng.random(n) < 0.01, rng.random(n) < 0.985
        aligned = rng.random(n) < 0.01 + true * 0.975
        result = internalisation(base, teacher, aligned)
        if result.estimate is not None:
            covered.append(result.low <= true <= result.high)
    assert len(covered) > 350 and np.mean(covered) >= 0.94


def test_internalisation_by_mover_without_correlation():
    """Donner and Zou (2012): the limits solve (top - R bottom)^2 = distances, here by a search."""
    base, teacher, aligned = [False] * 200, [True] * 200, [True] * 150 + [False] * 50
    result = internalisation(base, teacher, aligned)
    gain, effect = paired_difference(base, teacher), paired_difference(base, aligned)
    for limit, a, b in (
        (result.low, effect.difference - effect.low, gain.high - gain.difference),
        (result.high, effect.high - effect.difference, gain.difference - gain.low),
    ):
        left = (effect.difference - limit * gain.difference) ** 2
        assert left == pytest.approx(a**2 + (limit * b) ** 2)


def test_internalisation_is_withheld_where_its_interval_says_nothing():
    rng = np.random.default_rng(0)
    arms = [rng.random(40) < share for share in (0.2, 0.7, 0.5)]
    result = internalisation(*arms)
    assert result.estimate is None and "wider than 0.5" in result.withheld


# ---- clusters ------------------------------------------------------------------------------------
def test_cases_that_are_clusters_of_their_own_change_nothing():
    rng = np.random.default_rng(1)
    a, b = rng.random(200) < 0.3, rng.random(200) < 0.4
    alone = paired_difference(a, b, range(200))
    plain = paired_difference(a, b)
    assert (alone.low, alone.high) == pytest.approx((plain.low, plain.high))
    share, usual = clustered_share(a, range(200)), wilson(int(a.sum()), 200)
    assert (share.low, share.high) == pytest.approx((usual.low, usual.high))


def test_copies_count_as_one_case():
    rng = np.random.default_rng(2)
    a, b = rng.random(100) < 0.3, rng.random(100) < 0.5
    single = paired_difference(a, b)
    copied = paired_difference(np.repeat(a, 10), np.repeat(b, 10), np.repeat(range(100), 10))
    assert copied.high - copied.low == pytest.approx(single.high - single.low, rel=0.1)
    share = clustered_share(np.repeat(a, 10), np.repeat(range(100), 10))
    assert share.high - share.low == pytest.approx(
        wilson(int(a.sum()), 100).high - wilson(int(a.sum()), 100).low, rel=0.1
    )


def test_clustered_intervals_cover_where_independent_ones_do_not():
    rng = np.random.default_rng(3)
    clusters = np.repeat(range(60), 10)
    covered = {"clustered": [], "independent": []}
    for _ in range(300):
        rate = np.repeat(rng.beta(0.3 * 4, 0.7 * 4, 60), 10)  # intra-cluster correlation 0.2
        hit = rng.random(600) < rate
        for name, interval in (
            ("clustered", clustered_share(hit, clusters)),
            ("independent", wilson(int(hit.sum()), 600)),
        ):
            covered[name].append(interval.low <= 0.3 <= interval.high)
    assert np.mean(covered["clustered"]) > 0.92 and np.mean(covered["independent"]) < 0.85


def test_one_cluster_says_next_to_nothing():
    share = clustered_share([True] * 50 + [False] * 50, ["same"] * 100)
    assert share.high - share.low > 0.7 and share.clusters == 1


def test_clusters_must_match_the_cases():
    with pytest.raises(ValueError, match="2 cases have 3 clusters"):
        clustered_share([True, False], [1, 2, 3])


@pytest.mark.parametrize(
    "base, teacher, reason",
    [
        ([True] * 20, [True] * 20, "no clear effect"),
        ([True, False] * 10, [True, True] * 2 + [True, False] * 8, "no clear effect"),
        (
            [True] * 20,
            [False] * 20,
            "no clear effect",
        ),  # a policy that makes the model refuse less has no share to internalise
        ([], [], "no case"),
    ],
)
def test_internalisation_is_withheld_without_a_sure_gain(base, teacher, reason):
    result = internalisation(base, teacher, teacher)
    assert result.estimate is result.low is result.high is None
    assert reason in result.withheld


def test_a_graded_difference_redraws_whole_clusters():
    rng = np.random.default_rng(0)
    effect = rng.normal(0.2, 0.3, 40)  # of a cluster; its ten cases are copies of each other
    a, b, clusters = np.zeros(400), np.repeat(effect, 10), np.repeat(np.arange(40), 10)
    result = graded_difference(a, b, clusters, seed=1)
    assert (result.mean_a, result.n, result.clusters) == (
        0.0,
        400,
        40,
    ) and result.difference == pytest.approx(effect.mean())
    half = 1.96 * effect.std() / np.sqrt(40)
    assert (result.low, result.high) == pytest.approx(
        (effect.mean() - half, effect.mean() + half), abs=0.015
    )
    alone = graded_difference(a, b, range(400), seed=1)
    assert alone.high - alone.low < 0.5 * (result.high - result.low)
    assert graded_difference(a, b, clusters, seed=1) == result
    assert graded_difference([], [], [], seed=1).difference is None


@pytest.mark.slow
def test_holm_as_statsmodels_computes_it():
    from statsmodels.stats.multitest import multipletests

    drawn = np.random.default_rng(0).uniform(0, 0.2, size=(3, 7)).round(2)  # with ties
    for pvalues in drawn:
        assert holm(pvalues) == pytest.approx(multipletests(pvalues, method="holm")[1])
