"""The loop that every sampler of denoisers shares: levels, start, guidance, steps."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from gencli.config import opt
from gencli.core import Batch, Denoiser, Model, Rng, Spec
from gencli.errors import GencliError
from gencli.guidance._base import PLAIN, Denoise, Guidance
from gencli.guidance._compose import composed
from gencli.samplers._base import Frame, Sampler, without_guidance
from gencli.samplers._levels import NoiseSchedule, scheduled

After = Callable[[Tensor, Tensor, Rng], Tensor]
"""x after a step, the level that it is at, and the step's randomness, to another x."""

Memory = dict[str, Any]
"""What outlives a step; `x0` is shown to the user, `spread` is the learned variance of the last call, in [0, 1]."""


class DiffusionSampler(Sampler):
    """A sampler of `Denoiser`s states the meanings it accepts, its levels, and one step."""

    interface = Denoiser
    accepts: ClassVar[tuple[str, ...]] = ("mean", "transport")
    own: ClassVar[NoiseSchedule] = "karras"  # the levels that its paper, or common use, gives it
    calls: ClassVar[int] = 1  # evaluations of the denoiser in a step
    chain: ClassVar[bool] = False  # settles at one law from any start, so that pure noise need not be a fair one

    @dataclass(frozen=True)
    class Config:
        steps: int = opt(50, "steps from noise to data")
        noise_schedule: NoiseSchedule = opt(
            "own", "levels visited: the sampler's own, evenly in the model's own time, or evenly in a function of σ"
        )
        clip: bool = opt(True, "keep estimates inside the data's range")

    def levels(self, model: Any) -> Tensor:
        """The sigmas visited, float64, usually descending to 0."""
        chosen = self.config.noise_schedule
        return scheduled(model, self.config.steps, self.own if chosen == "own" else chosen, self.public_name())

    @abstractmethod
    def step(self, denoise: Denoise, x: Tensor, here: Tensor, there: Tensor, memory: Memory, rng: Rng) -> Tensor:
        """x at sigma `there` from x at sigma `here`; `memory["x0"]` is the estimate that is shown."""

    @classmethod
    def suits(cls, model: type[Model]) -> bool:
        """Its estimate, where all models of the class have one kind, is of a kind that this sampler accepts."""
        return super().suits(model) and getattr(model, "meaning", "mean") in cls.accepts

    def check(self, model: Model) -> None:
        super().check(model)
        meaning = model.meaning
        if meaning not in self.accepts:
            raise GencliError(
                f"sampler {type(self).__name__} is wrong for a denoiser whose estimate is of kind '{meaning}'",
                f"it needs {' or '.join(self.accepts)}; see `gencli list samplers`",
            )

    def frames(
        self, model: Model, spec: Spec, n: int, rng: Rng, cond: Batch, guidance: float | Guidance = PLAIN
    ) -> Iterator[Frame]:
        self.check(model)
        memory = self.recalled(model, spec, n, cond)
        levels = self.levels(model)
        denoise = self.denoiser(model, spec, cond, Guidance.of(guidance), memory)
        dtype = torch.float32 if model.device.type == "mps" else torch.float64
        noise = rng.at("start").normal((n, *spec.x.shape)).to(model.device, dtype)
        x = self.begin(model, noise, levels[0], memory)
        yield from self.run(denoise, x, levels.to(model.device, dtype), rng, self.after(memory), memory=memory)

    def recalled(self, model: Any, spec: Spec, n: int, cond: Batch) -> Memory:
        """What the steps know besides x, before the first; samplers that are given more than conditions take it here."""
        return {}

    def after(self, memory: Memory) -> After | None:
        """What replaces parts of x after each step; None for nothing."""
        return None

    def begin(self, model: Any, noise: Tensor, level: Tensor, memory: Memory) -> Tensor:
        """x at the first level, from standard normal noise."""
        return model.start(noise, level)

    def denoiser(self, model: Any, spec: Spec, cond: Batch, guidance: Guidance, memory: Memory) -> Denoise:
        """The model guided as asked; `memory["spread"]` is what it last said of its variance, where it learned one."""
        span = spec.x.range if self.clips else None
        told, guidance = guidance.left(model)
        plain = partial(self.asked(model, memory), **told)
        takes = getattr(model, "spec", spec).cond  # a bare function of x and a level takes what there is
        known = {key: value for key, value in cond.items() if key in takes}
        kept = without_guidance(known, takes)
        dropped = {key: value for key, value in known.items() if key not in kept}
        return composed(plain, dropped, guidance, span, cond.get("label"), kept)

    def asked(self, model: Any, memory: Memory) -> Callable[..., Tensor]:
        """What is guided: x0 of x, a level and conditions."""
        return _remembering(model, memory) if hasattr(model, "denoise_spread") else model.denoise

    @property
    def clips(self) -> bool:
        """Whether estimates are clipped to the data's range."""
        return bool(self.config.clip)

    def run(
        self,
        denoise: Denoise,
        x: Tensor,
        levels: Tensor,
        rng: Rng,
        after: After | None = None,
        rise: str = "renoise",
        memory: Memory | None = None,
    ) -> Iterator[Frame]:
        """Walk the levels from wherever `x` is; `after` replaces parts of x after each step (masked edits).

        A frame shows the estimate of x0; `info["noisy"]` is x as the network sees it, with unit variance for unit data.
        """
        memory = {} if memory is None else memory
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
            yield Frame(shown, i, total, {"sigma": there, "noisy": x / (1 + there**2).sqrt()})

    def evaluations(self, model: Model, spec: Spec) -> int:
        """`calls` a step, and one for the last, which has nowhere left to look ahead to."""
        return self.calls * (len(self.levels(model)) - 2) + 1


def _remembering(model: Any, memory: Memory) -> Callable[..., Tensor]:
    """`model.denoise` that keeps what the call said of the variance; guidance asks with conditions last."""

    def denoise(x: Tensor, sigma: Tensor, **cond: Tensor) -> Tensor:
        x0, memory["spread"] = model.denoise_spread(x, sigma, **cond)
        return x0

    return denoise
