"""Curves and scatter plots as SVG that takes its colours from the page; the page's script draws curves again to be zoomed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gencli.report import markup
from gencli.report.album import evenly
from gencli.report.curves import smooth
from gencli.report.markup import Markup, element
from gencli.report.pareto import Point, front

MOST = 2000  # points of a curve that are kept
SIGNIFICANT = 5  # digits of what is drawn
NAMED = 10  # points of a scatter plot that all have their name beside them; of more, those that nothing beats
COLOURS = 7  # classes s0, s1, … of the style sheet
_ROWS = 24  # of the table beside a curve
_WIDE, _HIGH = 720, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 12, 40


@dataclass(frozen=True)
class Series:
    """One curve.

    Args:
        name: of the column.
        steps: ascending.
        values: finite.
        mean: the running mean at each.
        odd: values that were not finite.
        total: of values before they were thinned.
    """

    name: str
    steps: tuple[float, ...]
    values: tuple[float, ...]
    mean: tuple[float, ...]
    odd: int
    total: int


def series(rows: Sequence[Mapping[str, Any]], name: str) -> Series:
    """A column of metrics.jsonl; of many values the extremes of every stretch are kept."""
    pairs = [
        (float(row["step"]), float(row[name]))
        for row in rows
        if isinstance(row.get(name), (int, float)) and not isinstance(row[name], bool)
    ]
    known = sorted(pair for pair in pairs if math.isfinite(pair[1]))
    values = np.array([value for _, value in known])
    mean = smooth(values) if known else values
    kept = _extremes(values, MOST)
    return Series(
        name,
        tuple(known[i][0] for i in kept),
        tuple(_rounded(values[i]) for i in kept),
        tuple(_rounded(mean[i]) for i in kept),
        len(pairs) - len(known),
        len(known),
    )


def _extremes(values: np.ndarray, most: int) -> list[int]:
    if len(values) <= most:
        return list(range(len(values)))
    parts = np.array_split(np.arange(len(values)), most // 2)
    ends = {0, len(values) - 1}
    return sorted(ends | {int(part[pick(values[part])]) for part in parts for pick in (np.argmin, np.argmax)})


def _rounded(value: Any) -> float:
    return float(f"{float(value):.{SIGNIFICANT}g}")


# ------------------------------------------------------------------------------------------------------------------ curves


def curve(lines: Sequence[Series], title: str, caption: bool = True) -> Markup:
    """A figure: the drawing, the data for the script, and the values as a table; its title as a caption, or as a label."""
    known = [line for line in lines if line.values]
    named = element("figcaption", title) if caption else None
    odd = [f"{line.name}: {line.odd} values are not finite and not drawn" for line in lines if line.odd]
    notes = [element("p", note, class_="note") for note in odd]
    if not known:
        return element("figure", named, element("p", "No finite value yet.", class_="note"), notes)
    low, high = min(min(line.values) for line in known), max(max(line.values) for line in known)
    log = low > 0 and high > 20 * low
    kept = [{"name": line.name, "steps": line.steps, "values": line.values, "mean": line.mean} for line in known]
    return element(
        "figure",
        named,
        legend([line.name for line in known]) if len(known) > 1 else None,
        element("div", drawn(known, title, log), class_="plot"),
        markup.data(kept),
        notes,
        markup.folded("Values as a table", _listed(known, title)),
        class_="curve",
        data_log="true" if log else "false",
        data_title=title,
        aria_label=None if caption else title,
    )


def legend(names: Iterable[str]) -> Markup:
    """Names with their colours."""
    return element(
        "ul", [element("li", name, class_=f"s{i % COLOURS}") for i, name in enumerate(names)], class_="legend"
    )


def drawn(lines: Sequence[Series], title: str, log: bool) -> Markup:
    """The whole curve as it stands before it is zoomed."""
    first, last = min(line.steps[0] for line in lines), max(line.steps[-1] for line in lines)
    low, high = min(min(line.values) for line in lines), max(max(line.values) for line in lines)
    across = Axis(first, last, False, _LEFT, _WIDE - _RIGHT)
    up = Axis(low, high, log, _HIGH - _BOTTOM, _TOP)
    shapes = [_grid(across, up, "step", "")]
    for i, line in enumerate(lines):
        thin, thick = (_path(across, up, line.steps, column) for column in (line.values, line.mean))
        shapes.append(element("path", d=thin, class_=f"raw s{i % COLOURS}"))
        shapes.append(element("path", d=thick, class_=f"mean s{i % COLOURS}"))
    words = f"{title}: steps {first:g} to {last:g}, values {low:.4g} to {high:.4g}"
    return element("svg", shapes, viewBox=f"0 0 {_WIDE} {_HIGH}", role="img", aria_label=words)


def _path(across: Axis, up: Axis, xs: Sequence[float], ys: Sequence[float]) -> str:
    pairs = [f"{across.at(x):.1f} {up.at(y):.1f}" for x, y in zip(xs, ys, strict=True)]
    return "M" + "L".join(pairs if len(pairs) > 1 else pairs * 2)


def _listed(lines: Sequence[Series], title: str) -> Markup:
    """Rows of the running means, evenly chosen."""
    steps = sorted({step for line in lines for step in line.steps})
    at = {line.name: dict(zip(line.steps, line.mean, strict=True)) for line in lines}
    chosen = [steps[i] for i in evenly(len(steps), _ROWS)]
    rows = [[f"{step:g}", *(_or_nothing(at[line.name].get(step)) for line in lines)] for step in chosen]
    header = ["step", *(f"{line.name} (running mean)" for line in lines)]
    return markup.table(header, rows, f"{title} as a table", range(len(header)))


def _or_nothing(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


@dataclass(frozen=True)
class Axis:
    """From values to places: `low` at `start`, `high` at `end`, widened where they are equal."""

    low: float
    high: float
    log: bool
    start: float
    end: float

    def at(self, value: float) -> float:
        """The place of a value."""
        low, high, value = (math.log10(x) if self.log else x for x in (self.low, self.high, value))
        if high == low:
            return (self.start + self.end) / 2
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self, most: int = 6) -> list[float]:
        """Round values within."""
        if self.high == self.low:
            return [self.low]
        if self.log and self.high >= 10 * self.low:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            many = [m * 10.0**p for p in powers for m in ((1, 2, 5) if self.high < 1000 * self.low else (1,))]
            inside = [tick for tick in many if self.low <= tick <= self.high]
            return inside[:: -(-len(inside) // (most + 2))]
        step = self._step((self.high - self.low) / most)
        first = math.ceil(self.low / step)
        return [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]

    @staticmethod
    def _step(least: float) -> float:
        power = 10.0 ** math.floor(math.log10(least))
        return next(m * power for m in (1, 2, 5, 10) if m * power >= least * (1 - 1e-9))


def _grid(across: Axis, up: Axis, below: str, beside: str) -> Markup:
    """Lines, numbers and names of the axes."""
    shapes: list[Markup] = []
    for tick in up.ticks():
        y = f"{up.at(tick):.1f}"
        shapes.append(element("line", x1=across.start, x2=across.end, y1=y, y2=y, class_="grid"))
        shapes.append(element("text", f"{tick:.3g}", x=across.start - 7, y=y, dy="0.32em", class_="end"))
    for tick in across.ticks(5):
        x, base = f"{across.at(tick):.1f}", up.start
        shapes.append(element("line", x1=x, x2=x, y1=base, y2=base + 5, class_="axis"))
        shapes.append(element("text", f"{tick:,g}" if tick < 1e6 else f"{tick:.3g}", x=x, y=base + 19, class_="middle"))
    shapes.append(element("line", x1=across.start, x2=across.end, y1=up.start, y2=up.start, class_="axis"))
    shapes.append(element("text", below, x=across.end, y=up.start + 35, class_="end faint"))
    if beside:
        shapes.append(element("text", beside, x=across.start - 40, y=up.end - 12, class_="faint"))
    return markup.joined(shapes)


# ---------------------------------------------------------------------------------------------------------------- scatter


def scatter(
    points: Sequence[Point], cost: str, quality: str, lower: bool, levels: Mapping[str, float] | None = None
) -> Markup:
    """Quality against one cost, with intervals, the line of what nothing beats, and level lines of what has no cost.

    Args:
        points: those without the cost are not drawn.
        cost: across, in words.
        quality: up.
        lower: whether less quality is better.
        levels: lines by name.
    """
    known = [point for point in points if cost in point.costs]
    title = f"{quality} against {cost}"
    if not known:
        return element("figure", element("figcaption", title), element("p", "Not known.", class_="note"))
    levels = dict(levels or {})
    ends = [end for point in known for end in (point.interval or ())]
    heights = [*(point.quality for point in known), *levels.values()]
    log_up = min(heights) > 0 and max(heights) > 10 * min(heights)
    heights += [end for end in ends if end > 0 or not log_up]
    spans = [point.costs[cost] for point in known]
    log_across = min(spans) > 0 and max(spans) > 3 * min(spans)
    across = Axis(*_wider(min(spans), max(spans), log_across, 0.12), log_across, 58, 406)
    up = Axis(*_wider(min(heights), max(heights), log_up, 0.05), log_up, 290, 34)
    best = front(known, cost, lower)
    shapes = [_grid(across, up, cost, f"{quality} ({'lower' if lower else 'higher'} is better)")]
    shapes += [_level(across, up, name, level) for name, level in levels.items()]
    shapes.append(element("path", d=_stairs(across, up, best, cost), class_="front"))
    spots = [(across.at(point.costs[cost]), up.at(point.quality)) for point in known]
    few = len(known) <= NAMED
    names = [point.name if few or point in best else "" for point in known]
    heights = _apart(spots, names)
    for point, spot, name, height in zip(known, spots, names, heights, strict=True):
        shapes.append(_spot(up, point, spot, points.index(point)))
        shapes.append(_label(spot, f"{name} ✓" if point in best else name, height) if name else Markup())
    words = f"{title}, {len(known)} points; the numbers are in the table"
    unnamed = element("p", "The others are named where they are pointed at, and in the table.", class_="note")
    drawing = element("svg", shapes, viewBox="0 0 420 332", role="img", aria_label=words)
    return element("figure", element("figcaption", title), drawing, None if few else unnamed, class_="scatter")


def _wider(low: float, high: float, log: bool, by: float) -> tuple[float, float]:
    if log:
        factor = (high / low) ** by if high > low else 2.0
        return low / factor, high * factor
    room = (high - low) * by or abs(high) * by or 1.0
    return low - room, high + room


def _level(across: Axis, up: Axis, name: str, level: float) -> Markup:
    y = up.at(level)
    line = element("line", x1=across.start, x2=across.end, y1=f"{y:.1f}", y2=f"{y:.1f}", class_="level")
    return markup.joined(line, element("text", name, x=across.end, y=f"{y - 4:.1f}", class_="end faint"))


def _stairs(across: Axis, up: Axis, best: Sequence[Point], cost: str) -> str:
    spots = [(across.at(point.costs[cost]), up.at(point.quality)) for point in best]
    steps = [f"H{x:.1f}V{y:.1f}" for x, y in spots[1:]]
    return f"M{spots[0][0]:.1f} {spots[0][1]:.1f}" + "".join(steps)


def _spot(up: Axis, point: Point, spot: tuple[float, float], number: int) -> Markup:
    x, y = spot
    low, high = point.interval or (point.quality, point.quality)
    ends = [min(up.start, max(up.end, up.at(max(end, up.low)))) for end in (low, high)]
    style = f"s{number % COLOURS}"
    words = f"{point.name}: {point.quality:.4g}" + (f" ({low:.4g} – {high:.4g})" if point.interval else "")
    return element(
        "g",
        element("title", words),
        element("line", x1=f"{x:.1f}", x2=f"{x:.1f}", y1=f"{ends[0]:.1f}", y2=f"{ends[1]:.1f}", class_=f"bar {style}"),
        element("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=5, class_=f"spot {style}"),
    )


def _label(spot: tuple[float, float], name: str, y: float) -> Markup:
    left = _leftwards(spot[0], name)
    x = spot[0] - 7 if left else spot[0] + 7
    return element("text", name, x=f"{x:.1f}", y=f"{y:.1f}", dy="0.32em", class_="end" if left else None)


def _leftwards(x: float, name: str) -> bool:
    """Whether a label would not fit at the right of its point, and fits better at the left."""
    return x + 9 + 8 * len(name) + 20 > 418 and x > 210


def _apart(spots: Sequence[tuple[float, float]], names: Sequence[str]) -> list[float]:
    """Heights of labels: above their points, lower where they would lie on one another."""
    made: dict[int, tuple[float, float, float]] = {}
    for i in sorted((i for i in range(len(spots)) if names[i]), key=lambda k: spots[k][1]):
        x, y = spots[i][0], spots[i][1] - 10
        width = 8.0 * len(names[i]) + 24
        left, right = (x - 7 - width, x) if _leftwards(x, names[i]) else (x, x + 7 + width)
        for other_left, other_right, other in sorted(made.values(), key=lambda box: box[2]):
            if left < other_right and other_left < right and abs(y - other) < 14:
                y = other + 14
        made[i] = (left, right, y)
    return [made[i][2] if i in made else spots[i][1] for i in range(len(spots))]
