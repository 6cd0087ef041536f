"""The report's two plots as PNG bytes. Figure objects only: no global state, so that several runs can draw at once."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from policyalign_assets.evaluation.suites import ARMS, TEACHER
from policyalign_assets.report.formatting import percent
from policyalign_assets.report.model import OperatingPoint, Report
from policyalign_assets.statistics import Interval

# Okabe and Ito's colours: told apart with every common kind of colour blindness; marker shapes say the same again
_STYLE = {
    "base": {"color": "#D55E00", "marker": "o", "markersize": 10},
    TEACHER: {"color": "#000000", "marker": "*", "markersize": 17},
    "aligned": {"color": "#0072B2", "marker": "s", "markersize": 10},
    "aligned_policy": {"color": "#CC79A7", "marker": "D", "markersize": 8},
}
_CURVES = {
    "loss": "Loss per token (nats)",
    "top_k_mass": "Student's mass on its top k tokens",
    "mean_length": "Mean response length (tokens)",
}
_GREY = "#595959"
_DPI = 160  # sharp on a phone or in print


def main_plot(report: Report) -> bytes:
    """Over-refusal (x) against violations not refused (y), one marker per arm; the lower left corner is best."""
    figure = Figure(figsize=(7.5, 5.6), dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    points = {p.arm: p for p in report.operating_points if p.over_refusal.n and p.not_refused.n}
    for arm in [arm for arm in ARMS if arm in points]:
        _draw_point(axes, points[arm])
    if {"base", "aligned"} <= points.keys():
        _arrow(axes, points["base"], points["aligned"])

    axes.set_xlabel("Benign requests refused (%)")
    axes.set_ylabel("Violating requests not refused (%)")
    axes.set_xlim(*_range(p.over_refusal for p in points.values()))
    axes.set_ylim(*_range(p.not_refused for p in points.values()))
    axes.annotate(
        "lower left is better",
        xy=(0.66, 0.68),
        xytext=(0.72, 0.82),
        xycoords="axes fraction",
        color=_GREY,
        arrowprops={"arrowstyle": "->", "color": _GREY},
    )
    _tidy(axes)
    if points:
        figure.legend(loc="outside lower center", ncols=1, frameon=False, fontsize=10)
    else:
        axes.text(0.5, 0.3, "not measured", transform=axes.transAxes, ha="center")
    return _png(figure)


def training_plot(training: Mapping[str, Sequence[float | None]]) -> bytes:
    """Loss, top-k mass and response length over optimizer steps, from the columns of a training table."""
    figure = Figure(figsize=(7.5, 6.6), dpi=_DPI, layout="constrained")
    panels = figure.subplots(len(_CURVES), 1, sharex=True)
    for axes, (column, title) in zip(panels, _CURVES.items(), strict=True):
        values = [math.nan if value is None else value for value in training[column]]
        few = len(values) < 40
        axes.plot(
            training["step"],
            values,
            color=_STYLE["aligned"]["color"],
            linewidth=1.8,
            marker="." if few else None,
        )
        axes.set_title(title, loc="left", fontsize=11)
        _tidy(axes)
    panels[-1].set_xlabel("Optimizer step")
    return _png(figure)


def _draw_point(axes: Axes, point: OperatingPoint) -> None:
    x, y = point.over_refusal, point.not_refused
    axes.errorbar(
        100 * x.estimate,
        100 * y.estimate,
        xerr=_arms_of_cross(x),
        yerr=_arms_of_cross(y),
        linestyle="none",
        elinewidth=1.4,
        markeredgecolor="white",
        markeredgewidth=0.8,
        **_STYLE[point.arm],
        label=f"{ARMS[point.arm]}: {percent(x.estimate)} / {percent(y.estimate)}",
    )


def _arms_of_cross(interval: Interval) -> list[list[float]]:
    return [[100 * (interval.estimate - interval.low)], [100 * (interval.high - interval.estimate)]]


def _arrow(axes: Axes, start: OperatingPoint, end: OperatingPoint) -> None:
    axes.annotate(
        "",
        xy=(100 * end.over_refusal.estimate, 100 * end.not_refused.estimate),
        xytext=(100 * start.over_refusal.estimate, 100 * start.not_refused.estimate),
        arrowprops={
            "arrowstyle": "-|>",
            "color": _GREY,
            "linewidth": 1.4,
            "shrinkA": 9,
            "shrinkB": 9,
            "mutation_scale": 16,
        },
    )


def _range(intervals: Iterable[Interval]) -> tuple[float, float]:
    """From just below 0, so that a marker on the axis is whole, to beyond the highest cross."""
    top = max([10.0, *(100 * interval.high * 1.12 for interval in intervals)])
    top = min(top, 104.0)
    return -0.035 * top, top


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()
