"""Inpainting: some pixels are measured, the others are not.

Offers: linear

    y = m ⊙ x

m is 1 where a pixel is measured, in all channels. `mask` names a half that is measured, a hidden `box` in the middle or
hidden pixels at `random` (of a fixed seed), `share` of all of them hidden; or a picture of the images' size whose white is
measured. Raises GencliError for a picture of another size and a mask that measures nothing or everything.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gencli.config import opt
from gencli.core import Field
from gencli.errors import GencliError
from gencli.operators._base import LinearOperator

FORMATS = ("PNG", "BMP", "GIF", "JPEG", "PPM", "TIFF", "WEBP")
HALVES = ("top-half", "bottom-half", "left-half", "right-half")


def half(name: str, height: int, width: int) -> Tensor:
    """`(H, W)`, true in the half that is named; the middle of an odd side is hidden."""
    mask = torch.zeros(height, width, dtype=torch.bool)
    part = {
        "top-half": mask[: height // 2],
        "bottom-half": mask[height - height // 2 :],
        "left-half": mask[:, : width // 2],
        "right-half": mask[:, width - width // 2 :],
    }[name]
    part.fill_(True)
    return mask


class Inpaint(LinearOperator):
    """A mask."""

    @dataclass(frozen=True)
    class Config:
        mask: str = opt("box", f"what is measured: all but a box or random pixels, {', '.join(HALVES)}, or MASK.png")
        share: float = opt(0.25, "of the pixels that box and random hide", low=0.001, high=0.999)

    def __init__(self, config: Config, x: Field) -> None:
        super().__init__(config, x)
        self.mask = self._mask(*self.shape[1:])
        if self.mask.all() or not self.mask.any():
            what = "everything" if self.mask.all() else "nothing"
            raise GencliError(f"mask {config.mask} measures {what}", "choose another")
        self.values = self.mask.expand(self.shape).flatten().double()

    def _mask(self, height: int, width: int) -> Tensor:
        name, share = self.config.mask, self.config.share
        if name in HALVES:
            return half(name, height, width)
        if name == "box":
            tall, wide = (max(1, round(side * math.sqrt(share))) for side in (height, width))
            top, left = (height - tall) // 2, (width - wide) // 2
            mask = torch.ones(height, width, dtype=torch.bool)
            mask[top : top + tall, left : left + wide] = False
            return mask
        if name == "random":
            order = torch.randperm(height * width, generator=torch.Generator().manual_seed(0))
            return (order >= round(share * height * width)).view(height, width)
        path = Path(name).expanduser()
        if not path.is_file():
            raise GencliError(f"mask '{name}' is no file", f"give box, random, {', '.join(HALVES)}, or a picture")
        try:
            with Image.open(path, formats=FORMATS) as picture:
                wide, tall = picture.size
                pixels = np.asarray(picture.convert("L")) if (wide, tall) == (width, height) else None
        except Exception as error:  # Pillow raises anything on hostile files
            raise GencliError(f"mask {name} cannot be read: {error}", "give a picture, such as a PNG") from error
        if pixels is None:
            raise GencliError(
                f"mask {name} is {wide}×{tall}, the images are {width}×{height}",
                "draw it at the images' size: white pixels are measured",
            )
        return torch.from_numpy(pixels >= 128)

    def rotate(self, x: Tensor) -> Tensor:
        return x.flatten(1)

    def back(self, c: Tensor) -> Tensor:
        return c.view(len(c), *self.shape)

    def lift(self, c: Tensor) -> Tensor:
        return (c * (self.values > 0).to(c)).view(len(c), *self.shape)

    def lower(self, y: Tensor) -> Tensor:
        return y.flatten(1) * (self.values > 0).to(y)
