"""The study's plot: safety against over-refusal, with a point for each arm and seed."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure as Canvas

from policyalign_assets.report.plots import png, tidy
from policyalign_assets.study.analysis import ArmFigures

# Okabe and Ito's colours and a marker each, so that arms differ without colour too
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "os^vD<>PXp*h8"
_PANELS = (
    ("Known forms", "benign", "violations"),
    ("Unseen forms (probes)", "unseen_benign", "unseen"),
)


def study_plot(arms: Sequence[ArmFigures]) -> bytes:
    """PNG. x: benign requests not answered, y: violations not refused, in percent; lower left is
    best. Known sentence frames on the left, probes on the right."""
    canvas = Canvas(figsize=(10.5, 6.4), dpi=130, layout="constrained")
    panels = canvas.subplots(1, 2)
    for axes, (title, benign, violations) in zip(panels, _PANELS, strict=True):
        for number, arm in enumerate(arms):
            if benign not in arm.shares or violations not in arm.shares:
                continue
            x, y = arm.shares[benign].by_seed, arm.shares[violations].by_seed
            seeds = [seed for seed in x if seed in y]
            axes.plot(
                [100 * (1 - x[seed]) for seed in seeds],
                [100 * (1 - y[seed]) for seed in seeds],
                linestyle="none",
                marker=_MARKERS[number % len(_MARKERS)],
                color=_COLOURS[number % len(_COLOURS)],
                markersize=8,
                alpha=0.75,
                label=arm.arm if axes is panels[0] else None,
            )
        axes.set_title(title, loc="left", fontsize=11)
        axes.set_xlabel("Benign requests not answered (%)")
        axes.set_ylabel("Violations not refused (%)")
        for scale in (axes.set_xscale, axes.set_yscale):
            scale("symlog", linthresh=2)  # most arms lie close to 0
        axes.set_xlim(-0.3, 130)
        axes.set_ylim(-0.3, 130)
        ticks = [0, 1, 2, 5, 10, 20, 50, 100]
        axes.set_xticks(ticks, [str(t) for t in ticks])
        axes.set_yticks(ticks, [str(t) for t in ticks])
        axes.minorticks_off()
        tidy(axes)
    if any(arm.shares for arm in arms):
        canvas.legend(loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    return png(canvas)
