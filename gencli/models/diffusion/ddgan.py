"""Tackling the Generative Learning Trilemma with Denoising Diffusion GANs (Xiao, Kreis & Vahdat, 2021). arXiv:2112.07804

Offers: sample

    p(x_{t−1} | x_t) = q(x_{t−1} | x_t, x_0 = G(x_t, z, t)),   z ~ N(0, I),   t = T … 1

so that T steps are enough, 4 or so: a large step backwards has no Gaussian law, and z gives it any. With ᾱ of the
variance-preserving SDE at times t / T, α_t = ᾱ_t / ᾱ_{t−1} and β_t = 1 − α_t,

    q(x_{t−1} | x_t, x_0) = N((√ᾱ_{t−1} β_t x_0 + √α_t (1 − ᾱ_{t−1}) x_t) / (1 − ᾱ_t),   β_t (1 − ᾱ_{t−1}) / (1 − ᾱ_t))
    D: softplus(−D(x_{t−1}, x_t, t)) + softplus(D(x′_{t−1}, x_t, t)),   and R1: γ/2 ‖∇ D‖² by x_{t−1}
    G: softplus(−D(x′_{t−1}, x_t, t))

with x_{t−1}, x_t of the data and x′_{t−1} drawn as above, t evenly from 1 … T. T = 1 is an ordinary GAN: x_1 is noise
(√ᾱ_1 = 0.0066), and x_0 what G makes of it and of z. The latent of a sample is all that the T steps draw, `(N, numbers)`.

The paper's are the losses, β from 0.1 to 20, the tanh at G's end, and for CIFAR-10 T 4, 100 numbers in z, γ 0.02 every 15th
turn. Ours: the released code does not make the lazy penalty 15 times as heavy, so that its γ is ours times `smooth_every`;
it begins the SDE at time 0.001; its G scales norms by z (AdaGN), ours adds the embedded z to the embedded step (`unet`,
`song-unet`, `denoising-mlp`; 40,325,123 parameters for CIFAR-10); D is any network of the GANs, shown x_{t−1} and x_t side by
side and told t, and with `classes` the class, as it is told classes. Data are taken to have about unit variance. With a
learning rate above 5e-4 or so and no warm-up, the tanh saturates in the first steps, and G learns nothing more.

Images `(N, C, H, W)` or points `(N, d)`, continuous. Errors: as of the family (`gencli/models/gan/_family.py`); augmentations
of what D sees; a network that takes no latent.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gencli.config import Part, opt, part
from gencli.core import Batch, Field, Rng, Spec
from gencli.errors import GencliError
from gencli.models.diffusion._family import rows
from gencli.models.gan._family import Smooth
from gencli.models.gan._objectives import OBJECTIVES, Objective
from gencli.models.gan._scored import Scored
from gencli.samplers._sdes import vp_alpha_bar


@dataclass(frozen=True)
class Steps:
    """Numbers of the steps t = 1 … T `(T,)`, float64.

    Args:
        before: ᾱ_{t−1}, the share of the data's variance that is left before the step.
        alpha: the share of it that the step leaves.
        guess: what x_0 counts in the mean of x_{t−1} given x_t and x_0.
        noisy: what x_t counts in it.
        variance: of x_{t−1} given both.
    """

    before: Tensor
    alpha: Tensor
    guess: Tensor
    noisy: Tensor
    variance: Tensor

    @classmethod
    def of(cls, count: int) -> Steps:
        """Those of a chain of `count` steps."""
        kept = vp_alpha_bar(torch.arange(count + 1, dtype=torch.float64, device="cpu") / count)
        before, after = kept[:-1], kept[1:]
        alpha = after / before
        guess = before.sqrt() * (1 - alpha) / (1 - after)
        noisy = alpha.sqrt() * (1 - before) / (1 - after)
        return cls(before, alpha, guess, noisy, (1 - alpha) * (1 - before) / (1 - after))


class Ddgan(Scored):
    """A generator that undoes a few large steps of diffusion."""

    @dataclass(frozen=True)
    class Config(Scored.Config):
        timesteps: int = opt(4, "steps from noise to data T, each one call of the generator", low=1, high=1000)
        latent: int = opt(100, "numbers in the latent z of a step", low=1)
        smooth: Smooth = opt("r1", "penalty on the discriminator's gradient")
        smooth_weight: float = opt(0.05, "γ of that penalty", low=0)
        generator: Part = part("networks", "unet", "network from x_t, the step and z to x_0", role="denoise")
        critic: Part = part("networks", "dcgan-critic", "network from x_{t−1} beside x_t to a score", role="map")

    def __init__(self, config: Any, spec: Spec) -> None:
        if config.augment != "none":
            raise GencliError(
                f"--augment {config.augment} would change x_(t−1) alone, which ddgan's discriminator compares with x_t",
                "leave it out",
            )
        super().__init__(config, spec)
        self.steps = Steps.of(config.timesteps)

    def objective(self) -> Objective:
        return OBJECTIVES["non-saturating"]

    def built(self) -> tuple[Any, Any]:
        config, x, label = self.config, self.spec.x, self.spec.cond.get("label")
        latent = Field("latent", (config.latent,))
        generator = config.generator.build(x, x.shape[0], {**self.spec.cond, "latent": latent})
        pair = dataclasses.replace(x, shape=(2 * x.shape[0], *x.shape[1:]))
        count = config.timesteps * (label.vocab or 1 if label else 1)
        critic = config.critic.build(pair, Field("score", (1,)), {"label": Field("label", (), vocab=count)})
        return generator, critic

    # ---------------------------------------------------------------------------------------------------------------- a step

    def guess(self, noisy: Tensor, step: Tensor, z: Tensor, **cond: Tensor) -> Tensor:
        """G: x_0 from x_t `(N, *shape)`, t − 1 `(N,)` and z `(N, latent)`."""
        weights = next(self.generator.parameters()).dtype
        made = self.generator(noisy.to(weights), step.to(weights), latent=z, **cond).to(noisy.dtype)
        return made if self.spec.x.range is None else self.ranged(made.tanh())

    def back(self, guess: Tensor, noisy: Tensor, step: Tensor, noise: Tensor) -> Tensor:
        """x_{t−1} from x_0, x_t, t − 1 and standard normal noise."""
        mean = self.at("guess", step, noisy) * guess + self.at("noisy", step, noisy) * noisy
        return mean + self.at("variance", step, noisy).sqrt() * noise

    def at(self, what: str, step: Tensor, like: Tensor) -> Tensor:
        """A number of the items' steps, to be multiplied with their rows."""
        return rows(getattr(self.steps, what)[step.cpu()], like)

    # -------------------------------------------------------------------------------------------------------------- training

    def shown(self, batch: Batch, rng: Rng) -> tuple[Tensor, Batch]:
        """x_{t−1} of each item at a step of its own, and x_t and t − 1."""
        data, cond = super().shown(batch, rng)
        step = rng.at("steps").integers((len(data),), self.config.timesteps).to(data.device)
        before, alpha = self.at("before", step, data), self.at("alpha", step, data)
        x = before.sqrt() * data + (1 - before).sqrt() * rng.at("before").normal(data.shape).to(data)
        noisy = alpha.sqrt() * x + (1 - alpha).sqrt() * rng.at("step").normal(data.shape).to(data)
        return x, {**cond, "noisy": noisy, "step": step}

    def samples(self, x: Tensor, rng: Rng, **cond: Tensor) -> Tensor:
        noisy, step = cond.pop("noisy"), cond.pop("step")
        z = rng.at("latent").normal((len(x), self.config.latent)).to(x)
        return self.back(self.guess(noisy, step, z, **cond), noisy, step, rng.at("posterior").normal(x.shape).to(x))

    def score(self, x: Tensor, **cond: Tensor) -> Tensor:
        """What the discriminator says of x_{t−1} beside x_t, `(N,)`."""
        told = cond["step"]
        if "label" in self.spec.cond:
            told = told * (self.spec.cond["label"].vocab or 1) + cond["label"]
        return super().score(torch.cat([x, cond["noisy"]], 1), label=told)

    # -------------------------------------------------------------------------------------------------------------- sampling

    def prior(self, n: int, rng: Rng, **cond: Tensor) -> Tensor:
        """x_T, then z of each step, then the noise of each, `(n, numbers)`; the last step's noise counts nothing."""
        size, count = self.spec.x.size, self.config.timesteps
        return rng.at("latent").normal((n, size + count * (self.config.latent + size)))

    def decode(self, z: Tensor, **cond: Tensor) -> Tensor:
        """x_0 of a latent."""
        *_, last = self.walk(z, **cond)
        return last

    def stages(self, z: Tensor, **cond: Tensor) -> list[Tensor]:
        """x_T … x_0."""
        return list(self.walk(z, **cond))

    def walk(self, z: Tensor, **cond: Tensor) -> Iterator[Tensor]:
        """x_T … x_0, one by one."""
        x, count, shape = self.spec.x, self.config.timesteps, (len(z), *self.spec.x.shape)
        start, latents, noises = z.split([x.size, count * self.config.latent, count * x.size], 1)
        noisy = start.reshape(shape)
        yield noisy
        pairs = zip(latents.chunk(count, 1), noises.chunk(count, 1), strict=True)
        for t, (latent, noise) in zip(range(count, 0, -1), pairs, strict=True):
            step = torch.full((len(z),), t - 1, device=z.device)
            noisy = self.back(self.guess(noisy, step, latent, **cond), noisy, step, noise.reshape(shape))
            yield noisy
