"""Progressive Distillation for Fast Sampling of Diffusion Models (Salimans & Ho, 2022). arXiv:2202.00512

Offers: sample

A student learns to do in one step of DDIM what its teacher does in two, then becomes the teacher of a student of half as many
steps, down to `student_steps`, all in one run. With a teacher's steps t → m → s,

    x_m = D₁ + (m / t) (x − D₁),   x_s = D₂ + (s / m) (x_m − D₂),   D₁ = D(x, t),   D₂ = D(x_m, m)
    x̃ = (x_s − (s / t) x) / (1 − s / t) = w D₁ + (1 − w) D₂,   w = (s / m − s / t) / (1 − s / t)
    loss = E max(1/σ², 1) ‖x̃ − D(x, t)‖²   (`truncated`)   or   E (1 + 1/σ²) ‖…‖², the error of v   (`snr-plus-1`)

the second form of x̃ losing no digits. t is one of the N levels at which a sampler of N steps calls the student: N of the
model's own times, evenly, as `ddim --steps N` visits them. A halving lasts `halving` steps, in which the learning rate's
schedule is gone through once; the last student keeps what is left of the run.

Without a `teacher` the run begins with `first` steps of the denoiser's own loss (the paper's algorithm 1), then distils that.
Default sampler: `ddim` with the steps of the student. The estimate D is no mean after distillation, so samplers that add noise
refuse it.

Ours: any denoiser may be distilled (the paper's predict v or x0 in continuous time, told log σ); a `guidance` of the first
teacher, learned for good; the optimiser's moments outlast a halving.

Errors: teacher steps that are not a power of two times the student's, or more than the denoiser has levels; a teacher that is
not there, no denoiser, or of other data.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from gencli.config import Part, opt, part
from gencli.core import Batch, Losses, Phase, Rng, Spec, Turn
from gencli.errors import GencliError
from gencli.guidance.cfg import guided
from gencli.models.diffusion._distilled import Distilled
from gencli.models.diffusion._family import rows
from gencli.samplers._levels import spaced, table_of


class ProgressiveDistillation(Distilled):
    """A denoiser of which half as many steps are as good, again and again."""

    training_only: ClassVar[tuple[str, ...]] = ("teacher.",)

    @dataclass(frozen=True)
    class Config:
        teacher: str = opt("", "the run that is distilled; empty = train a denoiser first, in the same run")
        first: int = opt(2000, "steps of training that denoiser, where there is no teacher", low=1)
        guidance: float = opt(1.0, "guidance scale of the first teacher, learned for good", low=0)
        teacher_steps: int = opt(64, "steps of DDIM of the first teacher", low=2)
        student_steps: int = opt(1, "steps of the last student", low=1)
        halving: int = opt(200, "training steps of each halving", low=1)
        weighting: Literal["truncated", "snr-plus-1"] = opt(
            "truncated", "weight of the error of x0: max(SNR, 1) or SNR + 1"
        )
        denoiser: Part = part(
            "models", "ddpm", "what is trained; with a teacher its own", prediction="v", schedule="cosine"
        )

    def __init__(self, config: Config, spec: Spec) -> None:
        super().__init__(config, spec)
        self.halvings = round(math.log2(config.teacher_steps / config.student_steps))
        if self.halvings < 1 or config.student_steps * 2**self.halvings != config.teacher_steps:
            raise GencliError(
                f"teacher-steps {config.teacher_steps} cannot be halved down to student-steps {config.student_steps}",
                "give a power of two times the second, such as 64 and 1",
            )
        count = len(table_of(self.denoiser))
        if config.teacher_steps > count:
            raise GencliError(
                f"teacher-steps {config.teacher_steps}: the denoiser has {count} levels", f"use {count} or fewer"
            )
        self.teacher = deepcopy(self.denoiser).requires_grad_(False)
        self.grids = [
            spaced(self.denoiser, config.teacher_steps // 2**i, "trailing", "ddim") for i in range(self.halvings)
        ]

    @property
    def begin(self) -> int:
        """The turn at which the first halving begins."""
        return 0 if self.config.teacher else self.config.first

    def phases(self) -> list[Phase]:
        starts = [self.begin + i * self.config.halving for i in range(self.halvings)]
        return [Phase("main", (self.denoiser,), restarts=tuple(start for start in starts if start))]

    def halving(self, step: int) -> int:
        """Which halving a turn belongs to, from 0; −1 before the first."""
        return min((step - self.begin) // self.config.halving, self.halvings - 1) if step >= self.begin else -1

    def initialise(self, data: Iterator[Batch], count: int, rng: Rng) -> None:
        """Teacher and student begin with the weights of the run that teaches."""
        if not self.config.teacher:
            return self.denoiser.initialise(data, count, rng)
        self.must_inherit("steps it halves")
        self.teacher.load_state_dict(self.denoiser.state_dict())

    def train(self, mode: bool = True) -> ProgressiveDistillation:
        """The teacher never drops units out."""
        super().train(mode)
        self.teacher.eval()
        return self

    def loss(self, batch: Batch, turn: Turn) -> Losses:
        place = self.halving(turn.step)
        if place < 0:
            return self.denoiser.loss(batch, turn)
        data, cond = self.prepared(batch, turn.rng)
        grid = self.grids[place]
        grid = grid if data.device.type == "mps" else grid.to(data.device)
        chosen = 2 * turn.rng.at("levels").integers((len(data),), (len(grid) - 1) // 2).to(grid.device)
        here, middle, there = (grid[chosen + i] for i in range(3))
        x = data + rows(here, data) * self.noise_like(data, cond, turn.rng.at("noise"))
        with torch.no_grad():
            wanted = self.two_steps(x, here, middle, there, cond, self.config.guidance if place == 0 else 1.0)
        apart = (self.denoise(x, here, **cond) - wanted).square().flatten(1).mean(1)
        each = rows(self.weight(here), apart) * apart
        return {"loss": each.mean(), "each": each, "steps": grid.new_tensor((len(grid) - 1) / 2).float()}

    def weight(self, sigma: Tensor) -> Tensor:
        """What the squared error of x0 counts at a level."""
        snr = 1 / sigma**2
        return snr + 1 if self.config.weighting == "snr-plus-1" else snr.clamp(min=1)

    def two_steps(
        self, x: Tensor, here: Tensor, middle: Tensor, there: Tensor, cond: Batch, scale: float = 1.0
    ) -> Tensor:
        """x̃, with which one step of DDIM leads where the teacher's two do; levels are `(N,)`."""
        denoise = guided(self.teacher.denoise, cond, scale)
        first = denoise(x, here)
        second = denoise(first + rows(middle / here, x) * (x - first), middle)
        share = (there / middle - there / here) / (1 - there / here)
        return second + rows(share, x) * (first - second)

    @torch.no_grad()
    def after_step(self, turn: Turn) -> None:
        """The denoiser's own; at the end of a halving, and of the first training, the student becomes the teacher."""
        self.denoiser.after_step(turn)
        if self.halving(turn.step + 1) != self.halving(turn.step):
            self.teacher.load_state_dict(self.denoiser.state_dict())
