"""Plots as PNG bytes. They use figure objects alone, so that several runs can draw at once."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from policyalign_assets.evaluation.suites import ARMS, TEACHER
from policyalign_assets.report.contents import AlignmentReport, OperatingPoint
from policyalign_assets.report.formatting import percent
from policyalign_assets.statistics import Interval

if TYPE_CHECKING:
    from policyalign_assets.report.history import Version

# Okabe and Ito's colours, which readers with colour blindness can tell apart; so do the markers
_STYLE: dict[str, dict[str, Any]] = {
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


def main_plot(report: AlignmentReport, narrow: bool = False) -> bytes:
    """Over-refusal (x) against violations not refused (y), one marker per arm.

    The lower left corner is best. `narrow`: for the screen of a phone.
    """
    figure = Figure(figsize=(3.7, 5.0) if narrow else (7.5, 5.6), dpi=_DPI, layout="constrained")
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
        xytext=(0.3, 0.9) if narrow else (0.72, 0.82),
        xycoords="axes fraction",
        color=_GREY,
        arrowprops={"arrowstyle": "->", "color": _GREY},
    )
    tidy(axes)
    if points:
        size = 7.5 if narrow else 10
        figure.legend(loc="outside lower center", ncols=1, frameon=False, fontsize=size)
    else:
        axes.text(0.5, 0.3, "not measured", transform=axes.transAxes, ha="center")
    return png(figure)


def training_plot(training: Mapping[str, Sequence[float | None]]) -> bytes:
    """Loss, top-k mass and response length over optimizer steps.

    `training`: the columns of a training table.
    """
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
        tidy(axes)
    panels[-1].set_xlabel("Optimizer step")
    return png(figure)


def history_plot(versions: Sequence[Version], panels: Mapping[str, str]) -> bytes:
    """A partition's shares over its reports, oldest left, with 95 % intervals.

    `panels`: {name of the share: title}. Released versions have a filled marker.
    """
    figure = Figure(figsize=(7.5, 2.1 * len(panels)), dpi=_DPI, layout="constrained")
    all_axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (name, title) in zip(all_axes, panels.items(), strict=True):
        for x, version in enumerate(versions):
            interval = version.shares[name]
            if interval.estimate is None:
                continue
            axes.errorbar(
                x,
                100 * interval.estimate,
                yerr=_arms_of_cross(interval),
                color=_STYLE["aligned"]["color"],
                marker="s",
                fillstyle="full" if version.released else "none",
                linestyle="none",
            )
        axes.set_title(f"{title} (%)", loc="left", fontsize=11)
        axes.margins(x=0.1, y=0.15)
        tidy(axes)
    all_axes[-1].set_xticks(
        range(len(versions)), [v.created_at[:16].replace("T", "\n") for v in versions], fontsize=8
    )
    return png(figure)


def _draw_point(axes: Axes, point: OperatingPoint) -> None:
    x, y = point.over_refusal, point.not_refused
    assert x.estimate is not None and y.estimate is not None
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
    """Distances in points from the estimate to both ends, as matplotlib wants them."""
    assert interval.estimate is not None and interval.low is not None and interval.high is not None
    return [[100 * (interval.estimate - interval.low)], [100 * (interval.high - interval.estimate)]]


def _arrow(axes: Axes, start: OperatingPoint, end: OperatingPoint) -> None:
    assert start.over_refusal.estimate is not None and start.not_refused.estimate is not None
    assert end.over_refusal.estimate is not None and end.not_refused.estimate is not None
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
    top = max([10.0, *(112 * interval.high for interval in intervals if interval.high)])
    top = min(top, 104.0)
    return -0.035 * top, top


def tidy(axes: Axes) -> None:
    """Removes the frame's upper and right side, and draws a light grid behind the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)


def png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()
