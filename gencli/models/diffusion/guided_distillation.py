"""On Distillation of Guided Diffusion Models (Meng et al., 2022). arXiv:2210.03142

Offers: sample

Stage one: a student that is told the strength w of guidance says in one call of the network what its teacher needs two for,

    loss = E max(1/σ², 1) ‖(1 + w) D_T(x, σ, c) − w D_T(x, σ) − D(x, σ, c, w)‖²,   w ~ U(w_min, w_max)

at the levels and on the data of the denoiser's own training. Fourier features of w are added, by a linear map that starts at
zero, where the network adds the class: the student begins as its teacher, deaf to w. `--guidance s` of sampling tells it
w = s − 1, and without one w is the least. A guided estimate is no mean: samplers that add noise refuse it.

Stage two, fewer steps, is `progressive-distillation` with this run as its teacher: the w of each item is drawn there too.

Without a `teacher` the run begins with `first` steps of the denoiser's own loss, labels dropped as it says, at w = 0.

Ours: any denoiser (the paper's predict v in continuous time); the first training in the same run; `consistency` may be
stage two as well.

Errors: data without a condition that guidance drops; w_min above w_max; a teacher that is not there, no denoiser, or of other
data; in sampling a scale that was not taught, or an interval or a guide.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from gencli.config import Part, opt, part
from gencli.core import Batch, Field, Losses, Phase, Rng, Spec, Turn
from gencli.errors import GencliError
from gencli.models.diffusion._distilled import Distilled
from gencli.models.diffusion._family import DiffusionModel, rows
from gencli.samplers._base import without_guidance


class GuidedDistillation(Distilled):
    """A denoiser that is told how strongly it is guided."""

    training_only: ClassVar[tuple[str, ...]] = ("teacher.",)

    @dataclass(frozen=True)
    class Config:
        teacher: str = opt("", "the run whose guidance is learned; empty = train a denoiser first, in the same run")
        first: int = opt(2000, "steps of training that denoiser, where there is no teacher", low=1)
        w_min: float = opt(0.0, "least strength of guidance that is learned; scale = 1 + w", low=0)
        w_max: float = opt(4.0, "greatest strength of guidance that is learned", low=0)
        denoiser: Part = part(
            "models", "ddpm", "what is trained; with a teacher its own", prediction="v", schedule="cosine"
        )

    def __init__(self, config: Config, spec: Spec) -> None:
        if not config.w_min <= config.w_max:
            raise GencliError(f"w-min {config.w_min:g} is above w-max {config.w_max:g}", "lower the first")
        if all(len(field.shape) > 1 for field in spec.cond.values()):
            raise GencliError(
                "guided-distillation learns guidance by a condition, and the data have none that can be left out",
                "train on labelled data",
            )
        super().__init__(config, spec)
        if not isinstance(self.denoiser, DiffusionModel):
            raise GencliError(
                f"guided-distillation trains a denoiser at its own levels, {config.denoiser.name} has a teacher's",
                "distil guidance first, then the number of steps",
            )
        self.teacher = None if config.teacher else deepcopy(self.denoiser).requires_grad_(False)

    def seen_by_the_denoiser(self, spec: Spec) -> Spec:
        """The data's conditions, and w."""
        return replace(spec, cond={**spec.cond, "number": Field("strength", (1,))})

    @property
    def scales(self) -> tuple[float, float]:
        """1 + w."""
        return 1 + self.config.w_min, 1 + self.config.w_max

    def phases(self) -> list[Phase]:
        return [Phase("main", (self.denoiser,), restarts=() if self.config.teacher else (self.config.first,))]

    def initialise(self, data: Iterator[Batch], count: int, rng: Rng) -> None:
        if self.config.teacher:
            self.inherit()
        else:
            self.denoiser.initialise(data, count, rng)

    def train(self, mode: bool = True) -> GuidedDistillation:
        """The teacher never drops units out."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def denoise(self, x: Tensor, sigma: Tensor, **cond: Tensor) -> Tensor:
        """x0 guided by the strength `guidance`, `()` or a number a row; the least where there is none."""
        w = cond.pop("guidance", x.new_tensor(self.config.w_min))
        return self.denoiser.denoise(x, sigma, number=w.to(x.device).reshape(-1, 1).expand(len(x), 1), **cond)

    # ------------------------------------------------------------------------------------------------------------- the loss

    def prepared(self, batch: Batch, rng: Rng) -> tuple[Tensor, Batch]:
        """The data and all of the conditions, with w: a class that is dropped leaves nothing to guide by."""
        low, high = self.config.w_min, self.config.w_max
        data, cond = batch["x"], {key: value for key, value in batch.items() if key in self.spec.cond}
        w = low + (high - low) * rng.at("guidance").uniform((len(data),))
        return data, {**cond, "guidance": w.to(data)}

    def loss(self, batch: Batch, turn: Turn) -> Losses:
        if self.learns(turn.step):
            return self.denoiser.loss({**batch, "number": batch["x"].new_zeros(len(batch["x"]), 1)}, turn)
        data, cond = self.prepared(batch, turn.rng)
        sigma = self.denoiser.draw_sigma(len(data), turn.rng.at("levels"))
        x = data + rows(sigma, data) * self.noise_like(data, cond, turn.rng.at("noise"))
        with torch.no_grad():
            wanted = self.guided(x, sigma, **cond)
        apart = (self.denoise(x, sigma, **cond) - wanted).square().flatten(1).mean(1)
        each = rows((1 / sigma.square()).clamp(min=1), apart) * apart
        return {"loss": each.mean(), "each": each}

    def learns(self, step: int) -> bool:
        """Whether the denoiser is in its first training."""
        return not self.config.teacher and step < self.config.first

    def guided(self, x: Tensor, sigma: Tensor, guidance: Tensor, **cond: Tensor) -> Tensor:
        """What two calls of the teacher say, with a strength `(N,)` a row."""
        told: Batch = {}
        if self.teacher is None:
            teacher: Any = self.taught.to(x.device).teacher
        else:
            teacher, told = self.teacher, {"number": x.new_zeros(len(x), 1)}
        without = teacher.denoise(x, sigma, **told, **without_guidance(cond, self.spec.cond))
        return torch.lerp(without, teacher.denoise(x, sigma, **told, **cond), rows(1 + guidance, x))

    @torch.no_grad()
    def after_step(self, turn: Turn) -> None:
        """The denoiser's own; at the end of its first training it becomes the teacher."""
        self.denoiser.after_step(turn)
        if self.teacher is not None and turn.step + 1 == self.config.first:
            self.teacher.load_state_dict(self.denoiser.state_dict())
