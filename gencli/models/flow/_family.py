"""What normalising flows share: an invertible map f to noise, and the density that it gives.

    log p(x) = log p_Z(f(x)) + log |det df/dx|,   p_Z = N(0, I) or a logistic distribution

Unless a subclass's `logit` is False, data with a range are first mapped from it to all numbers (Dinh et al., arXiv:1605.08803,
section 4.1): with u = x scaled to [0, 1] and the constraint c,

    l = logit(½ + c (u − ½)),   log |dl/du| = log c + softplus(l) + softplus(−l)

Data without a range (points, latents) are taken as they are. z has the shape of x. Losses are sums over an item's numbers.
A flow whose Config has `classes` set is a density of each class, log p(x | label), whose layers are told the label.
"""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from gencli.core import Batch, Losses, Model, Rng, Spec, Turn, full_precision
from gencli.errors import GencliError
from gencli.nn.embed import label_field


class Flow(Model):
    """A subclass gives `transform` and `unfold`, inverse to each other, between real numbers; its Config has `constraint`."""

    codecs: ClassVar[tuple[Mapping[str, Any], ...]] = ({"name": "dequantise"},)
    likelihood: ClassVar[Literal["exact", "bound"]] = "exact"
    mass: ClassVar[bool] = False
    logit: ClassVar[bool] = True  # data with a range lose it first
    noise: Literal["normal", "logistic"] = "normal"

    def __init__(self, config: Any, spec: Spec) -> None:
        label = label_field(spec.cond, self.public_name()) if getattr(config, "classes", False) else None
        if getattr(config, "classes", False) and label is None:
            raise GencliError(
                f"{self.public_name()} is to be told classes, but the data have no labels",
                "leave --classes out, or train on labelled data",
            )
        super().__init__(config, dataclasses.replace(spec, cond={"label": label} if label else {}))
        if spec.x.vocab is not None and spec.x.range is None:
            raise GencliError(
                f"{self.public_name()} is a density and needs continuous data, got whole numbers ({spec.x.kind})",
                "use the codec dequantise with images, or an autoencoder with continuous latents",
            )

    @abstractmethod
    def transform(self, y: Tensor, **cond: Tensor) -> tuple[Tensor, Tensor]:
        """z and log |det dz/dy| `(N,)`, from numbers without bounds."""

    @abstractmethod
    def unfold(self, z: Tensor, **cond: Tensor) -> Iterator[Tensor]:
        """What becomes of z, one more layer undone at a time, each in the shape of x; y last."""

    # ------------------------------------------------------------------------------------------------------- range of data

    def _unbounded(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """y and log |det dy/dx|."""
        if self.spec.x.range is None or not self.logit:
            return x, x.new_zeros(len(x))
        low, high = self.spec.x.range
        keep = self.config.constraint
        y = torch.logit(0.5 + keep * ((x - low) / (high - low) - 0.5))
        each = F.softplus(y) + F.softplus(-y) + math.log(keep / (high - low))
        return y, each.flatten(1).sum(1)

    def _bounded(self, y: Tensor) -> Tensor:
        """x from y; after a logit a little outside the data's range at most."""
        if self.spec.x.range is None or not self.logit:
            return y
        low, high = self.spec.x.range
        return low + (high - low) * ((y.sigmoid() - 0.5) / self.config.constraint + 0.5)

    # ---------------------------------------------------------------------------------------------------------- the density

    def forward_flow(self, x: Tensor, **cond: Tensor) -> tuple[Tensor, Tensor]:
        """z `(N, *shape)` and log |det dz/dx| `(N,)`."""
        y, first = self._unbounded(x.to(torch.promote_types(self._dtype, torch.float32)))
        z, then = self.transform(y, **cond)
        return z, first + then

    def inverse(self, z: Tensor, **cond: Tensor) -> Tensor:
        """x from z, in evaluation only: in training a batch has statistics of its own, which the inverse cannot know."""
        assert not (self.training and self.couples), "call eval() first"
        *_, y = self.unfold(z, **cond)
        return self._bounded(y)

    def loss(self, batch: Batch, turn: Turn) -> Losses:
        return self.scored(self._log_prob(batch["x"], {key: batch[key] for key in self.spec.cond}))

    def scored(self, nats: Tensor) -> Losses:
        """The loss, from log p `(N,)`."""
        each = self.penalty() - nats
        size, x = self.spec.x.size, self.spec.x
        bits = -nats.mean().detach() / (size * math.log(2))
        if x.vocab is not None and x.range is not None:
            bits = bits + math.log2(x.vocab / (x.range[1] - x.range[0]))
        return {"loss": each.mean(), "each": each, "bits_per_dim": bits}

    def penalty(self) -> Tensor | float:
        """What is added to every item's −log p."""
        return 0.0

    def log_prob(self, x: Tensor, rng: Rng, samples: int = 1, **cond: Tensor) -> Tensor:
        """log p(x) `(N,)` in nats, in model space; without randomness."""
        with full_precision(x.device):
            return self._log_prob(x, cond)

    def _log_prob(self, x: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        z, log_det = self.forward_flow(x, **cond)
        return log_det + self.log_noise(z)

    def log_noise(self, z: Tensor) -> Tensor:
        """log p_Z(z) `(N,)`."""
        if self.noise == "logistic":
            each = F.logsigmoid(z) + F.logsigmoid(-z)
        else:
            each = -0.5 * (z.square() + math.log(2 * math.pi))
        return each.flatten(1).sum(1)

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    # ------------------------------------------------------------------------------------------------------------- latents

    def prior(self, n: int, rng: Rng, **cond: Tensor) -> Tensor:
        """z `(n, *shape)`."""
        shape = (n, *self.spec.x.shape)
        if self.noise == "logistic":
            return torch.logit(rng.uniform(shape, torch.float64), 1e-12).to(self.device, self._dtype)
        return rng.normal(shape).to(self.device, self._dtype)

    def decode(self, z: Tensor, **cond: Tensor) -> Tensor:
        """x from z."""
        return self.inverse(z, **cond)

    def stages(self, z: Tensor, **cond: Tensor) -> list[Tensor]:
        """z and what every layer makes of it on the way to x, as if the layers that are still to come did nothing."""
        assert not (self.training and self.couples), "call eval() first"
        return [self._bounded(state) for state in (z, *self.unfold(z, **cond))]
