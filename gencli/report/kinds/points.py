"""Points in the plane on a page: scatter pictures, tables, animations."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gencli.files import atomic_write
from gencli.report.kinds._pictures import denoising, save_frames, save_picture

if TYPE_CHECKING:
    from PIL.Image import Image

Extent = tuple[float, float, float, float]
"""Left, right, bottom, top of the square that is drawn."""

MOVING = 4096  # points that an animation shows
_BLUE = np.array([0, 114, 178])  # of the colour-blind-safe palette of Okabe and Ito
_PAPER, _FRAME, _INK = (255, 255, 255), (170, 170, 170), (60, 60, 60)
_DISC = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if abs(x) + abs(y) < 2]


def grid(points: Any, extent: Extent | None = None, size: int = 384) -> Image:
    """Points `(N, 2)` as a square scatter picture; where they lie thick the blue is deeper.

    Args:
        points: array or tensor; points that are not finite are counted in a corner, as are those out of view.
        extent: what is in view; by default all but the farthest one in two hundred, with the same scale both ways.
        size: side in pixels.
    """
    from PIL import Image as Pillow
    from PIL import ImageDraw

    array = _array(points)
    left, right, bottom, top = extent or view(array)
    known = array[np.isfinite(array).all(1)]
    x = np.floor((known[:, 0] - left) / (right - left) * size)
    y = np.floor((top - known[:, 1]) / (top - bottom) * size)
    inside = (x >= 0) & (x < size) & (y >= 0) & (y < size)
    counts = np.zeros((size + 2, size + 2))
    for dy, dx in _DISC:
        np.add.at(counts, (y[inside].astype(int) + 1 + dy, x[inside].astype(int) + 1 + dx), 1)
    strength = 0.35 if len(known) > 500 else 1.5  # a few points are drawn boldly
    cover = 1 - np.exp(-strength * counts[1:-1, 1:-1, None])
    page = Pillow.fromarray(np.round(255 + (_BLUE - 255) * cover).astype(np.uint8))
    pen = ImageDraw.Draw(page)
    pen.rectangle((0, 0, size - 1, size - 1), outline=_FRAME)
    pen.text((4, size - 14), f"{left:.3g} … {right:.3g}".replace("…", "to"), fill=_INK)
    odd, out = len(array) - len(known), int((~inside).sum())
    words = [f"{odd} not finite"] * bool(odd) + [f"{out} out of view"] * bool(out)
    if words:
        pen.text((4, 3), ", ".join(words), fill=_INK)
    return page


def density(values: Any, extent: Extent, size: int = 384) -> Image:
    """Densities `(side, side)`, the topmost row first, as a square picture: white where there is none, darkest at the greatest.

    Darkness grows with the root of the density, so that thin bridges between modes are seen.
    """
    from PIL import Image as Pillow
    from PIL import ImageDraw

    array = values.detach().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)
    strength = np.sqrt(np.nan_to_num(array) / max(float(np.nanmax(array)), 1e-300))[..., None]
    shade = np.where(strength < 0.5, 255 + (_BLUE - 255) * 2 * strength, _BLUE * (1.8 - 1.6 * strength))
    page = Pillow.fromarray(np.round(shade).clip(0, 255).astype(np.uint8))
    page = page.resize((size, size), Pillow.Resampling.BICUBIC)
    pen = ImageDraw.Draw(page)
    pen.rectangle((0, 0, size - 1, size - 1), outline=_FRAME)
    pen.text((4, size - 14), f"{extent[0]:.3g} to {extent[1]:.3g}", fill=_INK)
    return page


def panel(points: Any, like: Any) -> Image:
    """All points, small, in the view of the points `like`, so that panels can be compared."""
    return grid(points, wider(view(like), 1.2), 200)


def view(points: Any) -> Extent:
    """A square around nearly all of the points, centred on their middle."""
    known = _array(points)
    known = known[np.isfinite(known).all(1)]
    if not len(known):
        return (-1.0, 1.0, -1.0, 1.0)
    low, high = np.quantile(known, [0.005, 0.995], axis=0)
    centre, half = (low + high) / 2, float((high - low).max()) * 0.55 or 1.0
    return (float(centre[0] - half), float(centre[0] + half), float(centre[1] - half), float(centre[1] + half))


def save_grid(path: str | Path, points: Any, extent: Extent | None = None, size: int = 384) -> Path:
    """Write a scatter picture."""
    return save_picture(path, grid(points, extent, size))


def save_items(folder: str | Path, points: Any, names: Sequence[str]) -> list[Path]:
    """Write `points.npy` (float32) and `points.csv` (name, x, y); returns the file that holds each point: the table."""
    array = _array(points)
    assert len(array) == len(names), f"{len(names)} names for {len(array)} points"
    out = io.BytesIO()
    np.save(out, array.astype(np.float32))
    lines = ["name,x,y", *(f"{name},{x:.9g},{y:.9g}" for name, (x, y) in zip(names, array.tolist(), strict=True))]
    atomic_write(Path(folder) / "points.npy", out.getvalue())
    table = atomic_write(Path(folder) / "points.csv", ("\n".join(lines) + "\n").encode())
    return [table] * len(array)


def save_animation(
    path: str | Path, frames: Sequence[Any], fps: float = 12, extent: Extent | None = None, size: int = 320
) -> Path:
    """Write `frames`, each `(N, 2)`, as an animated WebP or GIF with one view: by default that of the last frame."""
    assert len(frames), "an animation needs a frame"
    seen = extent or view(frames[-1])
    return save_frames(path, [grid(frame, seen, size) for frame in frames], fps)


def save_denoising(
    path: str | Path,
    noisy: Sequence[Any],
    estimates: Sequence[Any],
    sigmas: Sequence[float],
    fps: float = 12,
    extent: Extent | None = None,
    size: int = 320,
) -> Path:
    """Write an animation of the noisy points at the levels `sigmas`, left, and of what was made of them, right, in one view."""
    seen = extent or wider(view(estimates[-1]), 1.4)
    left, right = ([grid(frame, seen, size) for frame in frames] for frames in (noisy, estimates))
    return save_frames(path, denoising(left, right, sigmas), fps)


def wider(extent: Extent, by: float) -> Extent:
    """The square of `by` times the side around the same middle."""
    left, right, bottom, top = extent
    x, y, half = (left + right) / 2, (bottom + top) / 2, by * (right - left) / 2
    return (x - half, x + half, y - half, y + half)


def _array(points: Any) -> np.ndarray:
    """float64 `(N, 2)` from an array or a tensor."""
    array = points.detach().cpu().numpy() if hasattr(points, "detach") else np.asarray(points)
    assert array.ndim == 2 and array.shape[1] == 2, f"points are (N, 2), these are {array.shape}"
    return array.astype(np.float64)
