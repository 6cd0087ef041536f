"""docs/study.md, made from the results alone: the same results give the same page to the byte.

What the reader should see first is computed, not written: where the reference arm does not win.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from policyalign_assets.evaluation.suites import SUITES
from policyalign_assets.report.formatting import markdown_cell
from policyalign_assets.settings.base import BUNDLED, ENGLISH
from policyalign_assets.study.analysis import (
    FIGURES,
    ArmFigures,
    Difference,
    Share,
    compared,
    compared_together,
)
from policyalign_assets.study.measuring import LEFT_OUT
from policyalign_assets.study.results import TrialResult
from policyalign_assets.study.sweep import Sweep

# What a reader must know of the model whose figures these are.
ABOUT = {
    BUNDLED: "The bundled model lives in a closed world of its own, so every figure is of that "
    "world ([bundled-model.md](bundled-model.md)). The English model has a study of its own "
    "([study-english.md](study-english.md)).",
    ENGLISH: "How well this model follows a policy at all, and on which benchmarks, stands in "
    "[english-model.md](english-model.md). The bundled model has a study of its own "
    "([study.md](study.md)).",
}
PAIRS = "pairs of policy and seed"


@dataclass(frozen=True)
class Missing:
    """A trial without a result that is up to date, and why."""

    arm: str
    partition: str
    seed: int
    why: str


def page_of(
    sweep: Sweep,
    results: Sequence[TrialResult],
    missing: Sequence[Missing],
    earlier: int = 0,
) -> tuple[str, dict[str, list[ArmFigures]]]:
    """The page as Markdown, and its plots: {file name: arms to draw}.

    earlier: how many of the results an earlier version of the code made.
    """
    by_partition = {p: compared(sweep, results, p) for p in sweep.partitions}
    by_partition = {p: arms for p, arms in by_partition.items() if arms}
    plots = {f"study-{p.replace('|', '-')}.png": arms for p, arms in by_partition.items()}
    blocks = [
        "# The study: what each part earns",
        f"Made by `{sweep.made_by}`, which runs what is missing and writes this page anew. "
        "Do not edit it.",
    ]
    together = compared_together(sweep, results) if len(by_partition) > 1 else []
    summed_up = {"all policies together": together} if together else {}
    by_name = {f"`{partition}`": arms for partition, arms in by_partition.items()}
    for name, arms in (summed_up | by_name).items():
        blocks.append(_where_ours_does_not_win(sweep, name, arms))
        if any(arm.differences for arm in arms):
            blocks.append(_where_ours_wins(sweep, arms))
    if not by_partition:
        blocks.append("**Nothing was run yet.**")
    blocks += [_design(sweep, results, earlier), "## The arms", _arms(sweep)]
    if together:
        blocks += [
            "## All policies together",
            *_differences(together, PAIRS),
            *_filtering(sweep, together, PAIRS),
        ]
    for (partition, arms), plot in zip(by_partition.items(), plots, strict=True):
        blocks += _partition(sweep, partition, arms, plot)
    blocks += ["## What is missing", *_missing(missing, results), "## How to read it", *_NOTES]
    return "\n\n".join(blocks) + "\n", plots


def _where_ours_does_not_win(sweep: Sweep, where: str, arms: Sequence[ArmFigures]) -> str:
    """The first paragraph: for each figure, which arms are better, shown or on average alone."""
    ours = f"`{sweep.reference}`"
    said = [f"**Where {ours} does not win** ({where})."]
    rivals = [a for a in arms if a.against == sweep.reference]
    if not any(arm.differences for arm in rivals):
        return f"{said[0]} Nothing is compared yet: {ours} or all other arms have no result."
    for name, figure in FIGURES.items():
        found = {f"`{a.arm}`": a.differences[name] for a in rivals if name in a.differences}
        better = [arm for arm, d in found.items() if d.verdict == "better"]
        higher = [a for a, d in found.items() if d.verdict == "unclear" and d.estimate > 0]
        if found:
            said.append(f"In {figure.label}, clearly better: {_names(better)}.")
        if higher:
            said.append(f"Higher on average, which is not shown: {_names(higher)}.")
    untrained = [
        f"`{a.arm}`" for a in rivals if a.results and all(r.training is None for r in a.results)
    ]
    if untrained:
        said.append(f"These need no training, and {ours} does: {_names(untrained)}.")
    return " ".join(said)


def _where_ours_wins(sweep: Sweep, arms: Sequence[ArmFigures]) -> str:
    ours = f"`{sweep.reference}`"
    said = [f"**Where {ours} wins.**"]
    for name, figure in FIGURES.items():
        rivals = [a for a in arms if a.against == sweep.reference and name in a.differences]
        worse = [f"`{a.arm}`" for a in rivals if a.differences[name].verdict == "worse"]
        if rivals:
            said.append(f"In {figure.label}, clearly better than: {_names(worse)}.")
    return " ".join(said)


def _names(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "none"


def _design(sweep: Sweep, results: Sequence[TrialResult], earlier: int) -> str:
    model = _model(sweep)
    return (
        f"Model `{model}`, seeds {', '.join(map(str, sweep.seeds))}, {sweep.share:.0%} of the "
        f"default rows and held-out cases, {sweep.steps} training steps; {len(results)} results. "
        + (f"**An earlier version of the code made {earlier} of them.** " if earlier else "")
        + "A seed draws the instructions, the scores and the training anew. All arms of a seed "
        "have the same tables and the same number of updates, where their line does not say "
        "otherwise. " + ABOUT.get(model, "")
    )


def _model(sweep: Sweep) -> str:
    return str(sweep.settings.get("model", {}).get("id", BUNDLED))


def _arms(sweep: Sweep) -> str:
    return _table(
        ("arm", "what it is", "compared with"),
        [
            (
                f"`{name}`",
                markdown_cell(arm.about),
                f"`{arm.against or sweep.reference}`"
                if arm.against or name != sweep.reference
                else "",
            )
            for name, arm in sweep.arms.items()
        ],
    )


def _partition(sweep: Sweep, partition: str, arms: Sequence[ArmFigures], plot: str) -> list[str]:
    blocks = [
        f"## `{partition}`",
        "Percent, with 95 % intervals over seeds and cases. A miss is a wrong answer, or one that "
        "could not be judged.",
        _table(
            ("arm", *(f.label for f in FIGURES.values()), "seeds"),
            [
                (
                    _name(sweep, a.arm),
                    *(_share(a.shares.get(f)) for f in FIGURES),
                    str(len(a.results)),
                )
                for a in arms
            ],
        ),
        f"![Violations not refused against benign requests not answered, a point for each arm and "
        f"seed](images/{plot})",
        "### Differences",
        *_differences(arms),
        "### Does filtering pay?",
        *_filtering(sweep, arms),
        "### What it costs",
        *_costs(arms),
        "### Suite by suite",
        "Mean over seeds, in percent.",
        _suites(arms),
        "### Answers that were not judged, or not finished",
        _excluded(arms),
    ]
    return blocks


def _differences(arms: Sequence[ArmFigures], unit: str = "seeds") -> Iterable[str]:
    return [
        f"The arm minus the one that it is compared with, in points, with {unit} as the unit "
        "(Student's t). **Bold**: p below 0.05 after Holm's adjustment over all arms.",
        _table(
            ("arm", "minus", *(f.label for f in FIGURES.values())),
            [
                (
                    f"`{a.arm}`",
                    f"`{a.against}`",
                    *(_difference(a.differences.get(f)) for f in FIGURES),
                )
                for a in arms
                if a.against
            ],
        ),
    ]


def _name(sweep: Sweep, arm: str) -> str:
    return f"**`{arm}`**" if arm == sweep.reference else f"`{arm}`"


def _share(share: Share | None) -> str:
    if share is None:
        return "not measured"
    return f"{100 * share.estimate:.1f} ({100 * share.low:.0f} to {100 * share.high:.0f})"


def _difference(found: Difference | None) -> str:
    if found is None:
        return "not measured"
    if found.low is None or found.high is None:
        return f"{_points(found.estimate)} (one seed)"
    text = f"{_points(found.estimate)} ({_points(found.low)} to {_points(found.high)})"
    return text if found.verdict == "unclear" else f"**{text}**"


def _points(value: float) -> str:
    rounded = round(100 * value, 1)
    return f"{rounded:+.1f}" if rounded else "0.0"


def _filtering(sweep: Sweep, arms: Sequence[ArmFigures], unit: str = "seeds") -> Iterable[str]:
    """A sentence for each arm that selects instructions otherwise, and what follows from them.

    The default is in question in the arms that are compared with the reference; the other ones ask
    about smaller shares and fewer steps.
    """
    lines: list[str] = []
    of_default: list[str] = []  # differences that are shown
    of_others: list[str] = []
    for arm in arms:
        found = arm.differences.get("violations")
        if sweep.arms[arm.arm].instructions == "top" or found is None:
            continue
        lines.append(
            f"- `{arm.arm}` minus `{arm.against}`, violations refused: {_difference(found)} "
            f"points over {found.seeds} {unit}."
        )
        if found.verdict != "unclear":
            said = f"`{arm.arm}` is {found.verdict} than `{arm.against}`"
            (of_default if arm.against == sweep.reference else of_others).append(said)
    if not lines:
        return ["Not measured: no arm that selects instructions otherwise was run."]
    if of_default:
        said = f"Shown, against the default: {'; '.join(of_default)}."
    else:
        said = (
            "Against the default choice of violations, none of these differences is shown: the "
            "filter is neither shown to help nor to harm. So the default stays."
        )
    if of_others:
        said += f" Shown at fewer steps: {'; '.join(of_others)}."
    return ["\n".join(lines), said]


def _costs(arms: Sequence[ArmFigures]) -> Iterable[str]:
    rows, loads, cores = [], [], 1
    for arm in arms:
        latencies = [r.latency for r in arm.results if r.latency]
        trainings = [r.training for r in arm.results if r.training]
        processor = [x.cpu_seconds for x in trainings if x.cpu_seconds is not None]
        tokens = [r.added_prompt_tokens for r in arm.results if r.added_prompt_tokens is not None]
        loads += [x.load for x in latencies if x.load is not None]
        loads += [x.load for x in trainings if x.load is not None]
        cores = max([cores, *(x.cores for x in latencies)])
        rows.append(
            (
                f"`{arm.arm}`",
                f"{_mean(tokens):.0f}" if tokens else "not measured",
                " / ".join(f"{x.median:.0f}" for x in latencies) or "not measured",
                f"{_mean([x.ratio for x in latencies]):.2f}" if latencies else "not measured",
                f"{_mean([x.seconds for x in trainings]):.0f}" if trainings else "none",
                (f"{_mean(processor):.0f}" if processor else "not measured")
                if trainings
                else "none",
                f"{_mean([x.tokens for x in trainings]):,.0f}" if trainings else "none",
                f"{_mean([x.updates for x in trainings]):.0f}" if trainings else "none",
            )
        )
    busy = bool(loads) and max(loads) > 0.5 * cores
    said = (
        "Prompt tokens are those of all calls for one request, beyond the request itself: below 0 "
        "where a guard declines requests, which then reach no model. Latency is the median over "
        "single requests, in milliseconds, seed by seed, on our own engine, which computes the "
        "policy anew for each request. Half of the requests break a rule. The ratio is to the same "
        "model with nothing around it, asked at the same moment: a mean over seeds of medians over "
        "requests. Training seconds are wall time with sampling, with processor time beside them. "
        "Response tokens are those in all updates."
    )
    if busy:
        said += (
            f" **The cores were busy**: the load was {min(loads):.1f} to {max(loads):.1f} on "
            f"{cores} cores, and processes may have waited for long. So latencies and wall times "
            "compare arms only roughly, and the ratios and processor times better."
        )
    if not loads:
        said += " The load of the machine is not known."
    header = (
        "arm", "added prompt tokens", "latency (ms)", "latency, ratio", "training (s)",
        "training (CPU s)", "response tokens", "updates",
    )  # fmt: skip
    return [said, _table(header, rows), _WITH_VLLM]


_WITH_VLLM = (
    "vLLM keeps the policy's prefix in its cache, so there a policy in the prompt costs less time. "
    "`benchmarks/server_latency.py` measures it; docs/performance.md has the figures."
)


def _suites(arms: Sequence[ArmFigures]) -> str:
    names = [s for s in SUITES if any(s in r.suites for a in arms for r in a.results)]
    rows = []
    for name in names:
        cells = []
        for arm in arms:
            found = [r.suites[name].outcomes for r in arm.results if name in r.suites]
            shares = [sum(o or 0 for o in seed) / len(seed) for seed in found if seed]
            cells.append(f"{100 * _mean(shares):.0f}" if shares else "")
        suite = SUITES[name]
        rows.append((f"`{name}` ({suite.metric})", *cells))
    return _table(("suite", *(f"`{a.arm}`" for a in arms)), rows)


def _excluded(arms: Sequence[ArmFigures]) -> str:
    """Nothing is left out of the shares, so this is the whole of what could be questioned."""
    rows = []
    for arm in arms:
        suites = [suite for r in arm.results for suite in r.suites.values()]
        answers = sum(len(s.outcomes) for s in suites)
        reasons: dict[str, int] = {}
        for suite in suites:
            for reason, count in suite.reasons.items():
                reasons[reason] = reasons.get(reason, 0) + count
        rows.append(
            (
                f"`{arm.arm}`",
                f"{answers:,}",
                str(sum(s.outcomes.count(None) for s in suites)),
                str(sum(s.unfinished for s in suites)),
                "; ".join(f"{n} × {markdown_cell(why)}" for why, n in sorted(reasons.items())),
            )
        )
    return _table(("arm", "answers", "not judged", "cut off", "why not judged"), rows)


def missing_lines(missing: Sequence[Missing]) -> list[str]:
    """A line for each arm under each policy and each reason, with its seeds."""
    seeds: dict[tuple[str, str, str], list[str]] = {}
    for trial in missing:
        seeds.setdefault((trial.why, trial.arm, trial.partition), []).append(str(trial.seed))
    return [
        f"{why}: {arm}, {partition}, seed {' and '.join(numbers)}"
        for (why, arm, partition), numbers in seeds.items()
    ]


def _missing(missing: Sequence[Missing], results: Sequence[TrialResult]) -> Iterable[str]:
    failed = [
        f"- `{r.arm}`, `{r.partition}`, seed {r.seed}: training failed. {markdown_cell(r.failed)}"
        for r in results
        if r.failed
    ]
    lines = [f"- {markdown_cell(line)}" for line in missing_lines(missing)]
    if not lines and not failed:
        return ["Nothing: every trial of the sweep has a result."]
    why = "Not run, for want of time; or the result answers an earlier sweep file or policy:"
    return [*(["\n".join(failed)] if failed else []), *([why, "\n".join(lines)] if lines else [])]


_NOTES = (
    "- **Exclusion rules.** No answer is left out. One that the judge could not read is a miss, "
    "whatever the suite asks for. One that was cut off is judged as it stands. Both are counted "
    "above.\n"
    f"- **Not asked**: the suites {', '.join(f'`{s}`' for s in LEFT_OUT)}. An opening cannot be "
    "set where a guard answers. The policy as system message is the arm `prompted`. A conversation "
    "under pressure takes several calls.\n"
    "- **Guards.** `words` reads the request, and declines it if it holds a rule's action word for "
    "word. `model` asks the untrained model with the policy first, and the phrase judge reads its "
    "reply. In the bundled model's world, requests use the rules' own words. That favours a list "
    "of words.\n"
    "- **The phrase judge as a guard of answers** is not an arm. It reads whether an answer "
    "declines, and not whether it does harm, so it would let every answer through.\n"
    "- **No arm was tuned** on these cases. A baseline may do better at another learning rate. "
    "That is what the arms `sft_slow` and `dpo_fast` ask. In DPO, both answers to a benign request "
    "mostly help, so such pairs can teach little.\n"
    "- **Differences** take seeds as the unit. The variance between seeds is never taken to be "
    "less than what the cases of one seed allow.\n"
    "- **Public benchmarks** are not part of a study: the bundled model does not read their "
    "language, and those of the English model are in [english-model.md](english-model.md).",
)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table. Cells are Markdown already."""
    return "\n".join([_row(header), "|" + " --- |" * len(header), *(_row(row) for row in rows)])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
