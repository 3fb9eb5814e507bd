"""Quality against cost, a point a model: which of them nothing beats in both."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from gencli.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito
_MARKS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")  # so that a point is known without its colour
_LINES = ("--", ":", "-.")


@dataclass(frozen=True)
class Point:
    """One model.

    Args:
        name: beside the point.
        quality: up the page.
        interval: of the quality; None where it is not known.
        costs: one a panel, by its name; a model without one is not in that panel.
    """

    name: str
    quality: float
    interval: tuple[float, float] | None = None
    costs: Mapping[str, float] = field(default_factory=dict)


def front(points: Sequence[Point], cost: str, lower: bool = True) -> list[Point]:
    """The points with that cost which no other beats: cheaper and at least as good, or better and no dearer; cheapest first."""
    made: list[Point] = []
    for point in sorted(
        (p for p in points if cost in p.costs), key=lambda p: (p.costs[cost], _sign(lower) * p.quality)
    ):
        if not made or _sign(lower) * point.quality < _sign(lower) * made[-1].quality:
            made.append(point)
    return made


def _sign(lower: bool) -> int:
    return 1 if lower else -1


def save_pareto(
    path: str | Path,
    points: Sequence[Point],
    costs: Sequence[str],
    quality: str,
    levels: Mapping[str, float] | None = None,
    lower: bool = True,
    title: str = "",
) -> Path:
    """Write a PNG with a panel a cost: points with their intervals, and the line of those that nothing beats.

    Args:
        path: a `.png`.
        points: the models.
        costs: names of panels, in words: `seconds a sample`.
        quality: what stands up the page.
        levels: qualities without a cost (a floor, controls), as level lines.
        lower: whether less is better.
        title: above the picture.
    """
    return atomic_write(path, pareto(points, costs, quality, levels or {}, lower, title))


def pareto(
    points: Sequence[Point], costs: Sequence[str], quality: str, levels: Mapping[str, float], lower: bool, title: str
) -> bytes:
    """The PNG of `save_pareto`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6 * len(costs), 4.6), dpi=100, facecolor="white", layout="constrained")
    panels = figure.subplots(1, len(costs), sharey=True, squeeze=False)[0]
    heights = [*(point.quality for point in points), *levels.values()]
    for axes, cost in zip(panels, costs, strict=True):
        _panel(axes, points, cost, lower)
        for number, (name, level) in enumerate(levels.items()):
            axes.axhline(level, color="0.4", lw=1, ls=_LINES[number % len(_LINES)])
            axes.annotate(name, (0.995, level), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8)
        if heights and min(heights) > 0 and max(heights) > 10 * min(heights):
            axes.set_yscale("log")
        axes.set_xlabel(cost)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel(f"{quality} ({'lower' if lower else 'higher'} is better)")
    figure.suptitle(title)
    out = io.BytesIO()
    FigureCanvasAgg(figure).print_png(out)
    return out.getvalue()


def _panel(axes: Axes, points: Sequence[Point], cost: str, lower: bool) -> None:
    known = [point for point in points if cost in point.costs]
    if not known:
        axes.text(0.5, 0.5, "not known", ha="center", va="center", transform=axes.transAxes)
        return
    best = front(known, cost, lower)
    spans = [point.costs[cost] for point in known]
    wide = min(spans) > 0 and max(spans) > 3 * min(spans)
    middle = (min(spans) * max(spans)) ** 0.5 if wide else (min(spans) + max(spans)) / 2
    if wide:
        axes.set_xscale("log")
    axes.margins(x=0.15 if len(known) > 1 else 0.5)
    axes.plot([p.costs[cost] for p in best], [p.quality for p in best], color="0.6", lw=1, drawstyle="steps-post")
    for number, point in enumerate(points):
        if cost not in point.costs:
            continue
        low, high = point.interval or (point.quality, point.quality)
        spread = [[max(0.0, point.quality - low)], [max(0.0, high - point.quality)]]
        colour, mark = _COLOURS[number % len(_COLOURS)], _MARKS[number % len(_MARKS)]
        where = ([point.costs[cost]], [point.quality])
        axes.errorbar(*where, yerr=spread, color=colour, marker=mark, ms=7, capsize=3, ls="", label=point.name)
        words = f"{point.name} ✓" if point in best else point.name
        right = point.costs[cost] > middle  # so that no name leaves the page
        at, side = (point.costs[cost], point.quality), -1 if right else 1
        axes.annotate(
            words,
            at,
            xytext=(7 * side, 6),
            textcoords="offset points",
            ha="right" if right else "left",
            fontsize=9,
        )
