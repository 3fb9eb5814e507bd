"""What every denoiser shares: D(x; σ) = c_skip x + c_out F(c_in x, c_noise) for x = x0 + σ n.

A formulation is four functions of σ. Its network target is the F that makes D equal x0, and a paper's plain loss is the
squared error of F. Coefficients are computed in float64; the network runs in its own type.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from gencli.core import Batch, Losses, Model, Rng, Spec, Turn, as_rows
from gencli.models._conditions import drop_labels, with_null

Coefficient = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Formulation:
    """Four functions of σ (float64)."""

    skip: Coefficient
    out: Coefficient
    into: Coefficient
    noise: Coefficient

    def target(self, x0: Tensor, n: Tensor, sigma: Tensor) -> Tensor:
        """The F for which D is x0: a x0 + b n, whose coefficients lose no digits where x0 − c_skip x would."""
        skip, out = self.skip(sigma), self.out(sigma)
        return rows((1 - skip) / out, x0) * x0 + rows(-skip * sigma / out, n) * n


def eps(noise: Coefficient) -> Formulation:
    """The network predicts the noise n (DDPM, VP)."""
    return Formulation(torch.ones_like, lambda s: -s, variance_preserving, noise)


def x0(noise: Coefficient) -> Formulation:
    """The network predicts the data."""
    return Formulation(torch.zeros_like, torch.ones_like, variance_preserving, noise)


def v(noise: Coefficient) -> Formulation:
    """The network predicts (n − σ x0) / √(1 + σ²) (Salimans & Ho, arXiv:2202.00512)."""
    return Formulation(lambda s: 1 / (1 + s**2), lambda s: -s / (1 + s**2).sqrt(), variance_preserving, noise)


FORMULATIONS: dict[str, Callable[[Coefficient], Formulation]] = {"eps": eps, "x0": x0, "v": v}


def variance_preserving(sigma: Tensor) -> Tensor:
    """c_in that gives unit variance to data of unit variance."""
    return 1 / (1 + sigma**2).sqrt()


def rows(coefficient: Tensor, like: Tensor) -> Tensor:
    """A coefficient `()` or `(N,)` in the type of `like`, to be multiplied with its rows."""
    return as_rows(coefficient, like).to(like)


def wide(sigma: Tensor) -> Tensor:
    """Float64, on the CPU where the device has none."""
    return sigma.cpu().double() if sigma.device.type == "mps" else sigma.double()


class DiffusionModel(Model):
    """A model that denoises; a subclass says which levels it is trained at and with which formulation."""

    meaning: ClassVar[Literal["mean", "transport", "endpoint"]] = "mean"
    codecs: ClassVar[tuple[Mapping[str, Any], ...]] = ({"name": "pixels"},)

    formulation: Formulation

    def __init__(self, config: Any, spec: Spec) -> None:
        super().__init__(config, spec)
        self.net = config.net.build(spec.x, spec.x.shape[0], spec.cond)

    @property
    @abstractmethod
    def levels(self) -> Tensor | None:
        """The trained sigmas, descending, float64 on the CPU; None for any level."""

    @abstractmethod
    def draw_sigma(self, n: int, rng: Rng) -> Tensor:
        """Levels `(n,)` for training, float64."""

    def start(self, noise: Tensor, sigma: Tensor) -> Tensor:
        """Standard normal noise to x at the first level: data of unit variance and noise, √(1 + σ²) n."""
        return noise * rows((1 + wide(sigma) ** 2).sqrt(), noise)

    def denoise(self, x: Tensor, sigma: Tensor, **cond: Tensor) -> Tensor:
        """E[x0 | x] for x `(N, *shape)` at sigma `()` or `(N,)`; an absent label is the null label."""
        sigma, way = wide(sigma), self.formulation
        return rows(way.skip(sigma), x) * x + rows(way.out(sigma), x) * self.predict(x, sigma, **cond)

    def predict(self, x: Tensor, sigma: Tensor, **cond: Tensor) -> Tensor:
        """F, the network's raw output in the type of x."""
        weights = next(self.net.parameters()).dtype
        inner = (rows(self.formulation.into(sigma), x) * x).to(weights)
        exact = torch.float64 if weights == torch.float64 else torch.float32  # bfloat16 cannot tell step 999 from 1000
        level = self.formulation.noise(sigma).expand(x.shape[0]).to(x.device, exact)
        return self.net(inner, level, **with_null(cond, self.spec.cond, x)).to(x.dtype)

    def loss(self, batch: Batch, turn: Turn) -> Losses:
        """Unweighted squared error in the network's space, averaged over dimensions and items."""
        data, n = batch["x"], len(batch["x"])
        cond = {key: value for key, value in batch.items() if key in self.spec.cond}
        if self.training:
            cond = drop_labels(cond, self.spec.cond, self.config.label_dropout, turn.rng.at("labels"))
        sigma = self.draw_sigma(n, turn.rng.at("levels"))
        noise = turn.rng.at("noise").normal(data.shape).to(data)
        x = data + rows(sigma, data) * noise
        error = self.predict(x, sigma, **cond) - self.formulation.target(data, noise, sigma)
        each = error.square().flatten(1).mean(1)
        return {"loss": each.mean(), "each": each}
