"""The loop that every sampler of denoisers shares: levels, start, guidance, steps."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from gencli.core import Batch, Denoiser, Model, Rng, Spec
from gencli.errors import GencliError
from gencli.guidance import cfg, clip
from gencli.samplers._base import Frame, Sampler

Denoise = Callable[[Tensor, Tensor], Tensor]  # (x, sigma) -> x0, conditions and guidance inside

Spacing = Literal["leading", "trailing", "linspace", "quad"]
CONTINUOUS_LEVELS, CONTINUOUS_RHO = 1000, 7.0  # what stands in for the table of a model trained at any level


def spaced(model: Any, steps: int, spacing: Spacing, sampler: str) -> Tensor:
    """`steps` of the model's levels, descending, then 0; float64.

    `trailing` and `linspace` start at the noisiest level, `leading` and `quad` (the paper's) below it. A model trained at any
    level is given 1,000 of them, spaced as EDM's (sigma^(1/7) evenly).

    Raises:
        GencliError: if `steps` is not between 1 and the number of levels.
    """
    table = _table(model)
    if not 1 <= steps <= len(table):
        raise GencliError(
            f"{sampler}: steps is {steps}, the model has {len(table)} noise levels", f"use --steps 1 to {len(table)}"
        )
    return torch.cat([table[len(table) - 1 - timesteps(len(table), steps, spacing).flip(0)], table.new_zeros(1)])


def timesteps(total: int, steps: int, spacing: Spacing) -> Tensor:
    """`steps` different indices of 0 … total − 1 (0 is the cleanest), ascending."""
    count = torch.arange(steps, dtype=torch.float64)
    if spacing == "leading":
        return (count * (total // steps)).long()
    if spacing == "trailing":
        return ((total - count * (total / steps)).round().long() - 1).flip(0)
    if spacing == "linspace":
        even = count * ((total - 1) / (steps - 1)) if steps > 1 else torch.full_like(count, total - 1)
        return even.round().long()
    squares = ((0.8 * total) ** 0.5 * count / max(steps - 1, 1)).square().long()
    return ((squares - count).cummax(0).values + count).long()  # where squares repeat, the next index is taken


def _table(model: Any) -> Tensor:
    if model.levels is not None:
        return model.levels.double().cpu()
    noisiest, cleanest = (float(end) ** (1 / CONTINUOUS_RHO) for end in (model.sigma_max, model.sigma_min))
    return torch.linspace(noisiest, cleanest, CONTINUOUS_LEVELS, dtype=torch.float64) ** CONTINUOUS_RHO


class DiffusionSampler(Sampler):
    """A sampler of `Denoiser`s states the meanings it accepts, its levels, and one step."""

    interface = Denoiser
    accepts: ClassVar[tuple[str, ...]] = ("mean", "transport")

    @abstractmethod
    def levels(self, model: Any) -> Tensor:
        """The sigmas visited, float64, usually descending to 0."""

    @abstractmethod
    def step(
        self, denoise: Denoise, x: Tensor, here: Tensor, there: Tensor, memory: dict[str, Any], rng: Rng
    ) -> Tensor:
        """x at sigma `there` from x at sigma `here`; `memory` outlives the step; `memory["x0"]` is shown to the user."""

    def check(self, model: Model) -> None:
        super().check(model)
        meaning = model.meaning
        if meaning not in self.accepts:
            raise GencliError(
                f"sampler {type(self).__name__} is wrong for a denoiser whose estimate is of kind '{meaning}'",
                f"it needs {' or '.join(self.accepts)}; see `gencli list samplers`",
            )

    def frames(self, model: Model, spec: Spec, n: int, rng: Rng, cond: Batch, guidance: float = 1.0) -> Iterator[Frame]:
        self.check(model)
        assert isinstance(model, Denoiser)  # checked above with a message
        levels = self.levels(model)
        dtype = torch.float32 if model.device.type == "mps" else torch.float64
        denoise = clip.clipped(cfg.guided(model.denoise, cond, guidance), spec.x.range if self.clips else None)
        noise = rng.at("start").normal((n, *spec.x.shape)).to(model.device, dtype)
        x = model.start(noise, levels[0])
        yield from self.run(denoise, x, levels.to(model.device, dtype), rng)

    @property
    def clips(self) -> bool:
        """Whether estimates are clipped to the data's range."""
        return getattr(self.config, "clip", True)

    def run(
        self,
        denoise: Denoise,
        x: Tensor,
        levels: Tensor,
        rng: Rng,
        after: Callable[[Tensor, Tensor, Rng], Tensor] | None = None,
        rise: str = "renoise",
    ) -> Iterator[Frame]:
        """Walk the levels from wherever `x` is; `after` replaces parts of x after each step (masked edits)."""
        memory: dict[str, Any] = {}
        total = len(levels) - 1
        for i, (here, there) in enumerate(itertools.pairwise(levels)):
            noise = rng.at("step", i)
            if there > here and rise == "renoise":
                x = x + (there**2 - here**2).sqrt() * noise.normal(x.shape).to(x)
            else:
                x = self.step(denoise, x, here, there, memory, noise)
            if after is not None:
                x = after(x, there, noise)
            shown = x if i == total - 1 else memory.get("x0", x)
            yield Frame(shown, i, total, {"sigma": there})

    def evaluations(self, model: Model, spec: Spec) -> int:
        return len(self.levels(model)) - 1
