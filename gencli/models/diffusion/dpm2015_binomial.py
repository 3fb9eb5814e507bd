"""Deep Unsupervised Learning using Nonequilibrium Thermodynamics: bits (Sohl-Dickstein et al., 2015). arXiv:1503.03585

Offers: sample, bound

    q(x_t | x_{t−1}) = B((1 − β_t) x_{t−1} + β_t / 2),   q(x_t | x_0) = B(a_t x_0 + (1 − a_t) / 2),   a_t = 1 − t / T

The binomial chain: β_t = 1 / (T − t + 1) redraws an equal share of the bits in every step, all of them in the end, so that the
prior costs nothing. The reverse step p(x_{t−1} | x_t) = B(f(x_t, t)) is learned on the whole bound,

    −log p(x_0) ≤ Σ_t KL(q(x_{t−1} | x_t, x_0) ‖ p(x_{t−1} | x_t))

in bits per dimension, one random t an item; entropies of bits are exact. `dpm2015` is the Gaussian chain.

A latent is all the noise of a sample, T + 1 standard normal numbers a bit: x_T is 1 where the first is below 0, x_{t−1} where Φ
of the next is below f. So a sample is a function of its noise, and a temperature of 0 takes the more likely bit each time.

Ours: f's logit is the network's output added to that of a bit which stays, ± log((2 − β_t) / β_t); the network is told t − 1,
scaled to 1,000; the step to the data is learned too; labels with a null.

Shapes: x of zeros and ones of any shape that the network takes. Errors: data that are not bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from gencli.config import Part, opt, part
from gencli.core import Batch, Losses, Model, Rng, Spec, Turn, full_precision
from gencli.errors import GencliError
from gencli.models._conditions import drop_labels, with_null
from gencli.models.diffusion._family import rows

TOLD = 1000


class Dpm2015Binomial(Model):
    """A chain that unflips bits."""

    codecs: ClassVar[tuple[Mapping[str, Any], ...]] = ({"name": "binarise"},)
    likelihood: ClassVar[Literal["exact", "bound"]] = "bound"
    mass: ClassVar[bool] = True

    @dataclass(frozen=True)
    class Config:
        timesteps: int = opt(100, "steps T", low=2, high=10_000)
        label_dropout: float = opt(0.1, "share of labels replaced by the null label in training", low=0, high=1)
        net: Part = part("networks", "unet", "the network of bits", role="denoise")

    def __init__(self, config: Config, spec: Spec) -> None:
        super().__init__(config, spec)
        if spec.x.vocab != 2:
            grid = f"of {spec.x.vocab} values" if spec.x.vocab else "without a grid"
            raise GencliError(
                f"dpm2015-binomial needs zeros and ones, the data are {spec.x.kind} {grid}",
                "give images the codec binarise, or train dpm2015",
            )
        self.net = config.net.build(spec.x, spec.x.shape[0], spec.cond)

    # ----------------------------------------------------------------------------------------------------------- the chain

    def kept(self, step: Tensor) -> Tensor:
        """a_t, the share of bits never redrawn, at steps from 0 to T."""
        return 1 - step / self.config.timesteps

    def stays(self, step: Tensor) -> Tensor:
        """The probability that a bit is the same before and after step t."""
        return 1 - 0.5 / (self.config.timesteps - step + 1)

    def noised(self, x: Tensor, step: Tensor, uniform: Tensor) -> Tensor:
        """x_t of data x."""
        kept = rows(self.kept(step), uniform)
        return (uniform < kept * x + (1 - kept) / 2).to(x)

    def posterior(self, x: Tensor, noisy: Tensor, step: Tensor) -> Tensor:
        """q(x_{t−1} = 1 | x_t, x_0)."""
        before, stays = rows(self.kept(step - 1), x), rows(self.stays(step), x)
        one = before * x + (1 - before) / 2
        seen = stays * noisy + (1 - stays) * (1 - noisy)  # the probability of x_t if x_{t−1} = 1
        return one * seen / (one * seen + (1 - one) * (1 - seen))

    def logits(self, noisy: Tensor, step: Tensor, **cond: Tensor) -> Tensor:
        """Of p(x_{t−1} = 1 | x_t), at steps `(N,)`."""
        weights = next(self.net.parameters()).dtype
        told = (step - 1) * (TOLD / self.config.timesteps)
        exact = torch.float64 if weights == torch.float64 else torch.float32
        signs = 2 * noisy - 1
        given = with_null(cond, self.spec.cond, noisy)
        made = self.net(signs.to(weights), told.to(noisy.device, exact), **given)
        return made.to(noisy) + signs * rows(torch.logit(self.stays(step)), noisy)

    def nats(self, x: Tensor, step: Tensor, uniform: Tensor, **cond: Tensor) -> Tensor:
        """KL of step t for each item `(N,)`."""
        noisy = self.noised(x, step, uniform)
        true, made = self.posterior(x, noisy, step), self.logits(noisy, step, **cond)
        with full_precision(x.device):
            entropy = -torch.xlogy(true, true) - torch.xlogy(1 - true, 1 - true)
            each = F.binary_cross_entropy_with_logits(made, true, reduction="none") - entropy
        return each.flatten(1).sum(1)

    # ------------------------------------------------------------------------------------------------------------ the loss

    def loss(self, batch: Batch, turn: Turn) -> Losses:
        """The bound of each item in bits per dimension, from one step; the mean over items."""
        count, x = self.config.timesteps, batch["x"].float()
        cond = {key: value for key, value in batch.items() if key in self.spec.cond}
        if self.training:
            cond = drop_labels(cond, self.spec.cond, self.config.label_dropout, turn.rng.at("labels"))
        step = (turn.rng.at("levels").integers((len(x),), count) + 1).to(x)
        nats = self.nats(x, step, turn.rng.at("noise").uniform(x.shape).to(x), **cond)
        each = nats * (count / (x[0].numel() * math.log(2)))
        return {"loss": each.mean(), "each": each}

    def log_prob(self, x: Tensor, rng: Rng, samples: int = 1, **cond: Tensor) -> Tensor:
        """Minus the bound `(N,)` in nats: a step drawn from each of `samples` equal parts of the chain, or all with 0."""
        count = self.config.timesteps
        parts, total = samples or count, x.new_zeros(len(x), dtype=torch.float32)
        for part_ in range(parts):
            stream = rng.at("step", part_)
            inside = stream.at("which").uniform((len(x),)).to(total) if samples else torch.zeros_like(total)
            step = ((part_ + inside) * (count / parts)).floor().clamp(max=count - 1) + 1
            total = total + self.nats(x.float(), step, stream.uniform(x.shape).to(total), **cond)
        return -total * (count / parts)

    def estimate(self, samples: int) -> str:
        """What `log_prob` of that many draws is."""
        return f"ELBO, {samples} of {self.config.timesteps} steps drawn an item" if samples else "ELBO"

    # ------------------------------------------------------------------------------------------------------------- samples

    def prior(self, n: int, rng: Rng, **cond: Tensor) -> Tensor:
        """The noise of every step `(n, T + 1, *x.shape)`."""
        return rng.normal((n, self.config.timesteps + 1, *self.spec.x.shape))

    def decode(self, z: Tensor, **cond: Tensor) -> Tensor:
        """The bits that the noise leads to."""
        return self.stages(z, **cond)[-1]

    def stages(self, z: Tensor, **cond: Tensor) -> list[Tensor]:
        """x_T … x_0."""
        count = self.config.timesteps
        made = [(z[:, 0] < 0).float()]
        for t in range(count, 0, -1):
            step = torch.full((len(z),), float(t), device=z.device)
            chance = torch.sigmoid(self.logits(made[-1], step, **cond))
            made.append((torch.special.ndtr(z[:, count - t + 1]) < chance).float())
        return made
