"""Squares, ellipses and hearts in every size, turn and place, drawn on demand: images whose factors are known.

Offers: image, label

The factors of dSprites (Matthey et al., 2017) and their sizes: shape 3 × scale 6 × orientation 40 × x 32 × y 32 = 737,280
images of 64×64, white on black. Scale is 0.5 to 1, orientation k · 9° anticlockwise, x from the left and y from the top in
steps of one pixel. A sprite is drawn once in each shape, scale and orientation and moved by whole pixels, so that a batch is
drawn when it is asked for and no image is kept.

Every number is a function of the settings: nothing is drawn by chance. 90 % train, 10 % test by a hash of what an image
shows: images that are equal because their shape is symmetric (a square turned by 90°, an ellipse by 180°) are in one split,
and an image is in the same split whatever else varies. The label is the shape. Factors are whole numbers from 0; those that
do not vary stay at a large upright heart in the middle.

Ours: the outlines, which are not those of dSprites to the pixel; orientations that do not repeat the first one at the end;
`smooth` edges; 32 and 16 pixels as exact means of 2×2 and 4×4 pixels, in which neighbouring places still differ; colours.
"""

from __future__ import annotations

import colorsys
import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, cast

import numpy as np
import torch

from gencli.config import as_dict, opt
from gencli.core import Field, Spec
from gencli.data._base import Data, Split
from gencli.errors import GencliError

FactorName = Literal["shape", "scale", "orientation", "x", "y"]

SIDE = 64
SHAPES = ("square", "ellipse", "heart")
PERIODS = np.array([10, 20, 40])  # orientations after which a shape looks the same
SIZES = {"colour": 1, "shape": 3, "scale": 6, "orientation": 40, "x": 32, "y": 32}
STILL = {
    "colour": 0,
    "shape": 2,
    "scale": 5,
    "orientation": 0,
    "x": 16,
    "y": 16,
}  # where a factor stays that does not vary
_BOX = 33  # pixels of the square that holds a sprite, whose middle is a pixel's middle
_SQUARE, _ELLIPSE = 10.5, (14.5, 7.25)  # half sides and half axes in pixels at scale 1
_HEART, _LIFT = (
    11.2,
    0.2935,
)  # pixels a unit of the heart's equation, and how far its centre of mass is above the origin
_FINE = 4  # samples along a pixel's side for a smooth edge
_SHARE = 0.1  # of the images are for test


class Sprites(Data):
    """Sprites by factors."""

    @dataclass(frozen=True)
    class Config:
        image_size: Literal[16, 32, 64] = opt(64, "side in pixels; 64 is native, the others are its exact means")
        vary: tuple[FactorName, ...] = opt(
            ("shape", "scale", "orientation", "x", "y"), "factors that vary; the others are a large upright heart's"
        )
        colours: int = opt(1, "hues, one more factor; 1 = white in one plane", low=1, high=64)
        smooth: bool = opt(False, "grey edges by the share of a pixel that is covered, instead of black and white")
        unconditional: bool = opt(False, "leave out the labels, which are the shapes")

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        if not config.vary and config.colours == 1:
            raise GencliError("sprites: vary is empty, so there is one image", "name a factor, such as --vary x,y")
        if len(set(config.vary)) < len(config.vary):
            raise GencliError(f"sprites: vary names a factor twice: {','.join(config.vary)}", "name each once")

    @property
    def spec(self) -> Spec:
        channels, side = 3 if self.config.colours > 1 else 1, self.config.image_size
        label = {"label": Field("label", (), vocab=len(SHAPES), names=SHAPES)} if self._labelled else {}
        return Spec(Field("image", (channels, side, side), vocab=256), label)

    @property
    def _labelled(self) -> bool:
        return "shape" in self.config.vary and not self.config.unconditional

    @property
    def varied(self) -> dict[str, int]:
        """The factors that vary, and how many values each has."""
        sizes = {**SIZES, "colour": self.config.colours}
        return {
            name: sizes[name] for name in SIZES if name in self.config.vary or (name == "colour" and sizes[name] > 1)
        }

    def load(self) -> dict[str, Split]:
        sizes = self.varied
        axes = [np.arange(sizes[name]) if name in sizes else np.array([STILL[name]]) for name in SIZES]
        grid = np.meshgrid(*(axis.astype(np.uint8) for axis in axes), indexing="ij", copy=False)
        table = np.stack(grid, -1).reshape(-1, len(SIZES))
        test = held_out(table)
        return {"train": self._split(table[~test]), "test": self._split(table[test])}

    def _split(self, table: np.ndarray) -> Split:
        x = Drawn(table, self.config.image_size, self.config.smooth, self.config.colours)
        columns = dict(zip(SIZES, torch.from_numpy(table).unbind(1), strict=True))
        label = {"label": columns["shape"].long()} if self._labelled else {}
        return Split(cast(np.ndarray, x), label, factors={name: columns[name] for name in self.varied})

    @property
    def hash(self) -> str:
        """Of the settings, of every sprite before it is moved, and of what is held out: all that images are made of."""
        told = {**as_dict(self.config), "vary": sorted(self.config.vary)}
        digest = hashlib.sha256(repr(sorted(told.items())).encode())
        digest.update(templates(self.config.smooth).tobytes())
        for name in ("train", "test"):
            digest.update(cast(Drawn, self.split(name).x).table.tobytes())
        return digest.hexdigest()[:16]


class Drawn:
    """What an array `(N, C, side, side)` of uint8 offers, each image drawn when it is asked for.

    Args:
        table: `(N, 6)` uint8, the factors of each image in the order of `SIZES`.
        side: 64, 32 or 16.
        smooth: grey edges.
        colours: number of hues; 1 = one plane.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(self, table: np.ndarray, side: int = SIDE, smooth: bool = False, colours: int = 1) -> None:
        self.table, self.side, self.smooth, self.colours = table, side, smooth, colours

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """As if they were there."""
        return (len(self.table), 3 if self.colours > 1 else 1, self.side, self.side)

    @property
    def nbytes(self) -> int:
        """What is in memory."""
        return int(self.table.nbytes)

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, which: Any) -> np.ndarray:
        rows = self.table[which]
        made = draw(rows.reshape(-1, len(SIZES)), self.side, self.smooth, self.colours)
        return made if rows.ndim == 2 else made[0]


def draw(table: np.ndarray, side: int = SIDE, smooth: bool = False, colours: int = 1) -> np.ndarray:
    """uint8 `(N, C, side, side)` of factors `(N, 6)`."""
    hue, shape, scale, turn, x, y = table.astype(np.int64).T
    page = np.zeros((len(table), SIDE, SIDE), np.uint8)
    box, n = np.arange(_BOX), np.arange(len(table))[:, None, None]
    page[n, (y[:, None] + box)[:, :, None], (x[:, None] + box)[:, None, :]] = templates(smooth)[shape, scale, turn]
    by = SIDE // side
    if by > 1:
        parts = [page[:, i::by, k::by].astype(np.uint16) for i in range(by) for k in range(by)]
        page = ((np.add.reduce(parts) + by * by // 2) // (by * by)).astype(np.uint8)
    if colours == 1:
        return page[:, None]
    tints = np.array([colorsys.hsv_to_rgb(i / colours, 1.0, 1.0) for i in range(colours)])
    return np.rint(page[:, None] * tints[hue][:, :, None, None]).astype(np.uint8)


@lru_cache(maxsize=2)
def templates(smooth: bool) -> np.ndarray:
    """Every sprite in the middle of its box, uint8 `(3, 6, 40, 33, 33)`."""
    fine = _FINE if smooth else 1
    at = (np.arange(_BOX * fine) + 0.5) / fine - _BOX / 2
    right, up = at[None, :], -at[:, None]
    made = np.empty((*list(SIZES.values())[1:4], _BOX, _BOX), np.uint8)
    for turn in range(SIZES["orientation"]):
        angle = turn * 2 * np.pi / SIZES["orientation"]
        u, v = np.cos(angle) * right + np.sin(angle) * up, np.cos(angle) * up - np.sin(angle) * right
        for i, scale in enumerate(np.linspace(0.5, 1.0, SIZES["scale"])):
            for shape, name in enumerate(SHAPES):
                if turn < PERIODS[shape]:
                    covered = _inside(name, u / scale, v / scale).reshape(_BOX, fine, _BOX, fine).mean((1, 3))
                    made[shape, i, turn] = np.rint(255 * covered)
                else:  # the same picture to the bit, not to within rounding
                    made[shape, i, turn] = made[shape, i, turn - PERIODS[shape]]
    made.setflags(write=False)
    return made


def _inside(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Whether points, in pixels from the middle at scale 1, belong to the shape."""
    if shape == "square":
        return np.maximum(np.abs(u), np.abs(v)) <= _SQUARE
    if shape == "ellipse":
        return (u / _ELLIPSE[0]) ** 2 + (v / _ELLIPSE[1]) ** 2 <= 1
    a, b = u / _HEART, v / _HEART + _LIFT
    across, up = a * a, b * b
    body = across + up - 1
    return body * body * body <= across * up * b


def held_out(table: np.ndarray) -> np.ndarray:
    """True where an image `(N, 6)` is for test: by a hash (the finaliser of SplitMix64) of what it shows."""
    hue, shape, scale, turn, x, y = table.astype(np.uint64).T
    key = np.zeros(len(table), np.uint64)
    for part in (hue, shape, scale, turn % PERIODS.astype(np.uint64)[shape], x, y):
        key = key * np.uint64(64) + part
    key = key + np.uint64(0x9E3779B97F4A7C15)  # so that 0 is not hashed to 0
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        key = (key ^ (key >> np.uint64(shift))) * np.uint64(factor)
    key ^= key >> np.uint64(31)
    return key < np.uint64(int(_SHARE * 2**64))
