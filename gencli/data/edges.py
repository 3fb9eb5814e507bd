"""Edges and the images that they are of, made from another data set: pairs without a download for `pix2pix`.

Offers: image, label

    g = ∇(image ∗ N(0, σ²)),   an edge where no neighbour along g has more, and ‖g‖ is a quarter of the most

The condition `image` is the edges, white on black in one plane; x is the image. Splits, labels and size are the other set's.
The gradient is Sobel's, of the mean over colours; of neighbours the two nearest to its direction count (the thinning of
Canny, 1986, without his two thresholds). Nothing is drawn: the same image has the same edges. With `of` folder, `path` says
where the folder, or zip, of images lies.

Raises GencliError for a set that is not one of images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gencli.core import Field
from gencli.data._derived import Derived

SIGMA, LEAST = 0.5, 0.25  # of the smoothing, in pixels; share of an image's greatest slope
ROWS = 4096


class Edges(Derived):
    """Drawings and what they are of."""

    verb: ClassVar[str] = "edges of '{}' cannot be made"

    @dataclass(frozen=True)
    class Config(Derived.Config):
        """As of all sets that are made from another."""

    @property
    def name(self) -> str:
        """For runs: `digits-edges`."""
        return f"{self.inner.name}-edges"

    def image(self, x: Field) -> Field:
        return Field("image", (1, *x.shape[1:]), vocab=256)

    def work_out(self, x: np.ndarray) -> np.ndarray:
        return np.concatenate([edges(x[start : start + ROWS]) for start in range(0, len(x), ROWS)])


def edges(images: np.ndarray) -> np.ndarray:
    """uint8 `(N, C, H, W)` to uint8 `(N, 1, H, W)`: 255 on edges, else 0."""
    from scipy import ndimage

    grey = ndimage.gaussian_filter(images.mean(1, dtype=np.float32), (0, SIGMA, SIGMA), mode="nearest")
    slopes = []
    for along, beside in ((1, 2), (2, 1)):
        smooth = ndimage.correlate1d(grey, [1, 2, 1], beside, mode="nearest")
        slopes.append(ndimage.correlate1d(smooth, [-1, 0, 1], along, mode="nearest"))
    size = np.hypot(*slopes)
    strong = (size > 0) & (size >= LEAST * size.max((1, 2), keepdims=True))
    return np.where(strong & _ridges(size, *slopes), 255, 0).astype(np.uint8)[:, None]


def _ridges(size: np.ndarray, down: np.ndarray, across: np.ndarray) -> np.ndarray:
    """Where a slope is greater than the one before it in its direction, and no less than the one behind."""
    octant = np.round(np.arctan2(down, across) / (np.pi / 4)).astype(np.int64) % 4
    around = np.pad(size, ((0, 0), (1, 1), (1, 1)))
    height, width = size.shape[1:]
    made = np.zeros(size.shape, bool)
    for number, (y, x) in enumerate(((0, 1), (1, 1), (1, 0), (1, -1))):
        ahead = around[:, 1 + y : 1 + y + height, 1 + x : 1 + x + width]
        behind = around[:, 1 - y : 1 - y + height, 1 - x : 1 - x + width]
        made |= (octant == number) & (size > behind) & (size >= ahead)
    return made
