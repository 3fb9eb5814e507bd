"""Curves over training steps, from the rows of `metrics.jsonl`."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gencli.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito
_DASHES = ("-", "--", "-.", ":")  # so that a curve is known without its colour
_MARKED = 40  # up to so many rows every one gets a dot, so that a single step can be seen


def save_curve(path: str | Path, rows: Sequence[Mapping[str, Any]], keys: Sequence[str] = (), title: str = "") -> Path:
    """Write a PNG of some columns against `step`: each row thin, a running mean thick.

    Args:
        path: a `.png`.
        rows: as in metrics.jsonl, each with `step`; a row may lack a key.
        keys: columns to draw; those that no row has are left out. None given = the loss of every phase.
        title: above the picture.
    """
    return atomic_write(path, curve(rows, keys, title))


def curve(rows: Sequence[Mapping[str, Any]], keys: Sequence[str] = (), title: str = "") -> bytes:
    """The PNG of `save_curve`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7, 3.6), dpi=100, facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    keys = keys or sorted({key for row in rows for key in row if key.rpartition("/")[2] == "loss"})
    drawn = [_line(axes, rows, key, number) for number, key in enumerate(keys)]
    low = [values.min() for values in drawn if len(values)]
    high = [values.max() for values in drawn if len(values)]
    if not low:
        axes.text(0.5, 0.5, "no finite value yet", ha="center", va="center", transform=axes.transAxes)
    elif min(low) > 0 and max(high) > 20 * min(low):
        axes.set_yscale("log")
    if low:
        axes.legend(frameon=False)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title(title)
    axes.grid(alpha=0.3)
    out = io.BytesIO()
    FigureCanvasAgg(figure).print_png(out)
    return out.getvalue()


def _line(axes: Axes, rows: Sequence[Mapping[str, Any]], key: str, number: int) -> np.ndarray:
    """Draw one column; returns its finite values."""
    pairs = [(row["step"], row[key]) for row in rows if isinstance(row.get(key), (int, float))]
    finite = [(step, value) for step, value in pairs if math.isfinite(value)]
    if not finite:
        return np.empty(0)
    steps, values = np.array(finite, dtype=float).T
    colour, dash = _COLOURS[number % len(_COLOURS)], _DASHES[number % len(_DASHES)]
    odd = len(pairs) - len(finite)
    label = f"{key} ({odd} not finite)" if odd else key
    few = len(finite) <= _MARKED
    axes.plot(steps, values, color=colour, alpha=1.0 if few else 0.3, lw=0.8, marker="o" if few else "", ms=4)
    axes.plot(steps, smooth(values), color=colour, ls=dash, lw=1.8, label=label)
    return values


def smooth(values: np.ndarray) -> np.ndarray:
    """The mean over a window of a fortieth of the run on each side, shorter at the ends."""
    half = len(values) // 40
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    first, last = np.maximum(places - half, 0), np.minimum(places + half + 1, len(values))
    return (sums[last] - sums[first]) / (last - first)
