"""How near what is painted from held-out images comes to the images that go with them: MSE, PSNR and SSIM.

Offers: image, sample

As of `reconstruction`, between uint8 images: what the run's own sampler makes of an item's image, one draw each, and the item.
What a model must beat is measured with it: the image that was given, copied (a smaller one enlarged, bicubic), and the mean of
all held-out items.

Raises GencliError for a model that is given no image of the data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from gencli.core import Items, Model, Rng
from gencli.data._resize import resize
from gencli.errors import GencliError
from gencli.metrics._base import (
    Better,
    ModelMetric,
    Run,
    Value,
    base_seed,
    conditions,
    item_rows,
    mean_with_error,
    on_device,
    spread,
)
from gencli.metrics.reconstruction import mse, psnr, ssim

CONTROLS = ("copies", "the mean")


class Translation(ModelMetric):
    """A painter's answers beside those of the data."""

    needs: ClassVar[type[Any]] = Model

    @dataclass(frozen=True)
    class Config:
        pass

    def __call__(self, run: Run, data: Items, rng: Rng, n: int | None = None, batch_size: int = 64) -> list[Value]:
        self.check(run)
        seed = base_seed(rng, "translation")
        chosen = spread(len(data), n)
        raw = data.batch(chosen)
        mean = raw["x"].double().mean(0).round().to(torch.uint8)
        rows = []
        for part in torch.arange(len(chosen)).split(batch_size):
            numbers = item_rows(seed, chosen[part], run.model)
            some = {key: value[part] for key, value in raw.items()}
            cond = conditions(run, on_device(run.encode(some, numbers), run.model))
            made, truth = run.sample(numbers, cond)["x"], some["x"]
            copied = enlarged(some["image"], truth).expand_as(truth)
            scores = (mse(truth, made), psnr(truth, made), ssim(truth, made))
            controls = (psnr(truth, copied), psnr(truth, mean.expand_as(truth)))
            rows.append(torch.stack([*scores, *controls], 1))
        each = torch.cat(rows).numpy()
        named = (("mse", "grey levels²"), ("psnr", "dB"), ("ssim", ""), *((f"psnr of {it}", "dB") for it in CONTROLS))
        values = []
        for column, (name, unit) in enumerate(named):
            average, error, interval = mean_with_error(each[:, column])
            better: Better = "lower" if name == "mse" else "higher"
            values.append(Value(name, average, interval, len(each), better, unit, facts={"standard_error": error}))
        return values

    def check(self, run: Run) -> None:
        """Refuse a model that paints from no image."""
        super().check(run)
        field = run.model.spec.cond.get("image")
        if field is None or field.shape[0] not in (1, run.spec.x.shape[0]):
            raise GencliError(
                f"metric 'translation' needs a model that paints from images, {type(run.model).__name__} is given none",
                "use a run of pix2pix or sr3",
            )


def enlarged(images: Tensor, like: Tensor) -> Tensor:
    """uint8 images at the sides of others, bicubic."""
    return torch.from_numpy(resize(images.numpy(), (like.shape[2], like.shape[3])))
