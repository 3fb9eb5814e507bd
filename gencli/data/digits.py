"""Handwritten digits, 8×8, from the UCI repository, as scikit-learn ships them (1,797 images, ten classes).

Offers: image, label

The images are enlarged to 16×16 (bicubic) unless `image_size` is 8, where they keep their 17 grey levels. 90 % train,
10 % test by content.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from gencli.config import opt
from gencli.core import Field, Spec
from gencli.data._base import Data, Split, split_by_content


class Digits(Data):
    """scikit-learn's `load_digits`."""

    @dataclass(frozen=True)
    class Config:
        image_size: int = opt(
            16, "side in pixels; 8 is the native size, others are enlarged (bicubic)", low=8, high=256
        )
        unconditional: bool = opt(False, "leave the class labels out")

    @property
    def spec(self) -> Spec:
        size = self.config.image_size
        label = {} if self.config.unconditional else {"label": Field("label", (), vocab=10, names=tuple("0123456789"))}
        return Spec(Field("image", (1, size, size), vocab=17 if size == 8 else 256), label)

    @property
    def resampled(self) -> bool:
        return self.config.image_size != 8

    def load(self) -> dict[str, Split]:
        from PIL import Image
        from sklearn.datasets import load_digits

        bunch = load_digits()
        native = bunch.images  # (1797, 8, 8), 0..16
        grey = np.round(native * (255 / 16)).astype(np.uint8)
        size = self.config.image_size
        if size != 8:
            large = [Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC) for image in grey]
            grey = np.stack([np.asarray(image) for image in large])
        test = split_by_content([image.tobytes() for image in native])
        labels = torch.from_numpy(bunch.target.astype(np.int64))
        cond = {} if self.config.unconditional else {"label": labels}
        whole = Split(grey[:, None], cond, [f"digits/{i}" for i in range(len(grey))])
        return {"train": whole.only(np.flatnonzero(~test)), "test": whole.only(np.flatnonzero(test))}
