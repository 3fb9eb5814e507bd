"""Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow (Liu et al., 2022). arXiv:2209.03003

Offers: sample, exact density

    x_t = (1 − t) n + t x_1,   loss = E ‖v(x_t, t) − (x_1 − n)‖²,   dx/dt = v

`reflow = RUN` trains on pairs (n, x_1 = ODE(n)) that RUN drew, `pairs` of them, made once before the first step: the paths no
longer cross, get straighter, and one Euler step gets close to many. RUN may be any denoiser of the same data; its velocity
and ours then follow a coupling, so samplers that add noise are refused.

The density is that of the ODE. Default sampler: `euler`.

Ours: as in flow_matching.

Errors: a RUN that is not there, that is no denoiser, or of other data.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from gencli.config import Part, opt, part
from gencli.core import Batch, Losses, Rng, Spec, Turn
from gencli.models.diffusion._straight import StraightModel
from gencli.models.diffusion._teacher import teacher_of
from gencli.samplers._levels import table_of
from gencli.samplers.euler import Euler

TEACHER_STEPS = 100
TOGETHER = 256


class RectifiedFlow(StraightModel):
    """A velocity along straight lines, and straightened again."""

    training_only = ("pairs_",)
    pairs_noise: Tensor  # (pairs, *shape)
    pairs_data: Tensor
    pairs_label: Tensor  # (pairs,)

    @dataclass(frozen=True)
    class Config:
        reflow: str = opt("", "the run whose noise and samples are the pairs to train on; empty = noise and data")
        pairs: int = opt(4096, "how many pairs are drawn from it", low=1)
        time: Literal["uniform", "logit-normal"] = opt("uniform", "how times are drawn in training")
        label_dropout: float = opt(0.1, "share of labels replaced by the null label in training", low=0, high=1)
        net: Part = part("networks", "unet", "the velocity network", role="denoise")

    def __init__(self, config: Config, spec: Spec) -> None:
        super().__init__(config, spec)
        if config.reflow:
            self.meaning = "transport"
            shape = (config.pairs, *spec.x.shape)
            self.register_buffer("pairs_noise", torch.zeros(shape))
            self.register_buffer("pairs_data", torch.zeros(shape))
            self.register_buffer("pairs_label", torch.zeros(config.pairs, dtype=torch.long))

    def initialise(self, data: Iterator[Batch], count: int, rng: Rng) -> None:
        """Draw the pairs."""
        if not self.config.reflow:
            return
        teacher = teacher_of(self.config.reflow, self.spec)
        seeds = torch.arange(self.config.pairs)
        labels = seeds % (self.spec.cond["label"].vocab or 1) if "label" in self.spec.cond else None
        for part_ in seeds.split(TOGETHER):
            cond = {} if labels is None else {"label": labels[part_]}
            stream = Rng.rows([int(rng.at("pairs", int(i)).integers((1,), 2**62)) for i in part_])
            noise, made = transported(teacher, cond, stream, self.spec)
            self.pairs_noise[part_], self.pairs_data[part_] = noise.to(self.pairs_noise), made.to(self.pairs_data)
        if labels is not None:
            self.pairs_label.copy_(labels)

    def loss(self, batch: Batch, turn: Turn) -> Losses:
        if not self.config.reflow:
            return super().loss(batch, turn)
        n = len(batch["x"])
        chosen = turn.rng.at("pairs").integers((n,), self.config.pairs)
        given = {"label": self.pairs_label[chosen]} if "label" in self.spec.cond else {}
        data, cond = self.prepared({"x": self.pairs_data[chosen], **given}, turn.rng)
        sigma = self.draw_sigma(n, turn.rng.at("levels"))
        each = self.errors(data, self.pairs_noise[chosen], sigma, cond)
        return {"loss": each.mean(), "each": each}


def transported(model: Any, cond: Batch, rng: Rng, spec: Spec) -> tuple[Tensor, Tensor]:
    """Noise of unit variance and where the model's ODE takes it, one pair a row of `rng`."""
    sampler = Euler.make({"steps": min(TEACHER_STEPS, len(table_of(model))), "clip": False})
    noise = rng.at("start").normal((len(rng), *spec.x.shape)).double()
    levels = sampler.levels(model)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return model.denoise(x, sigma, **cond)

    with torch.no_grad():
        *_, last = sampler.run(denoise, model.start(noise, levels[0]), levels, rng)
    return noise, last.x
