"""How near what is painted from held-out images comes to the images that go with them: MSE, PSNR and SSIM.

Offers: image, sample

As of `reconstruction`, between uint8 images: what the model makes of an item's image, one draw each, and the item. What a
model must beat is measured with it: the image that was given, copied, and the mean of all held-out items.

Raises GencliError for a model that decodes no latent beside an image of the data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch

from gencli.core import Items, LatentVariable, Rng
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

    needs: ClassVar[type[Any]] = LatentVariable

    @dataclass(frozen=True)
    class Config:
        pass

    def __call__(self, run: Run, data: Items, rng: Rng, n: int | None = None, batch_size: int = 64) -> list[Value]:
        self.check(run)
        model, seed = cast(Any, run.model), base_seed(rng, "translation")
        chosen = spread(len(data), n)
        raw = data.batch(chosen)
        mean = raw["x"].double().mean(0).round().to(torch.uint8)
        rows = []
        for part in torch.arange(len(chosen)).split(batch_size):
            numbers = item_rows(seed, chosen[part], run.model)
            some = {key: value[part] for key, value in raw.items()}
            cond = conditions(run, on_device(run.encode(some, numbers), run.model))
            with torch.no_grad():
                z = model.prior(len(part), numbers.at("prior"), **cond)
                made = run.decode({"x": model.decode(z, **cond)})["x"].cpu()
            truth, copied = some["x"], some["image"].expand_as(some["x"])
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
                "use a run of pix2pix",
            )
