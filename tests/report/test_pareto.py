"""The plot of quality against cost: who is beaten by nobody, and that everything asked for is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gencli.report.pareto import _COLOURS, Point, front, save_pareto

POINTS = [
    Point("cheap", 9.0, (8.0, 10.0), {"time": 1.0}),
    Point("beaten", 9.5, None, {"time": 2.0}),
    Point("best", 2.0, (1.5, 3.0), {"time": 50.0}),
    Point("dear", 2.0, None, {"time": 60.0}),
    Point("unknown", 1.0, None, {}),
]


def names(lower: bool) -> list[str]:
    return [point.name for point in front(POINTS, "time", lower)]


def test_the_front_holds_what_nothing_beats_in_both() -> None:
    assert names(lower=True) == ["cheap", "best"]
    assert names(lower=False) == ["cheap", "beaten"]
    assert (
        front([Point("slow", 1.0, None, {"time": 1.0}), Point("same", 0.5, None, {"time": 1.0})], "time")[0].name
        == "same"
    )


def test_points_levels_and_missing_costs_are_drawn(tmp_path: Path) -> None:
    def drawn(points: list[Point], **kwargs: Any) -> np.ndarray:
        path = save_pareto(tmp_path / "a.png", points, ["time", "money"], "fid", **kwargs)
        return np.asarray(Image.open(path).convert("RGB")).astype(int)

    def has(page: np.ndarray, colour: str) -> bool:
        wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        return bool((page == wanted).all(2).any())

    one, four, unknown = drawn(POINTS[:1]), drawn(POINTS[:4]), drawn(POINTS[4:])
    assert one.shape[1] > 2 * one.shape[0]
    assert [has(one, colour) for colour in _COLOURS[:4]] == [True, False, False, False]
    assert [has(four, colour) for colour in _COLOURS[:5]] == [True, True, True, True, False]
    assert not any(has(unknown, colour) for colour in _COLOURS[:5]), "no cost is known"
    assert not np.array_equal(drawn(POINTS[:1], levels={"real data": 1.0, "noise": 90.0}), one)
