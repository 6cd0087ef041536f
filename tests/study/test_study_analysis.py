"""The comparison of arms: what intervals cover, what is a miss, and what is called better."""

import random
from dataclasses import replace

import pytest

from policyalign_assets.statistics import clustered_share
from policyalign_assets.study.analysis import FIGURES, compared, compared_together, share_of
from policyalign_assets.study.results import SuiteOutcome, TrialResult
from policyalign_assets.study.sweep import Arm, Sweep

PARTITION = "medical|general-conduct"


def sweep(*arms: str, **against: str) -> Sweep:
    specs = {a: Arm(about="x", training="none", against=against.get(a)) for a in arms}
    return Sweep(
        partitions=(PARTITION,), seeds=(1, 2, 3, 4), share=1, steps=1, reference=arms[0], arms=specs
    )


def result(arm: str, seed: int, outcomes, clusters=None, **rest) -> TrialResult:
    cases = [f"case-{n}" for n in range(len(outcomes))]
    suite = SuiteOutcome(cases, clusters or cases, list(outcomes))
    return TrialResult(arm, PARTITION, seed, "f", 1.0, 1, {"violations": suite}, **rest)


def figures(sweep_, results):
    return {a.arm: a for a in compared(sweep_, results, PARTITION)}


def test_an_answer_that_was_not_judged_is_a_miss_and_is_counted():
    share = share_of(FIGURES["violations"], [result("a", 1, [1, 1, None, 0])])
    assert share.estimate == 0.5 and share.unjudged == 1 and share.cases == 4


def test_a_figure_without_a_case_is_not_measured():
    arm = figures(sweep("a", "b"), [result("a", 1, [1]), result("b", 1, [1])])["b"]
    assert "capability" not in arm.shares and "capability" not in arm.differences


def test_an_interval_is_never_narrower_than_the_cases_of_one_seed_allow():
    every = [1] * 20
    share = share_of(FIGURES["violations"], [result("a", seed, every) for seed in range(4)])
    one = clustered_share(every, range(20))
    assert share.estimate == 1.0 and share.low == pytest.approx(one.low) and share.high == 1.0


def test_seeds_that_differ_widen_the_interval():
    alike = [result("a", s, [1] * 150 + [0] * 150) for s in range(4)]
    apart = [result("a", s, [1] * n + [0] * (300 - n)) for s, n in enumerate((30, 90, 210, 270))]
    narrow, wide = (share_of(FIGURES["violations"], r) for r in (alike, apart))
    assert narrow.estimate == wide.estimate == 0.5
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_the_interval_of_a_share_covers_a_true_share_that_varies_by_seed():
    rng = random.Random(3)
    covered = 0
    for _ in range(40):
        results = []
        for seed in range(4):
            share = min(1.0, max(0.0, rng.gauss(0.7, 0.08)))
            results.append(result("a", seed, [int(rng.random() < share) for _ in range(40)]))
        found = share_of(FIGURES["violations"], results)
        covered += found.low <= 0.7 <= found.high
    assert covered >= 35  # 38 expected of an exact interval


def test_a_difference_is_paired_within_seeds_and_cases():
    """Seeds that differ much between each other say nothing against a constant difference."""
    results = []
    for seed, base in enumerate((40, 60, 80, 95), 1):
        results.append(result("ours", seed, [1] * base + [0] * (200 - base)))
        results.append(result("b", seed, [1] * (base + 30) + [0] * (170 - base)))
    found = figures(sweep("ours", "b"), results)["b"].differences["violations"]
    assert found.estimate == pytest.approx(0.15) and found.low > 0.1 and found.high < 0.2
    assert found.verdict == "better"


def test_one_lucky_seed_is_not_called_better():
    """All cases together would say so: 400 of 800 against 460 of 800."""
    results = []
    for seed, other in enumerate((100, 100, 100, 160), 1):
        results.append(result("ours", seed, [1] * 100 + [0] * 100))
        results.append(result("b", seed, [1] * other + [0] * (200 - other)))
    found = figures(sweep("ours", "b"), results)["b"].differences["violations"]
    assert found.estimate == pytest.approx(0.075) and found.verdict == "unclear"
    assert found.low < 0 < found.high


def test_equal_outcomes_are_no_difference_of_zero_width():
    results = [result(arm, seed, [1] * 50) for arm in ("ours", "b") for seed in (1, 2, 3)]
    found = figures(sweep("ours", "b"), results)["b"].differences["violations"]
    assert found.estimate == 0 and found.low < -0.02 and found.high > 0.02 and found.p == 1


def test_p_values_are_adjusted_over_the_arms():
    def some(arms):
        made = [result("ours", s, [1] * 50 + [0] * 50) for s in (1, 2, 3, 4)]
        for arm in arms:
            made += [
                result(arm, s, [1] * n + [0] * (100 - n)) for s, n in enumerate((62, 55, 60, 57), 1)
            ]
        return figures(sweep("ours", *arms), made)["b0"].differences["violations"]

    alone, among_ten = some(["b0"]), some([f"b{n}" for n in range(10)])
    assert among_ten.p == pytest.approx(min(1, 10 * alone.p))
    assert alone.verdict == "better" and among_ten.verdict == "unclear"


def test_with_one_seed_nothing_is_said_about_other_seeds():
    found = figures(sweep("ours", "b"), [result("ours", 1, [0] * 9), result("b", 1, [1] * 9)])
    difference = found["b"].differences["violations"]
    assert difference.estimate == 1 and difference.low is difference.p is None
    assert difference.verdict == "unclear"


def test_an_arm_is_compared_with_the_one_that_it_names():
    results = [
        result(arm, s, [1] * n + [0] * (50 - n))
        for arm, n in (("ours", 50), ("short", 20), ("short_all", 30))
        for s in (1, 2)
    ]
    found = figures(sweep("ours", "short", "short_all", short_all="short"), results)
    assert found["short_all"].against == "short"
    assert found["short_all"].differences["violations"].estimate == pytest.approx(0.2)
    assert found["ours"].against == "" and not found["ours"].differences


def test_a_training_that_failed_is_kept_apart():
    lost = TrialResult("b", PARTITION, 2, "f", 1.0, 1, failed="the loss is not finite")
    found = figures(sweep("ours", "b"), [result("ours", 1, [1]), result("b", 1, [1]), lost])["b"]
    assert found.failed == [lost] and len(found.results) == 1


def test_over_all_policies_each_pair_of_policy_and_seed_is_a_unit():
    """The same small gain under three policies is shown together, where one policy is not enough.

    A trial is compared with that of its own policy, whatever the other ones gave.
    """
    policies = ("medical|p", "legal|p", "financial|p")
    together = sweep("ours", "b").model_copy(update={"partitions": policies, "seeds": (1, 2, 3)})
    results = [
        replace(result(arm, seed, [1] * n + [0] * (400 - n)), partition=policy)
        for policy, base in zip(policies, (100, 200, 300), strict=True)
        for seed, gain in zip((1, 2, 3), (4, 12, 20), strict=True)
        for arm, n in (("ours", base), ("b", base + gain))
    ]
    found = {a.arm: a for a in compared_together(together, results)}["b"].differences["violations"]
    assert found.seeds == 9 and found.estimate == pytest.approx(0.03)
    assert found.verdict == "better"
    for policy in policies:
        alone = {a.arm: a for a in compared(together, results, policy)}["b"]
        assert alone.differences["violations"].verdict == "unclear"
        assert alone.differences["violations"].estimate == pytest.approx(0.03)
