"""The study's page, from result files of real runs: what it says first, and what it never hides.

The files in real_results/ are those of `policyalign study` with the sweep that lies beside them.
"""

from dataclasses import replace
from pathlib import Path

import pytest

from policyalign_assets.study.page import Missing, page_of
from policyalign_assets.study.plot import study_plot
from policyalign_assets.study.results import Latency, SuiteOutcome, TrialResult, read_result
from policyalign_assets.study.run import State, write_page
from policyalign_assets.study.sweep import read_sweep

FILES = Path(__file__).parent / "real_results"
SWEEP = read_sweep(FILES / "sweep.yaml")
RESULTS = [read_result(file) for file in sorted(FILES.glob("*.json"))]
NOT_RUN = [Missing("no_filter", "medical|two-rules", seed, "not run") for seed in (13, 14)]


def page(results=RESULTS, missing=()) -> str:
    return page_of(SWEEP, results, missing)[0]


def first_paragraph(text: str) -> str:
    (found,) = [b for b in text.split("\n\n") if b.startswith("**Where `ours` does not win**")]
    return found


def with_outcomes(result: TrialResult, suite: str, share: float) -> TrialResult:
    cases = [f"case-{n}" for n in range(200)]
    outcomes: list[int | None] = [int(n < share * 200) for n in range(200)]
    return replace(result, suites=result.suites | {suite: SuiteOutcome(cases, cases, outcomes)})


def test_the_same_results_give_the_same_page_and_plots_in_any_order(tmp_path):
    texts = []
    for name, results in (("a", RESULTS), ("b", RESULTS[::-1])):
        write_page(SWEEP, State(results, NOT_RUN), tmp_path / name / "study.md")
        texts.append((tmp_path / name / "study.md").read_text())
    assert texts[0] == texts[1] and texts[0].startswith("# The study")
    plots = [(tmp_path / n / "images/study-medical-two-rules.png").read_bytes() for n in "ab"]
    assert plots[0] == plots[1] and len(plots[0]) > 10_000


def test_the_command_stands_above_all_figures():
    text = page()
    assert text.index("`policyalign study --work") < text.index("**Where `ours`") < 500


def test_an_arm_that_is_better_stands_in_the_first_paragraph():
    assert "In violations refused, clearly better: none." in first_paragraph(page())
    changed = []
    for result in RESULTS:
        share = {"ours": 0.5, "sft": 0.9}.get(result.arm, 0.5)
        for suite in ("violations", "violations_wrapped"):
            result = with_outcomes(result, suite, share)
        changed.append(result)
    # two seeds that agree on 400 cases each; a third makes the t interval narrow enough
    changed += [replace(r, seed=15) for r in changed if r.seed == 13]
    said = first_paragraph(page(changed))
    assert "In violations refused, clearly better: `sft`." in said
    worse = [
        with_outcomes(with_outcomes(r, "violations", 0.2), "violations_wrapped", 0.2)
        if r.arm == "sft"
        else r
        for r in changed
    ]
    text = page(worse)
    assert "In violations refused, clearly better: none." in first_paragraph(text)
    assert "In violations refused, clearly better than: `sft`." in text


def test_what_is_higher_without_being_shown_is_said_too():
    said = first_paragraph(page())
    assert "which is not shown: `prompted`" in said
    assert "These need no training, and `ours` does: `base`, `prompted`." in said


def test_what_is_missing_failed_or_not_judged_is_said():
    lost = replace(RESULTS[-1], suites={}, training=None, latency=None, failed="not finite <b>")
    text = page([*RESULTS[:-1], lost], NOT_RUN)
    assert "not run: no\\_filter, medical\\|two-rules, seed 13 and 14" in text
    assert "training failed. not finite &lt;b&gt;" in text
    assert "× the response repeats itself" in text
    assert "Nothing: every trial" in page() and "every trial" not in text


def test_without_a_result_the_page_says_so_and_has_no_figure():
    text, plots = page_of(SWEEP, [], NOT_RUN)
    assert "**Nothing was run yet.**" in text and "%)" not in text and plots == {}
    assert study_plot([])[:4] == b"\x89PNG"


@pytest.mark.parametrize(("load", "busy"), [(5.0, True), (0.1, False)])
def test_times_of_a_busy_machine_are_labelled(load, busy):
    quiet = [
        replace(
            r,
            latency=Latency(10, 9, 11, 1.0, 4, load, 2),
            training=replace(r.training, load=load) if r.training else None,
        )
        for r in RESULTS
    ]
    assert ("The cores were busy" in page(quiet)) == busy


def test_the_filter_is_judged_by_its_own_arms_alone():
    assert "Not measured: no arm that selects instructions otherwise was run." in page()
    other = [replace(r, arm="no_filter") for r in RESULTS if r.arm == "sft"]
    text = page([*RESULTS, *other])
    assert "- `no_filter` minus `ours`, violations refused:" in text
    assert "none of these differences is shown" in text and "So the default stays." in text
    better = []
    for result in (r for r in RESULTS if r.seed == 13):
        for suite in ("violations", "violations_wrapped"):
            share = {"ours": 0.5, "sft": 0.9}.get(result.arm, 0.5)
            result = with_outcomes(result, suite, share)
        better += [replace(result, seed=seed) for seed in range(13, 18)]
    better += [replace(r, arm="no_filter") for r in better if r.arm == "sft"]
    text = page(better)
    assert "Shown, against the default: `no_filter` is better than `ours`." in text


def test_over_several_policies_what_holds_for_all_together_stands_first():
    other = "legal|two-rules"
    both = SWEEP.model_copy(update={"partitions": (*SWEEP.partitions, other)})
    text, plots = page_of(both, [*RESULTS, *(replace(r, partition=other) for r in RESULTS)], [])
    said = [b for b in text.split("\n\n") if b.startswith("**Where `ours` does not win**")]
    assert [b.split(").")[0].split(" (")[1] for b in said] == [
        "all policies together", "`medical|two-rules`", "`legal|two-rules`"
    ]  # fmt: skip
    assert "## All policies together" in text
    assert len(plots) == 2 and "All policies together" not in page()
