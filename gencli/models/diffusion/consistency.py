"""Consistency Models (Song et al., 2023). arXiv:2303.01469

Offers: sample

    f(x, σ) = c_skip x + c_out F(x, σ),   c_skip = σd² / ((σ − ε)² + σd²),   c_out = (σ − ε) σd / √(σ² + σd²)

is the end, at the least level ε, of the probability-flow ODE's path through x at level σ; f(x, ε) = x exactly. It is trained by
its values at two neighbours t > s of the levels ε = t_1 < … < t_N, on the data x0 with noise n:

    loss = λ d(f(x0 + t n, t), f⁻(x̂, s)),   x̂ = Heun's step of the teacher from x0 + t n to s      (distillation, CD)
                                            x̂ = x0 + s n                                          (training, CT)

with f⁻ the target, an average of f with the decay μ or, with μ = 0, f itself, that has no gradient. A `teacher`, any saved
denoiser, makes it distillation. The levels are evenly spaced in σ^(1/7); N is `fixed`, or grows during training from
`least_levels` s0 to `most_levels` s1, with k of K steps done (of N − 1 intervals)

    growing     ⌈√(k/K ((s1 + 1)² − s0²) + s0²) − 1⌉,   μ_k = μ^(s0 / that)              (the paper's for CT)
    doubling    min(s0 2^⌊k / K'⌋, s1),   K' = ⌊K / (log2⌊s1 / s0⌋ + 1)⌋

The defaults are improved consistency training (Song & Dhariwal, 2023; arXiv:2310.14189): doubling, no average, neighbours drawn
so that log t is nearly normal (`p_mean`, `p_std`), λ = 1 / (t − s), and the pseudo-Huber distance √(‖a − b‖² + c²) − c with
c = 0.00054 √D. The others are means over dimensions, `perceptual` LPIPS or the bundled features as of `vqgan`. Both values
have the same dropout.

Sampled by `renoise`: one step is f of pure noise, more put noise back and jump again.

Ours: the denoiser may be of any formulation: F = (D − k_skip x) / k_out with EDM's k, which is F itself where D is EDM's with
the same σd, so that a student of any teacher begins with its weights; ε and the greatest level are the denoiser's, within EDM's
0.002 and 80; levels of one with a table are the nearest of it; a `guidance` of the teacher, learned for good.

Errors: a teacher that is not there, no denoiser, or of other data; more levels than a table has; s0 above s1; an average of
f with N doubling.
"""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.random import fork_rng

from gencli.config import Part, opt, part
from gencli.core import Batch, Losses, Spec, Turn, full_precision
from gencli.errors import GencliError
from gencli.models.diffusion._distilled import heun
from gencli.models.diffusion._family import DiffusionModel, edm, rows, wide
from gencli.models.diffusion._to_the_end import ToTheEnd, follow
from gencli.samplers._levels import scheduled


class Consistency(ToTheEnd):
    """A function from any point of a path to its end."""

    training_only: ClassVar[tuple[str, ...]] = ("target.",)

    @dataclass(frozen=True)
    class Config:
        teacher: str = opt("", "the run whose paths are learned (distillation); empty = learn from data alone")
        guidance: float = opt(1.0, "guidance scale of the teacher, learned for good", low=0)
        discretisation: Literal["fixed", "growing", "doubling"] = opt("doubling", "how the number of levels grows")
        least_levels: int = opt(10, "intervals between levels at the start", low=1)
        most_levels: int = opt(1280, "intervals between levels at the end, and throughout if fixed", low=1)
        neighbours: Literal["uniform", "lognormal"] = opt("lognormal", "which levels are trained how often")
        p_mean: float = opt(-1.1, "mean of log σ of lognormal neighbours")
        p_std: float = opt(2.0, "standard deviation of log σ of lognormal neighbours", low=1e-3)
        weighting: Literal["uniform", "inverse"] = opt("inverse", "weight of a pair: 1, or 1 / (t − s)")
        distance: Literal["l1", "l2", "pseudo-huber", "perceptual"] = opt("pseudo-huber", "between two end points")
        perceptual: str = opt("gencli", "perceptual network: gencli (bundled), or a safetensors file of LPIPS weights")
        target_decay: float = opt(0.0, "decay μ of the average that is the target; 0 = the model itself", low=0, high=1)
        sigma_data: float = opt(0.5, "standard deviation of the data σd", low=1e-3)
        denoiser: Part = part("models", "edm", "the denoiser of which the function is made; with a teacher its own")

    def __init__(self, config: Config, spec: Spec) -> None:
        super().__init__(config, spec)
        if config.discretisation != "fixed" and config.least_levels > config.most_levels:
            raise GencliError(
                f"least-levels {config.least_levels} is above most-levels {config.most_levels}", "lower the first"
            )
        if config.target_decay and config.discretisation == "doubling":
            raise GencliError(
                f"target-decay {config.target_decay:g} with levels that double: the average would lag behind their number",
                "use --target-decay 0, or --discretisation growing or fixed",
            )
        table = self.denoiser.levels
        if table is not None and config.most_levels >= len(table):
            raise GencliError(
                f"most-levels {config.most_levels}: between the denoiser's {len(table)} levels are {len(table) - 1} intervals",
                f"use --most-levels {len(table) - 1} or less",
            )
        self.target = deepcopy(self.denoiser).requires_grad_(False) if config.target_decay else None

    # ----------------------------------------------------------------------------------------------------------- the function

    def denoise(self, x: Tensor, sigma: Tensor, **cond: Tensor) -> Tensor:
        """The end of the path through x `(N, *shape)` at level σ `()` or `(N,)`."""
        return self.end(self.denoiser, x, sigma, cond)

    def end(self, denoiser: DiffusionModel, x: Tensor, sigma: Tensor, cond: Batch) -> Tensor:
        """f = c_skip x + (c_out / k_out) (D − k_skip x), whose last factor is 1 − ε / σ."""
        sigma = wide(sigma)
        data, past = self.config.sigma_data, sigma - self.sigma_min
        gain = past / sigma
        skip = data**2 / (past**2 + data**2) - gain * edm(data).skip(sigma)
        return rows(skip, x) * x + rows(gain, x) * denoiser.denoise(x, sigma, **cond)

    # ----------------------------------------------------------------------------------------------------------- the schedule

    def grid(self, intervals: int) -> Tensor:
        """The levels t_1 < … < t_N, one more than intervals, float64."""
        return scheduled(self.denoiser, intervals + 1, "karras", self.public_name())[:-1].flip(0)

    def intervals(self, turn: Turn) -> int:
        """N − 1 in this turn."""
        least, most, way = self.config.least_levels, self.config.most_levels, self.config.discretisation
        if way == "fixed":
            return most
        if way == "doubling":
            each = turn.steps // (int(math.log2(most // least)) + 1)
            return min(least * 2 ** (turn.step // max(each, 1)), most)
        return max(1, math.ceil(math.sqrt(turn.step / turn.steps * ((most + 1) ** 2 - least**2) + least**2) - 1))

    def decay(self, turn: Turn) -> float:
        """μ in this turn; the first begins the average."""
        if turn.step == 0:
            return 0.0
        grows = self.config.discretisation == "growing"
        return self.config.target_decay ** (self.config.least_levels / self.intervals(turn) if grows else 1)

    def chances(self, grid: Tensor) -> Tensor:
        """The probability `(N − 1,)` of each pair of neighbours."""
        if self.config.neighbours == "uniform":
            return torch.ones_like(grid[1:]) / (len(grid) - 1)
        below = torch.special.ndtr((grid.log() - self.config.p_mean) / self.config.p_std)
        return below.diff() / (below[-1] - below[0])

    # --------------------------------------------------------------------------------------------------------------- the loss

    def loss(self, batch: Batch, turn: Turn) -> Losses:
        data, cond = self.prepared(batch, turn.rng)
        grid = self.grid(self.intervals(turn))
        grid = grid if data.device.type == "mps" else grid.to(data.device)
        place = turn.rng.at("levels").multinomial(self.chances(grid).expand(len(data), -1)).to(grid.device)
        low, high = grid[place], grid[place + 1]
        noise = self.noise_like(data, cond, turn.rng.at("noise"))
        x = data + rows(high, data) * noise
        with torch.no_grad(), fork_rng([data.device] if data.is_cuda else []):
            before = self.back(x, high, low, cond) if self.config.teacher else data + rows(low, data) * noise
            target = self.denoiser if self.target is None or turn.step == 0 else self.target
            wanted = self.end(target, before, low, cond)
        made = self.end(self.denoiser, x, high, cond)
        with full_precision(data.device):
            each = self.apart(made.float(), wanted.float())
        if self.config.weighting == "inverse":
            each = each / rows(high - low, each)
        return {"loss": each.mean(), "each": each}

    def back(self, x: Tensor, here: Tensor, there: Tensor, cond: Batch) -> Tensor:
        """One step along the teacher's path."""
        return heun(self.teaching(cond, x.device, self.config.guidance), x, here, there)

    # ------------------------------------------------------------------------------------------------------------- the target

    @torch.no_grad()
    def after_step(self, turn: Turn) -> None:
        """The denoiser's own, and a step of the target's average."""
        self.denoiser.after_step(turn)
        if self.target is None:
            return
        weight = 1 - self.decay(turn)
        follow(self.target, self.denoiser, weight)
