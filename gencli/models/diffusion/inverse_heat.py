"""Generative Modelling With Inverse Heat Dissipation (Rissanen, Heinonen & Solin, 2022). arXiv:2206.13397

Offers: sample

    q(u_k | u_0) = N(F(t_k) u_0, σ² I),   p(u_{k−1} | u_k) = N(μ(u_k, k), δ² I),   loss = E ‖μ(u_k, k) − F(t_{k−1}) u_0‖²

with F the heat equation of `_heat.py`, t_k = s_k² / 2, and blurs s_k from `blur_min` to `blur_max` pixels in geometric
progression, s_0 = 0. The network predicts what a step adds: μ(u, k) = u + f(u, k). The loss is summed over an item's numbers. A
sample is μ(u_1, 1): the last step adds no noise.

Sampling starts from p(u_K), a kernel density estimate: a training image blurred by F(t_K), plus δ n. `initialise` keeps what
that leaves of `kept` training images, the few cosines that blur_max does not wipe out. The latent is normal: `which`
`(N,)` picks one of them by its quantile, `noise` `(N, K, C, H, W)` is that of the start and the steps.

Paper: K = 200, σ = 0.01, δ = 1.25 σ, blurs of 0.5 to 24 pixels for CIFAR-10. Ours: k is drawn from 1 … K, the authors' code
leaves out K; the method takes no conditions and leaves those of the data aside.

Images `(N, C, H, W)` in [0, 1]. Errors: data that are no images; blur_max that is not above blur_min.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.special import ndtr

from gencli.config import Part, opt, part
from gencli.core import Batch, Losses, Model, Rng, Spec, Turn
from gencli.errors import GencliError
from gencli.models.diffusion._degradations import kernels
from gencli.models.diffusion._heat import apply, blurs, cosines, survivors

SHOWN = 24


class InverseHeat(Model):
    """A network that takes heat back, step by step."""

    codecs: ClassVar[tuple[Mapping[str, Any], ...]] = ({"name": "pixels", "range": "0,1"},)

    @dataclass(frozen=True)
    class Config:
        timesteps: int = opt(200, "steps of blurring K", low=1, high=10_000)
        blur_min: float = opt(0.5, "standard deviation of the first blur, in pixels", low=1e-3)
        blur_max: float = opt(24.0, "standard deviation of the last blur, in pixels", low=1e-3)
        sigma: float = opt(0.01, "noise on blurred images in training σ", low=0)
        delta: float = opt(0.0125, "noise of a sampling step δ", low=0)
        kept: int = opt(
            2000, "training images of which the blurriest version is kept, to start from", low=1, high=100_000
        )
        net: Part = part("networks", "unet", "the network", role="denoise")

    def __init__(self, config: Config, spec: Spec) -> None:
        super().__init__(config, dataclasses.replace(spec, cond={}))
        shape = spec.x.shape
        if len(shape) != 3:
            raise GencliError(
                f"inverse-heat blurs images, the data are {spec.x.kind} of shape {shape}",
                "use images, or ddpm for points",
            )
        if config.blur_max <= config.blur_min:
            raise GencliError(
                f"blur_max {config.blur_max} is not above blur_min {config.blur_min}", "the paper has 24 and 0.5"
            )
        self.net = config.net.build(spec.x, shape[0], {})
        stds = torch.cat([torch.zeros(1), kernels(config.timesteps, config.blur_min, config.blur_max, "exponential")])
        self.rows: Tensor
        self.columns: Tensor
        self.left: Tensor
        self.register_buffer("rows", blurs(shape[1], stds).float(), persistent=False)
        self.register_buffer("columns", blurs(shape[2], stds).float(), persistent=False)
        sides = [survivors(side, config.blur_max) for side in shape[1:]]
        self.register_buffer("left", torch.zeros(config.kept, shape[0], *sides))

    def blurred(self, x: Tensor, k: Tensor) -> Tensor:
        """F(t_k) x for images `(N, C, H, W)` and steps `(N,)`."""
        return apply(self.rows[k], x, self.columns[k])

    def initialise(self, data: Iterator[Batch], count: int, rng: Rng) -> None:
        """Keep the blurriest versions of training images, as cosines."""
        v, w = (cosines(side)[:few] for side, few in zip(self.spec.x.shape[1:], self.left.shape[2:], strict=True))
        filled = 0
        while filled < len(self.left):
            x = next(data)["x"][: len(self.left) - filled].to(self.rows.device)
            last = torch.full((len(x),), self.config.timesteps, device=x.device)
            self.left[filled : filled + len(x)] = apply(v.to(x), self.blurred(x, last), w.to(x))
            filled += len(x)

    # ------------------------------------------------------------------------------------------------------------ training

    def loss(self, batch: Batch, turn: Turn) -> Losses:
        """Each image at a step of its own."""
        x = batch["x"]
        k = turn.rng.at("steps").integers((len(x),), self.config.timesteps).to(x.device) + 1
        u = self.blurred(x, k) + self.config.sigma * turn.rng.at("noise").normal(x.shape).to(x)
        each = (self.less_blurred(u, k) - self.blurred(x, k - 1)).square().flatten(1).sum(1)
        return {"loss": each.mean(), "each": each}

    def less_blurred(self, u: Tensor, k: Tensor) -> Tensor:
        """μ(u_k, k), the mean of u_{k−1}."""
        return u + self.net(u.to(next(self.net.parameters()).dtype), k.float()).to(u)

    # ------------------------------------------------------------------------------------------------------------ sampling

    def prior(self, n: int, rng: Rng, **cond: Tensor) -> dict[str, Tensor]:
        """Normal numbers that choose the start, and for the noise of it and of every step but the last."""
        noise = rng.at("noise").normal((n, self.config.timesteps, *self.spec.x.shape))
        return {"which": rng.at("which").normal((n,)).to(self.device), "noise": noise.to(self.device)}

    def decode(self, z: dict[str, Tensor], **cond: Tensor) -> Tensor:
        """The image at the end of a latent's way."""
        *_, last = self.walk(z)
        return last

    def stages(self, z: dict[str, Tensor], **cond: Tensor) -> list[Tensor]:
        """u_K, up to 24 of the states on the way, and the sample."""
        steps = self.config.timesteps
        every = max(1, steps // SHOWN)
        return [u for k, u in zip(range(steps, -1, -1), self.walk(z), strict=True) if k % every == 0 or k == steps]

    def walk(self, z: dict[str, Tensor]) -> Iterator[Tensor]:
        """u_K … u_1 and the sample."""
        noise = self.config.delta * z["noise"]
        u = self.blurriest(z["which"]) + noise[:, 0]
        yield u
        for k in range(self.config.timesteps, 0, -1):
            u = self.less_blurred(u, torch.full((len(u),), k, device=u.device))
            u = u + noise[:, k - 1] if k > 1 else u
            yield u

    def blurriest(self, which: Tensor) -> Tensor:
        """F(t_K) u_0 of the training image at each quantile of normal numbers `(N,)`."""
        count = len(self.left)
        chosen = self.left[(ndtr(which) * count).long().clamp(0, count - 1)]
        v, w = (cosines(side)[:few] for side, few in zip(self.spec.x.shape[1:], self.left.shape[2:], strict=True))
        return apply(v.T.to(chosen), chosen, w.T.to(chosen))
