"""Improved Denoising Diffusion Probabilistic Models (Nichol & Dhariwal, 2021). arXiv:2102.09672

Offers: sample, bound

DDPM's chain whose variances are learned too: the network has a second half of output channels, v = (out + 1) / 2,

    log var = v log β + (1 − v) log β̃,   loss = L_simple + λ L_vlb   (`hybrid`)

with L_simple DDPM's squared error and L_vlb the variational bound in bits per dimension, T times the term of the level drawn,
in which the mean is held fixed, so that it trains v alone. `vlb` is L_vlb by itself, mean and all; its levels are drawn by
importance, p_t ∝ √E[L_t²] over the last ten losses of each (every level evenly until all have ten, and a share of 0.001
always), and weighted by 1 / (T p_t). `simple` is DDPM with the variance β and no second half.

With the network `adm` this is ADM (Dhariwal & Nichol, 2021; arXiv:2105.05233), with `dit` DiT (Peebles & Xie, 2022;
arXiv:2212.09748). The network is told the index of the level, scaled to 1,000. v is kept inside [0, 1] when sampling and in
the bound (`log_prob`), where D is clipped to the data's range; in training neither is.

Ours: DDPM's choices of prediction and schedule; labels with a null.

Errors: as in `ddpm`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from gencli.config import Part, opt, part
from gencli.core import Batch, Losses, Rng, Spec, Turn, all_reduce
from gencli.models.diffusion._chain import ChainSettings, ScheduledChain, divergence, nats_of, steps_of
from gencli.models.diffusion._family import FORMULATIONS, rows, wide
from gencli.models.diffusion._schedules import ScheduleName

HISTORY = 10  # losses kept of each level
EVENLY = 0.001  # share of the levels drawn evenly
TOLD = 1000  # what the network is told of the noisiest level, nearly


class Iddpm(ScheduledChain):
    """A chain of denoising steps with learned variances."""

    training_only: ClassVar[tuple[str, ...]] = ("history.",)

    @dataclass(frozen=True)
    class Config(ChainSettings):
        timesteps: int = opt(4000, "levels of noise T", low=2, high=100_000)
        schedule: ScheduleName = opt("cosine", "how the noise grows")
        loss: Literal["simple", "hybrid", "vlb"] = opt(
            "hybrid", "what is minimised: squared error, with λ times the bound, or the bound"
        )
        vlb_weight: float = opt(0.001, "weight λ of the bound in the hybrid loss", low=0)
        label_dropout: float = opt(0.1, "share of labels replaced by the null label in training", low=0, high=1)
        net: Part = part("networks", "unet", "the denoising network", role="denoise")

    def __init__(self, config: Config, spec: Spec) -> None:
        super().__init__(config, spec)
        scale = TOLD / config.timesteps
        self.formulation = FORMULATIONS[config.prediction](lambda sigma: self.index(sigma) * scale)
        self.history = History(config.timesteps) if config.loss == "vlb" else None
        self._rising = self._levels.flip(0)
        self._steps = steps_of(self._rising)
        self._seen: list[tuple[Tensor, Tensor, Tensor]] = []  # since the last step: places, levels, losses

    def outputs(self) -> int:
        return super().outputs() * (1 if self.config.loss == "simple" else 2)

    # ----------------------------------------------------------------------------------------------------------- denoising

    def predict(self, x: Tensor, sigma: Tensor, **cond: Tensor) -> Tensor:
        return self.predict_both(x, sigma, **cond)[0]

    def predict_both(self, x: Tensor, sigma: Tensor, **cond: Tensor) -> tuple[Tensor, Tensor]:
        """The network's prediction F, and v as it is."""
        made = super().predict(x, sigma, **cond)
        if self.config.loss == "simple":
            return made, made.new_ones(())
        mean, out = made.chunk(2, dim=1)
        return mean, (out + 1) / 2

    def denoise_spread(self, x: Tensor, sigma: Tensor, **cond: Tensor) -> tuple[Tensor, Tensor]:
        """D, and v in [0, 1], of one call of the network."""
        predicted, share = self.predict_both(x, sigma, **cond)
        return self.estimate_x0(x, sigma, predicted), share.clamp(0, 1)

    def reverse(self, x: Tensor, sigma: Tensor, **cond: Tensor) -> tuple[Tensor, Tensor]:
        return self.denoise_spread(x, sigma, **cond)

    # ------------------------------------------------------------------------------------------------------------ the loss

    def loss(self, batch: Batch, turn: Turn) -> Losses:
        """The objective of each item at a level of its own; the mean over items."""
        kind, logged = self.config.loss, {}
        data, cond = self.prepared(batch, turn.rng)
        step, weight = self._draw(len(data), turn.rng.at("levels"))
        sigma = at(self._rising, step)
        noise = self.noise_like(data, cond, turn.rng.at("noise"))
        x = data + rows(sigma, data) * noise
        predicted, share = self.predict_both(x, sigma, **cond)
        apart = predicted - self.formulation.target(data, noise, sigma)
        each = simple = apart.square().flatten(1).mean(1)
        if kind != "simple":
            if kind == "hybrid":
                predicted, apart = predicted.detach(), apart.detach()
            mean = self.estimate_x0(x, sigma, predicted)
            bits = self.bits(data, mean, apart, share, step, sigma)
            each = simple + self.config.vlb_weight * bits if kind == "hybrid" else weight * bits
            self._remember(turn.rng.places, step, bits)
            logged = {"simple": simple.detach().mean(), "vlb": (weight * bits).detach().mean()}
        return {"loss": each.mean(), "each": each, **logged}

    def bits(self, data: Tensor, mean: Tensor, apart: Tensor, share: Tensor, step: Tensor, sigma: Tensor) -> Tensor:
        """T L_t `(N,)` in bits per dimension, from D, the error of F, v, and the step of each item."""
        low, gap = (rows(at(values, step), data) for values in (self._steps.low, self._steps.gap))
        price = at(self._steps.gain, step) * self.formulation.out(sigma) ** 2
        nats = divergence(rows(price, data) * apart.square(), share, gap)
        first = (step == 0).nonzero()[:, 0]
        if len(first):
            log_variance = low[first] + share[first] * gap[first]
            nats = nats.index_copy(0, first, nats_of(data[first], mean[first], log_variance, self.spec.x))
        return nats * (self.config.timesteps / (data[0].numel() * math.log(2)))

    # ---------------------------------------------------------------------------------------------------- levels of the vlb

    def _draw(self, n: int, rng: Rng) -> tuple[Tensor, Tensor]:
        """Levels counted from the cleanest, and the weights of their losses."""
        count = self.config.timesteps
        if self.history is None:
            return rng.integers((n,), count), torch.ones(n, device=rng.device)
        chance = self.history.chances()
        step = rng.multinomial(chance.expand(n, count))
        return step.to(rng.device), (1 / (count * chance[step])).float().to(rng.device)

    def _remember(self, places: Tensor, step: Tensor, bits: Tensor) -> None:
        if self.history is not None and self.training:
            self._seen.append((places, step, bits.detach()))

    def after_step(self, turn: Turn) -> None:
        """Every process learns of every row's loss, in the order of the global batch."""
        if self.history is None:
            return
        seen = torch.zeros(len(turn.rng), 2, device=self.history.losses.device)
        for places, step, bits in self._seen:
            seen[places] = torch.stack([step.to(bits), bits], dim=1).to(seen)
        self._seen = []
        all_reduce(seen)
        self.history.add(seen[:, 0].round().long(), seen[:, 1])


def at(table: Tensor, step: Tensor) -> Tensor:
    """The entries of a table in float64 at steps `(N,)`, on their device where it has float64."""
    table = table if step.device.type == "mps" else table.to(step.device)
    return table[step.to(table.device)]


class History(nn.Module):
    """The last ten losses of every level."""

    losses: Tensor  # (T, HISTORY)
    counts: Tensor  # (T,) how many there ever were

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.register_buffer("losses", torch.zeros(levels, HISTORY))
        self.register_buffer("counts", torch.zeros(levels, dtype=torch.long))

    def chances(self) -> Tensor:
        """The probability `(T,)` of each level."""
        losses = wide(self.losses)
        even = torch.full_like(losses[:, 0], 1 / len(losses))
        if int(self.counts.min()) < HISTORY:
            return even
        size = losses.square().mean(1).sqrt()
        return torch.lerp(size / size.sum(), even, EVENLY)

    def add(self, step: Tensor, loss: Tensor) -> None:
        """Losses of levels `(B,)`, of which one may come often; the oldest are forgotten first."""
        order = step.argsort(stable=True)
        step, loss = step[order], loss[order]
        fresh = step.bincount(minlength=len(self.counts))
        before = (fresh.cumsum(0) - fresh)[step]
        nth = torch.arange(len(step), device=step.device) - before  # of its level in this batch
        kept = nth >= fresh[step] - HISTORY
        slot = (self.counts[step] + nth) % HISTORY
        self.losses[step[kept], slot[kept]] = loss[kept].to(self.losses)
        self.counts += fresh
