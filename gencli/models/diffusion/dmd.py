"""One-step Diffusion with Distribution Matching Distillation (Yin et al., 2023). arXiv:2311.18828

Offers: sample

A generator G(z) of one call learns what a frozen denoiser D_real knows, by the gradient of the divergence of their laws with
noise of level σ on both, KL(p_fake ‖ p_real). With x = G(z) and x_σ = x + σ n,

    ∇_θ = E w (s_fake(x_σ) − s_real(x_σ)) ∂G/∂θ,   s(x_σ) = (D(x_σ, σ) − x_σ) / σ²
    w = σ² · numbers / ‖D_real(x_σ, σ) − x‖₁   (`normalised`, the paper's equation 8),   or 1   (`kl`)

where the paper's α is 1 in these coordinates. D_fake is trained at every step on what G makes, by the denoiser's own loss and
at its own levels; the σ above are those of 0.02 to 0.98 of the denoiser's time, evenly. All three begin with the same
weights: G is the denoiser at its greatest level, of pure noise. Since the divergence alone drops modes, G is also held to the
ends y of some of D_real's own paths, which Heun's method follows from noises z before training:

    loss_G = ½ ‖G(z) − stop(G(z) − w (s_fake − s_real))‖² + λ d(G(z′), y′)

Means over numbers. Logged: `pull`, the first term, and `regression`, d. Sampled by `renoise` with one step; there is no second.

Without a `teacher` the run begins with `first` steps of the denoiser's own loss, then distils that, as of
`progressive-distillation`. D_real is told a `guidance`, which G learns for good (the paper's for text to image).

The paper's: λ 0.25, 18 steps, 100,000 pairs for CIFAR-10 with classes, and d = LPIPS (`perceptual`). Ours: d is the squared
error unless said otherwise, which small images and points can do with (and with a λ of 1 or 2); new noises in D_fake's turn,
where the paper's has those of G's; G, D_fake and the pairs are told no class as often as the denoiser was in its training.

Errors: a teacher that is not there, of other data, or whose estimate is no mean, which has no score; a student with another
network; in sampling more steps than one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from gencli.config import Part, opt, part
from gencli.core import Batch, Frozen, Losses, Phase, Rng, Spec, Turn, full_precision
from gencli.errors import GencliError
from gencli.guidance.cfg import guided
from gencli.models.diffusion._distilled import heun
from gencli.models.diffusion._family import DiffusionModel, rows
from gencli.models.diffusion._teacher import teacher_of
from gencli.models.diffusion._to_the_end import ToTheEnd
from gencli.samplers._levels import scheduled, table_of

EDGE = 0.02  # share of the denoiser's time at either end where laws are not compared
AT_ONCE = 256  # paths that are followed together


class Dmd(ToTheEnd):
    """A generator, the denoiser that it is held against, and one of what it makes."""

    training_only: ClassVar[tuple[str, ...]] = ("real.", "fake.", "pair_")
    improves: ClassVar[str] = "generator/loss"

    @dataclass(frozen=True)
    class Config:
        teacher: str = opt("", "the run that is distilled; empty = train a denoiser first, in the same run")
        first: int = opt(2000, "steps of training that denoiser, where there is no teacher", low=1)
        guidance: float = opt(1.0, "guidance scale of the teacher, learned for good", low=0)
        weighting: Literal["normalised", "kl"] = opt(
            "normalised", "weight of the difference of scores: σ² by the error of x0, or 1"
        )
        regression: float = opt(0.25, "weight λ of the distance to ends of the teacher's paths; 0 = none", low=0)
        pairs: int = opt(1000, "paths that are followed before training", low=1)
        pair_steps: int = opt(18, "steps of Heun's along such a path", low=1)
        distance: Literal["l1", "l2", "pseudo-huber", "perceptual"] = opt("l2", "between two end points")
        perceptual: str = opt("gencli", "perceptual network: gencli (bundled), or a safetensors file of LPIPS weights")
        denoiser: Part = part("models", "edm", "the denoiser that all begin with; with a teacher its own")

    def __init__(self, config: Config, spec: Spec) -> None:
        super().__init__(config, spec)
        if not isinstance(self.denoiser, DiffusionModel) or self.denoiser.meaning != "mean":
            raise GencliError(
                f"dmd compares scores, and {config.denoiser.name} has none: its estimate is no mean of data given x",
                "distil a denoiser such as ddpm or edm",
            )
        self.fake = deepcopy(self.denoiser)
        self.real = None if config.teacher else deepcopy(self.denoiser).requires_grad_(False)
        shapes = {"noise": spec.x.shape, "end": spec.x.shape} if config.regression else {}
        for key, shape in shapes.items():
            self.register_buffer(f"pair_{key}", torch.zeros(config.pairs, *shape))
        for key, field in spec.cond.items() if config.regression else ():
            kind = torch.long if field.vocab is not None and field.range is None else torch.float32
            self.register_buffer(f"pair_{key}", torch.zeros(config.pairs, *field.shape, dtype=kind))

    @cached_property
    def levels(self) -> Tensor:  # type: ignore[override]
        """The one that the generator is called at, the greatest."""
        return scheduled(self.denoiser, 1, "karras", self.public_name())[:1]

    def phases(self) -> list[Phase]:
        restarts = () if self.config.teacher else (self.config.first,)
        made = {"generator": self.denoiser, "fake": self.fake}
        return [Phase(name, (module,), restarts=restarts) for name, module in made.items()]

    def train(self, mode: bool = True) -> Dmd:
        """What is distilled never drops units out."""
        super().train(mode)
        if self.real is not None:
            self.real.eval()
        return self

    # ------------------------------------------------------------------------------------------------------------- the losses

    def loss(self, batch: Batch, turn: Turn) -> Losses:
        if turn.phase == "generator" and self.learns(turn.step):
            return self.denoiser.loss(batch, turn)
        data, cond = self.prepared(batch, turn.rng)
        noise = self.noise_like(data, cond, turn.rng.at("noise"))
        if turn.phase == "fake":
            each = self.fake_errors(noise, cond, turn.rng)
            return {"loss": each.mean(), "each": each}
        made = self.made(noise, cond)
        pulled = (made - self.pull(made.detach(), cond, turn.rng)).detach()
        each = (made - pulled).square().flatten(1).mean(1) / 2
        shown = {"pull": each.mean().detach()}
        if self.config.regression:
            apart = self.regressed(len(data), turn.rng.at("pairs"))
            each = each + self.config.regression * apart.to(each)
            shown["regression"] = apart.mean().detach()
        return {"loss": each.mean(), "each": each, **shown}

    def learns(self, step: int) -> bool:
        """Whether the denoiser is in its first training."""
        return not self.config.teacher and step < self.config.first

    def made(self, noise: Tensor, cond: Batch) -> Tensor:
        """G: x from standard normal noise `(N, *shape)`."""
        level = self.levels[0]
        return self.denoise(self.start(noise, level), level, **cond)

    def fake_errors(self, noise: Tensor, cond: Batch, rng: Rng) -> Tensor:
        """`(N,)` the denoiser's own errors on what the generator makes."""
        with torch.no_grad():
            made = self.made(noise, cond)
        sigma = self.fake.draw_sigma(len(made), rng.at("levels"))
        return self.fake.errors(made, self.noise_like(made, cond, rng.at("diffuse")), sigma, cond)

    @torch.no_grad()
    def pull(self, x: Tensor, cond: Batch, rng: Rng) -> Tensor:
        """w (s_fake − s_real) at x, a level and noise of each item's own."""
        span = self.span if x.device.type == "mps" else self.span.to(x.device)
        sigma = span[rng.at("levels").integers((len(x),), len(span)).to(span.device)]
        noisy = x + rows(sigma, x) * self.noise_like(x, cond, rng.at("diffuse"))
        real = self.real_at(cond, x.device)(noisy, sigma)
        apart = self.fake.denoise(noisy, sigma, **cond) - real
        if self.config.weighting == "kl":
            return apart / rows(sigma**2, x)
        return apart / rows((real - x).abs().flatten(1).mean(1).clamp(min=1e-6), x)

    def real_at(self, cond: Batch, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
        """D_real(x, σ) with the conditions inside, guided."""
        if self.real is None:
            return self.teaching(cond, device, self.config.guidance)
        return guided(self.real.denoise, cond, self.config.guidance)

    @cached_property
    def span(self) -> Tensor:
        """The levels at which laws are compared, float64."""
        table = table_of(self.denoiser)
        cut = round(EDGE * len(table))
        return table[cut : len(table) - cut]

    @cached_property
    def taught(self) -> Frozen:
        """The teacher, whose estimate must be a mean to have a score."""
        return Frozen(teacher=teacher_of(self.config.teacher, self.spec, ("mean",)))

    # -------------------------------------------------------------------------------------------------------------- the pairs

    def regressed(self, n: int, rng: Rng) -> Tensor:
        """`(n,)` distances of what the generator makes of some pairs' noises from their ends."""
        held = {key.removeprefix("pair_"): value for key, value in self.named_buffers() if key.startswith("pair_")}
        index = rng.integers((n,), self.config.pairs).to(held["noise"].device)
        noise, end = held.pop("noise")[index], held.pop("end")[index]
        made = self.made(noise, {key: value[index] for key, value in held.items()})
        with full_precision(made.device):
            return self.apart(made.float(), end.float())

    @torch.no_grad()
    def follow_paths(self) -> None:
        """The ends of the pairs' noises."""
        for start in range(0, self.config.pairs if self.config.regression else 0, AT_ONCE):
            part = slice(start, start + AT_ONCE)
            noise = self.get_buffer("pair_noise")[part]
            cond = {key: self.get_buffer(f"pair_{key}")[part] for key in self.spec.cond}
            self.get_buffer("pair_end")[part] = self.end_of(noise, self.real_at(cond, noise.device))

    def end_of(self, noise: Tensor, denoise: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Where the probability-flow ODE leads from pure noise."""
        levels = scheduled(self.denoiser, self.config.pair_steps, "karras", self.public_name())[:-1]
        each = [level.expand(len(noise)).to("cpu" if noise.device.type == "mps" else noise.device) for level in levels]
        x = self.start(noise, levels[0])
        for here, there in itertools.pairwise(each):
            x = heun(denoise, x, here, there)
        return denoise(x, each[-1])

    # ------------------------------------------------------------------------------------------------------ beginning, stepping

    def initialise(self, data: Iterator[Batch], count: int, rng: Rng) -> None:
        """All three begin with the teacher's weights, and its paths are followed."""
        if self.config.regression:
            self.draw_pairs(data, rng.at("pairs"))
        if not self.config.teacher:
            return self.denoiser.initialise(data, count, rng)
        self.must_inherit("weights it begins with")
        self.begin()

    def draw_pairs(self, data: Iterator[Batch], rng: Rng) -> None:
        """The noises of the pairs, and conditions of the data, of which some are dropped as in training."""
        filled = 0
        while filled < self.config.pairs:
            batch = next(data)
            size = min(len(batch["x"]), self.config.pairs - filled)
            each = Rng.rows(rng.at(filled).integers((1, size), 1 << 62)[0].tolist(), rng.device)
            held, cond = self.prepared({key: value[:size] for key, value in batch.items()}, each)
            for key, value in {**cond, "noise": self.noise_like(held, cond, each.at("noise"))}.items():
                self.get_buffer(f"pair_{key}")[filled : filled + size] = value.to(self.get_buffer(f"pair_{key}"))
            filled += size

    def begin(self) -> None:
        """Distillation begins with the denoiser as it is."""
        for copy in (self.fake, self.real):
            if copy is not None:
                copy.load_state_dict(self.denoiser.state_dict())
        self.follow_paths()

    @torch.no_grad()
    def after_step(self, turn: Turn) -> None:
        """The denoisers' own; at the end of a first training distillation begins."""
        moved: Any = self.denoiser if turn.phase == "generator" else self.fake
        moved.after_step(turn)
        if turn.phase == "generator" and self.learns(turn.step) and not self.learns(turn.step + 1):
            self.begin()
