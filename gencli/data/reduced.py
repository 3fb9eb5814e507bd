"""Images and the same ones reduced, made from another data set: pairs of sizes for `sr3`.

Offers: image, label

The condition `image` is x with its sides divided by `factor`, by Pillow's bicubic filter, which is antialiased; x is the other
set's image. Splits, labels and size are that set's. With `of` folder, `path` says where the folder, or zip, of images lies.

Raises GencliError for a set that is not one of images, and for sides that the factor does not divide.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gencli.config import opt
from gencli.core import Field
from gencli.data._derived import Derived
from gencli.data._resize import resize
from gencli.errors import GencliError


class Reduced(Derived):
    """Small images and large ones."""

    verb: ClassVar[str] = "images of '{}' cannot be reduced"

    @dataclass(frozen=True)
    class Config(Derived.Config):
        factor: int = opt(4, "how many times smaller the sides of the small images are", low=2, high=64)

    @property
    def name(self) -> str:
        """For runs: `digits-x4`."""
        return f"{self.inner.name}-x{self.config.factor}"

    def image(self, x: Field) -> Field:
        channels, height, width = x.shape
        factor = self.config.factor
        if height % factor or width % factor:
            raise GencliError(
                f"images of {width}×{height} pixels cannot be made {factor} times smaller",
                "give another --factor or --image-size",
            )
        return Field("image", (channels, height // factor, width // factor), vocab=256)

    def work_out(self, x: np.ndarray) -> np.ndarray:
        return resize(x, (x.shape[2] // self.config.factor, x.shape[3] // self.config.factor))
