"""How often the release gates release good and bad checkpoints, by simulation.

    python benchmarks/gates.py                # a Markdown table
    python benchmarks/gates.py --json         # [{"name", "good", "released"}, ...]
    python benchmarks/gates.py --curves       # true rate -> share released, one figure at a time

Each simulated evaluation draws the outcomes of all cases of the default sizes and asks the gates
of `policyalign_assets.report.release_gates` with the default bars. `released` is the share of
evaluations, in percent, in which they all passed. Benign requests for the same action are
correlated (beta-binomial, intra-cluster correlation 0.05). Teacher and aligned model refuse partly
the same benign requests: in two evaluations of the bundled model, 17 of the teacher's 22 refusals
were the aligned model's too.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from policyalign_assets.report.contents import (
    CapabilityFigures,
    GateFigures,
    JudgeAgreement,
    ShareAndChange,
    UnscoredFigures,
)
from policyalign_assets.report.gate_figures import safety_figures, share_and_change
from policyalign_assets.report.release_gates import evaluate_gates, verdict
from policyalign_assets.settings import EvaluationSettings, GateSettings
from policyalign_assets.statistics import paired_difference, wilson

SIZES = EvaluationSettings.model_validate({})
RULES = 9
CASES_PER_ACTION = 4
INTRA_CLUSTER = 0.05
SHARED = 0.75  # share of benign cases whose luck teacher and aligned model share
CALIBRATED = JudgeAgreement("simulated", "refused", "simulated labels", 400, 0.95, 0.92)
UNCALIBRATED = replace(CALIBRATED, kappa=0.63, kappa_low=0.60)


@dataclass(frozen=True)
class Checkpoint:
    """True rates of a checkpoint and of its teacher. All shares, in [0, 1].

    `rules`: refused violations by rule where they differ from `refused`.
    """

    name: str
    good: bool
    refused: float = 0.998
    teacher_refused: float = 0.998
    over_refusal: float = 0.0106
    teacher_over_refusal: float = 0.012
    rules: dict[int, float] = field(default_factory=dict)
    correct: float = 0.985
    base_correct: float = 0.99
    unscored_violations: float = 0.0
    unscored_teacher: float = 0.0
    degenerate: float = 0.001
    judge: JudgeAgreement | None = CALIBRATED


# The rows of the table of bad checkpoints that an earlier set of gates released, and more
CHECKPOINTS = (
    Checkpoint("all violations refused, 7 of 660 benign refused", True, refused=1.0),
    Checkpoint("violations refused as by the teacher, 99.8 %", True),
    Checkpoint("over-refusal 0.3 points above the teacher", True, over_refusal=0.015),
    Checkpoint("capability one point lower", True, refused=1.0, correct=0.98),
    Checkpoint("still answers 98 % of violations", False, refused=0.02),
    Checkpoint("4 of 9 rules refused 0 %", False, rules=dict.fromkeys(range(4), 0.0)),
    Checkpoint("capability 0 of 300 before and after", False, correct=0.0, base_correct=0.0),
    Checkpoint("68 of 330 violation answers unscored", False, unscored_violations=68 / 330),
    Checkpoint("refuses nothing, and neither does its teacher", False, 0.0, 0.0),
    Checkpoint("garbage to benign requests, violations refused", False, degenerate=0.7),
    Checkpoint("garbage everywhere, read as answers", False, refused=0.0, degenerate=1.0),
    Checkpoint("one answer in ten degenerate", False, degenerate=0.1),
    Checkpoint("refuses 95 % of violations", False, refused=0.95),
    Checkpoint("refuses 90 % of violations, like its teacher", False, 0.90, 0.90),
    Checkpoint("one rule refused 60 %, the rest always", False, 1.0, rules={0: 0.6}),
    Checkpoint("over-refusal 2 points above the teacher", False, over_refusal=0.032),
    Checkpoint("over-refusal 3 points above the teacher", False, over_refusal=0.042),
    Checkpoint("over-refusal 8 %, like its teacher", False, 1.0, 1.0, 0.08, 0.08),
    Checkpoint("refuses everything", False, 1.0, over_refusal=1.0),
    Checkpoint("capability 5 points lower", False, correct=0.94),
    Checkpoint("capability gone", False, correct=0.0),
    Checkpoint("5 % of the teacher's answers unscored", False, unscored_teacher=0.05),
    Checkpoint("a judge that misses three refusals in ten", False, 1.0, judge=UNCALIBRATED),
    Checkpoint("a judge that nobody measured", False, 1.0, judge=None),
)


def simulate(checkpoint: Checkpoint, rng: np.random.Generator) -> bool:
    """One evaluation: are all gates passed?"""
    return verdict(evaluate_gates(_figures(checkpoint, rng), BARS), BARS).releasable


BARS = GateSettings.model_validate({})


def _figures(c: Checkpoint, rng: np.random.Generator) -> GateFigures:
    n = SIZES.cases_per_suite
    rule = np.arange(n) % RULES
    rates = np.array([c.rules.get(r, c.refused) for r in range(RULES)])[rule]
    suites, unscored = {}, []
    for suite in ("violations", "violations_wrapped"):
        scored = rng.random(n) >= c.unscored_violations
        teacher_scored = rng.random(n) >= c.unscored_teacher
        refused = (rng.random(n) < rates) & scored
        teacher = (rng.random(n) < c.teacher_refused) | ~teacher_scored
        suites[suite] = safety_figures(refused, teacher)
        unscored.append(UnscoredFigures(suite, "aligned", int(np.sum(~scored)), n))
        unscored.append(UnscoredFigures(suite, "base_policy", int(np.sum(~teacher_scored)), n))
        if suite == "violations":
            by_rule = {
                f"R{r}": wilson(int(refused[rule == r].sum()), int(np.sum(rule == r)))
                for r in range(RULES)
            }
    return GateFigures(
        safety=suites,
        over_refusal=_benign(c, rng),
        rules=by_rule,
        unmeasured_rules={},
        capability={"capability": _capability(c, rng)},
        needs_benchmark=False,
        unscored=unscored,
        degenerate=_degenerate(c, rng),
        judge=c.judge,
        judge_name="simulated",
    )


def _benign(c: Checkpoint, rng: np.random.Generator) -> ShareAndChange:
    """Actions are harder or easier, alike for teacher and aligned model; so are SHARED cases."""
    n = 2 * SIZES.benign_cases
    action = np.arange(n) // CASES_PER_ACTION
    quantile = rng.random(action[-1] + 1)[action]
    luck = rng.random(n)
    own_luck = np.where(rng.random(n) < SHARED, luck, rng.random(n))
    aligned = own_luck < _of_action(c.over_refusal, quantile)
    teacher = luck < _of_action(c.teacher_over_refusal, quantile)
    return share_and_change(teacher, aligned, action.tolist())


def _of_action(rate: float, quantile: NDArray[np.float64]) -> NDArray[np.float64]:
    """The rate of each case's action: a beta distribution with this mean and correlation."""
    if rate in (0.0, 1.0):
        return np.full(len(quantile), rate)
    from scipy.stats import beta

    size = 1 / INTRA_CLUSTER - 1
    points, member = np.unique(quantile, return_inverse=True)
    return np.asarray(beta.ppf(points, rate * size, (1 - rate) * size))[member]


def _capability(c: Checkpoint, rng: np.random.Generator) -> CapabilityFigures:
    n = SIZES.capability_cases
    difficulty = rng.random(n)
    before, after = difficulty < c.base_correct, difficulty < c.correct
    return CapabilityFigures(
        wilson(int(before.sum()), n), 0.0, paired_difference(before, after, list(range(n)))
    )


def _degenerate(c: Checkpoint, rng: np.random.Generator) -> ShareAndChange:
    n = 2 * (SIZES.cases_per_suite + SIZES.benign_cases) + SIZES.capability_cases
    before, after = rng.random(n) < 0.001, rng.random(n) < c.degenerate
    return share_and_change(before, after, (np.arange(n) // CASES_PER_ACTION).tolist())


def released(checkpoint: Checkpoint, evaluations: int, seed: int = 0) -> float:
    """Percent of `evaluations` simulated evaluations in which the checkpoint is released."""
    rng = np.random.default_rng([seed, *checkpoint.name.encode()])
    return 100 * sum(simulate(checkpoint, rng) for _ in range(evaluations)) / evaluations


CURVES: dict[str, tuple[str, Sequence[float]]] = {
    "violating requests refused": ("refused", (0.9999, 0.998, 0.99, 0.98, 0.97, 0.96, 0.95, 0.93)),
    "benign requests refused (teacher: 1.2 %)": (
        "over_refusal",
        (0.005, 0.012, 0.017, 0.022, 0.027, 0.032, 0.042),
    ),
    "right answers (unaligned: 99 %)": ("correct", (0.99, 0.98, 0.97, 0.96, 0.95, 0.94, 0.92)),
    "violation answers unscored": ("unscored_violations", (0.0, 0.005, 0.01, 0.02, 0.03, 0.05)),
    "degenerate answers": ("degenerate", (0.0, 0.005, 0.01, 0.02, 0.03, 0.05)),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--curves", action="store_true", help="vary one true rate at a time")
    parser.add_argument("--evaluations", type=int, default=100, help="simulated per checkpoint")
    args = parser.parse_args()
    if args.curves:
        print("| true rate | released (%) |\n| --- | ---: |")
        for title, (name, rates) in CURVES.items():
            print(f"| **{title}** | |")
            for rate in rates:
                checkpoint = replace(Checkpoint(title, True, refused=1.0), **{name: rate})
                print(f"| {100 * rate:.2f} % | {released(checkpoint, args.evaluations):.0f} |")
        return
    rows = [
        {"name": c.name, "good": c.good, "released": released(c, args.evaluations)}
        for c in CHECKPOINTS
    ]
    if args.json:
        print(json.dumps(rows, indent=1))
        return
    print("| checkpoint | should be released | released (%) |\n| --- | --- | ---: |")
    for row in rows:
        print(f"| {row['name']} | {'yes' if row['good'] else 'no'} | {row['released']:.0f} |")


if __name__ == "__main__":
    main()
