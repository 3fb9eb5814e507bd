"""Consistency Trajectory Models (Kim et al., 2023). arXiv:2310.02279

Offers: sample

    G(x, t, s) = (s/t) x + (1 − s/t) g(x, t, s)

jumps along the probability-flow ODE's path through x, from level t to any s ≤ t: G(x, t, t) = x exactly, and g(x, t, t) is the
denoiser. With levels ε = t_0 < … < t_N of even σ^(1/7), t > u ≥ s drawn among them and x = x0 + t n,

    loss = d(G⁻(G(x, t, s), s, ε), G⁻(G⁻(x̂, u, s), s, ε)) + ν ‖F(x0 + σ n, σ, σ) − F*‖²

x̂ = `solver_steps` or fewer steps of Heun's of the teacher from t to u, which makes the consistency soft; G⁻ has the average of
the weights, of decay μ, and no gradient of its own. The second term is denoising score matching at the denoiser's own levels,
in its network's space, which for EDM is its weight. Without a teacher x̂ is a path of g⁻(x, t, t), the student's own denoiser.

Sampled by `renoise`; with `--gamma` γ, of 0 to 1, by the paper's γ-sampling: jump to √(1 − γ²) s, put noise back up to s.

Ours: the paper's adversarial loss is left out, and with it the decoder and discriminator that its best figures need; ν is a
number, where the paper's keeps the terms' gradients of the last layer equal, which would couple the items of a batch; the
network is told ¼ log s by sines and cosines and a linear map that starts at zero, so that a student begins as its teacher;
the end is the least level ε, not 0; `d` as of `consistency`, l2 unless said otherwise (the paper's LPIPS: `perceptual`).

Errors: a teacher that is not there, no denoiser, or of other data; more levels than a table has; a denoiser that is a student.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from gencli.config import Part, opt, part
from gencli.core import Batch, Field, Losses, Phase, Rng, Spec, Turn, full_precision
from gencli.errors import GencliError
from gencli.models.diffusion._distilled import heun
from gencli.models.diffusion._family import DiffusionModel, quarter_log, rows, wide
from gencli.models.diffusion._to_the_end import ToTheEnd, follow
from gencli.samplers._levels import scheduled


class Ctm(ToTheEnd):
    """A function from any point of a path to any later one."""

    training_only: ClassVar[tuple[str, ...]] = ("target.",)

    @dataclass(frozen=True)
    class Config:
        teacher: str = opt("", "the run whose paths are learned; empty = the student's own")
        guidance: float = opt(1.0, "guidance scale of the teacher, learned for good", low=0)
        intervals: int = opt(17, "intervals between levels", low=1)
        solver_steps: int = opt(17, "most steps along the teacher's path between two jumps that are compared", low=1)
        score_weight: float = opt(1.0, "weight ν of denoising score matching", low=0)
        distance: Literal["l1", "l2", "pseudo-huber", "perceptual"] = opt("l2", "between two end points")
        perceptual: str = opt("gencli", "perceptual network: gencli (bundled), or a safetensors file of LPIPS weights")
        target_decay: float = opt(0.999, "decay μ of the average that is the target", low=0, high=1)
        denoiser: Part = part("models", "edm", "the denoiser of which g is made; with a teacher its own")

    def __init__(self, config: Config, spec: Spec) -> None:
        super().__init__(config, spec)
        if not isinstance(self.denoiser, DiffusionModel):
            raise GencliError(
                f"ctm trains a denoiser, {config.denoiser.name} is a student already", "distil its teacher instead"
            )
        table = self.denoiser.levels
        if table is not None and config.intervals >= len(table):
            raise GencliError(
                f"intervals {config.intervals}: the denoiser has {len(table)} levels",
                f"use --intervals {len(table) - 1} or less",
            )
        self.target = deepcopy(self.denoiser).requires_grad_(False)

    def seen_by_the_denoiser(self, spec: Spec) -> Spec:
        """The data's conditions, and the level jumped to."""
        return replace(spec, cond={**spec.cond, "number": Field("level", (1,))})

    def phases(self) -> list[Phase]:
        return [Phase("main", (self.denoiser,))]

    def initialise(self, data: Iterator[Batch], count: int, rng: Rng) -> None:
        if self.config.teacher:
            self.inherit()
        else:
            self.denoiser.initialise(data, count, rng)
        self.target.load_state_dict(self.denoiser.state_dict())

    def train(self, mode: bool = True) -> Ctm:
        """The target never drops units out."""
        super().train(mode)
        self.target.eval()
        return self

    # ----------------------------------------------------------------------------------------------------------- the function

    def denoise(self, x: Tensor, sigma: Tensor, **cond: Tensor) -> Tensor:
        """The end of the path through x `(N, *shape)` at level σ `()` or `(N,)`."""
        sigma = wide(sigma)
        return jump(x, sigma, sigma.new_tensor(self.sigma_min), self.toward(x, sigma, self.sigma_min, **cond))

    def toward(self, x: Tensor, sigma: Tensor, end: Tensor | float, **cond: Tensor) -> Tensor:
        """g(x, σ, end), of which the jump to `end` is made; an average of denoisers along the way there."""
        return self.g(self.denoiser, x, sigma, end, cond)

    def g(self, denoiser: DiffusionModel, x: Tensor, sigma: Tensor, end: Tensor | float, cond: Batch) -> Tensor:
        """The same of any denoiser that is told where to jump to."""
        level = wide(end) if isinstance(end, Tensor) else torch.tensor(end, dtype=torch.float64)
        told = quarter_log(level).to(x).reshape(-1, 1).expand(len(x), 1)
        return denoiser.denoise(x, sigma, number=told, **cond)

    # --------------------------------------------------------------------------------------------------------------- the loss

    def loss(self, batch: Batch, turn: Turn) -> Losses:
        data, cond = self.prepared(batch, turn.rng)
        high, middle, low, ahead = self.drawn(len(data), turn.rng.at("jumps"), data)
        x = data + rows(high, data) * self.noise_like(data, cond, turn.rng.at("noise"))

        def moved(denoiser: DiffusionModel, x: Tensor, here: Tensor, there: Tensor) -> Tensor:
            return jump(x, here, there, self.g(denoiser, x, here, there, cond))

        least = torch.full_like(low, self.sigma_min)
        with torch.no_grad():
            before = self.path(x, ahead, cond)
            wanted = moved(self.target, moved(self.target, before, middle, low), low, least)
        made = moved(self.target, moved(self.denoiser, x, high, low), low, least)
        with full_precision(data.device):
            consistent = self.apart(made.float(), wanted.float())
        score = self.score_errors(data, cond, turn.rng.at("score"))
        each = consistent + self.config.score_weight * score.to(consistent)
        shown = {"consistency": consistent.mean().detach(), "score": score.mean().detach()}
        return {"loss": each.mean(), "each": each, **shown}

    @cached_property
    def grid(self) -> Tensor:
        """The levels t_0 < … < t_N, float64."""
        return scheduled(self.denoiser, self.config.intervals + 1, "karras", self.public_name())[:-1].flip(0)

    def drawn(self, n: int, rng: Rng, like: Tensor) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """Levels t, u and s `(n,)`, and those that a solver visits from t to u, all rows' in as many steps.

        A row that is there already stays at u.
        """
        grid = self.grid if like.device.type == "mps" else self.grid.to(like.device)

        def below(key: str, count: Tensor | int) -> Tensor:
            return (rng.at(key).uniform((n,)).to(grid) * count).long()

        high = 1 + below("high", len(grid) - 1)
        low = below("low", high)
        steps = 1 + below("steps", (high - low).clamp(max=self.config.solver_steps))
        most = min(self.config.solver_steps, len(grid) - 1)
        visited = [grid[high - steps.clamp(max=i)] for i in range(most + 1)]
        return grid[high], visited[-1], grid[low], visited

    @torch.no_grad()
    def path(self, x: Tensor, visited: list[Tensor], cond: Batch) -> Tensor:
        """x after Heun's steps through these levels, along the teacher's path or the target's own."""
        denoise: Callable[[Tensor, Tensor], Tensor]
        if self.config.teacher:
            denoise = self.teaching(cond, x.device, self.config.guidance)
        else:

            def denoise(x: Tensor, sigma: Tensor) -> Tensor:
                return self.g(self.target, x, sigma, sigma, cond)

        for here, there in itertools.pairwise(visited):
            x = heun(denoise, x, here, there)
        return x

    def score_errors(self, data: Tensor, cond: Batch, rng: Rng) -> Tensor:
        """`(N,)` squared errors of the network where nothing is jumped over: the denoiser's own loss."""
        sigma = self.denoiser.draw_sigma(len(data), rng.at("levels"))
        told: Any = {**cond, "number": quarter_log(sigma).to(data)[:, None]}
        return self.denoiser.errors(data, self.noise_like(data, cond, rng.at("noise")), sigma, told)

    # ------------------------------------------------------------------------------------------------------------- the target

    @torch.no_grad()
    def after_step(self, turn: Turn) -> None:
        """The denoiser's own, and a step of the target's average."""
        self.denoiser.after_step(turn)
        follow(self.target, self.denoiser, 1 - self.config.target_decay)


def jump(x: Tensor, here: Tensor, there: Tensor, toward: Tensor) -> Tensor:
    """G: x itself where the levels are equal."""
    return torch.lerp(toward, x, rows(there / here, x).expand(len(x), *[1] * (x.ndim - 1)))
