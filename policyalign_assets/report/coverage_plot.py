"""The plot of coverage as PNG bytes: instructions per rule, and where their scores lie."""

from __future__ import annotations

from matplotlib.figure import Figure

from policyalign_assets.report.plots import _DPI, _GREY, _STYLE, png, tidy
from policyalign_assets.synthesis.coverage import Coverage

_MADE, _SELECTED = "#b3cde0", _STYLE["aligned"]["color"]


def coverage_plot(coverage: Coverage, score: str) -> bytes:
    """Instructions made and selected per rule as bars, and a histogram of their scores.

    A starved rule is marked. The histogram also shows each rule's median.
    """
    figure = Figure(figsize=(7.5, 6.0), dpi=_DPI, layout="constrained")
    bars, histogram = figure.subplots(2, 1)
    names = [f"{r.rule_id}*" if r.starved else r.rule_id for r in coverage.rules]
    bars.bar(names, [r.made for r in coverage.rules], color=_MADE, label="made")
    if any(r.selected is not None for r in coverage.rules):
        bars.bar(
            names,
            [r.selected or 0 for r in coverage.rules],
            color=_SELECTED,
            width=0.5,
            label="selected",
        )
    bars.set_title(
        "Instructions per rule" + (" (* starved)" if coverage.starved else ""),
        loc="left",
        fontsize=11,
    )
    bars.legend(frameon=False, fontsize=9, loc="lower right")
    scores = {rule: sorted(values) for rule, values in coverage.scores.items() if values}
    if scores:
        histogram.hist([v for values in scores.values() for v in values], bins=30, color=_SELECTED)
        for values in scores.values():
            histogram.axvline(values[len(values) // 2], color=_GREY, linewidth=0.8, linestyle=":")
    else:
        histogram.text(0.5, 0.5, "not measured", transform=histogram.transAxes, ha="center")
    histogram.set_title(f"Score ({score}); dotted: each rule's median", loc="left", fontsize=11)
    for axes in (bars, histogram):
        tidy(axes)
    return png(figure)
