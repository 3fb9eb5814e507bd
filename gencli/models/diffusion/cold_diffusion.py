"""Cold Diffusion: Inverting Arbitrary Image Transforms Without Noise (Bansal et al., 2022). arXiv:2208.09392

Offers: sample

    loss = E_t ‖R(D(x, t), t) − x‖₁,   sampling  x_{s−1} = x_s − D(R(x_s, s), s) + D(R(x_s, s), s − 1),   s = T … 1

for a degradation D without randomness: `blur`, `pixelate` or `mask`. This is the paper's Algorithm 2 (`improved`), which for
a D that is linear in s ends at x_0 whatever R says; `naive`, Algorithm 1, is x_{s−1} = D(R(x_s, s), s − 1).

Sampling starts from what is left at T, an image of one colour: from a Gaussian fitted to the means of the channels of training
images (`initialise`), or for `mask` evenly from the middle half of the range, as in training. All pixels of it are equal, and
`noise` (0.002 in the paper) breaks this symmetry. The latent is normal: `colour` `(N, C)`, `noise` `(N, C, H, W)`.

Paper: on CIFAR-10 50 blurs whose kernels grow from 0.35 to 0.84 pixels; for generation, at 128 pixels, 300 from 1 to 20
exponentially, or 750 holes of 0.05 to 37.5 pixels. Ours: the borders of `blur` are insulated (the means of channels stay),
`pixelate` takes any number of steps; the method takes no conditions and leaves those of the data aside.

Images `(N, C, H, W)` in [−1, 1]. Errors: data that are no images.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.special import ndtr

from gencli.config import Part, opt, part
from gencli.core import Batch, Losses, Model, Rng, Spec, Turn
from gencli.errors import GencliError
from gencli.models.diffusion._degradations import Degradation, DegradationName, Growth, kernels

ITEMS = 5000
SHOWN = 24


class ColdDiffusion(Model):
    """A restoration network, and the degradation that it undoes."""

    codecs: ClassVar[tuple[Mapping[str, Any], ...]] = ({"name": "pixels"},)

    @dataclass(frozen=True)
    class Config:
        degradation: DegradationName = opt("blur", "what is done to images, and undone")
        timesteps: int = opt(50, "steps of degradation T", low=1, high=10_000)
        kernel_first: float = opt(0.35, "standard deviation of the first kernel of blur or mask, in pixels", low=1e-3)
        kernel_last: float = opt(0.84, "standard deviation of the last kernel", low=1e-3)
        kernel_growth: Growth = opt("linear", "how the kernels grow")
        noise: float = opt(0.002, "standard deviation of the noise that breaks the symmetry of the start", low=0)
        algorithm: Literal["improved", "naive"] = opt("improved", "the paper's Algorithm 2, or Algorithm 1")
        net: Part = part("networks", "unet", "the restoration network", role="denoise")

    def __init__(self, config: Config, spec: Spec) -> None:
        super().__init__(config, dataclasses.replace(spec, cond={}))
        shape = spec.x.shape
        if len(shape) != 3 or spec.x.range is None:
            raise GencliError(
                f"cold-diffusion degrades images, the data are {spec.x.kind} of shape {shape}",
                "use images, or ddpm for these data",
            )
        stds = kernels(config.timesteps, config.kernel_first, config.kernel_last, config.kernel_growth)
        self.degrade = Degradation(config.degradation, (shape[1], shape[2]), config.timesteps, stds)
        self.net = config.net.build(spec.x, shape[0], {})
        low, high = spec.x.range
        self._middle, self._width = (low + high) / 2, high - low
        self.mean: Tensor
        self.root: Tensor
        self.register_buffer("mean", torch.full((shape[0],), self._middle))
        self.register_buffer("root", torch.eye(shape[0]) * self._width / 4)

    def initialise(self, data: Iterator[Batch], count: int, rng: Rng) -> None:
        """Fit a Gaussian to the colours of training images."""
        seen = torch.empty(0, len(self.mean), dtype=torch.float64)
        while len(seen) < min(count, ITEMS):
            seen = torch.cat([seen, next(data)["x"].cpu().double().mean((2, 3))])
        apart = seen - seen.mean(0)
        covariance = apart.T @ apart / len(seen) + 1e-6 * torch.eye(len(self.mean), dtype=torch.float64)
        self.mean.copy_(seen.mean(0))
        self.root.copy_(torch.linalg.cholesky(covariance))

    # ------------------------------------------------------------------------------------------------------------ training

    def loss(self, batch: Batch, turn: Turn) -> Losses:
        """Each image at a step of its own."""
        x = batch["x"]
        t = turn.rng.at("steps").integers((len(x),), self.degrade.steps).to(x.device) + 1
        colour = turn.rng.at("colour").uniform((len(x), x.shape[1])).to(x)
        each = (self.restore(self.degrade(x, t, self._coloured(colour)), t) - x).abs().flatten(1).mean(1)
        return {"loss": each.mean(), "each": each}

    def restore(self, x: Tensor, t: Tensor) -> Tensor:
        """R(x, t), an estimate of the image `(N, C, H, W)` from what step t `(N,)` of 1 … T has left of it."""
        return self.net(x.to(next(self.net.parameters()).dtype), (t - 1).float()).to(x)

    def _coloured(self, u: Tensor) -> Tensor:
        """Numbers in [0, 1] to the middle half of the range, where the mask's colours are."""
        return self._middle + (u - 0.5) * (self._width / 2)

    # ------------------------------------------------------------------------------------------------------------ sampling

    def prior(self, n: int, rng: Rng, **cond: Tensor) -> dict[str, Tensor]:
        """Normal numbers for the colour and for the noise of the start."""
        shape = self.spec.x.shape
        made = {"colour": rng.at("colour").normal((n, shape[0])), "noise": rng.at("noise").normal((n, *shape))}
        return {key: value.to(self.device) for key, value in made.items()}

    def decode(self, z: dict[str, Tensor], **cond: Tensor) -> Tensor:
        """The image that the start of a latent is restored to."""
        *_, last = self.walk(z)
        return last

    def stages(self, z: dict[str, Tensor], **cond: Tensor) -> list[Tensor]:
        """x_T, up to 24 of the states on the way, and x_0."""
        steps = self.degrade.steps
        every = max(1, steps // SHOWN)
        return [x for s, x in zip(range(steps, -1, -1), self.walk(z), strict=True) if s % every == 0 or s == steps]

    def walk(self, z: dict[str, Tensor]) -> Iterator[Tensor]:
        """x_T … x_0."""
        if self.config.degradation == "mask":
            colour = self._coloured(ndtr(z["colour"]))
        else:
            colour = self.mean.to(z["colour"]) + z["colour"] @ self.root.T.to(z["colour"])
        x = colour[:, :, None, None] + self.config.noise * z["noise"]
        yield x
        for s in range(self.degrade.steps, 0, -1):
            x = self.improve(x, s, colour)
            yield x

    def improve(self, x: Tensor, s: int, colour: Tensor) -> Tensor:
        """x_{s−1} from x_s."""
        here = torch.full((len(x),), s, device=x.device)
        restored = self.restore(x, here)
        there = self.degrade(restored, here - 1, colour)
        return there if self.config.algorithm == "naive" else x - self.degrade(restored, here, colour) + there
