"""Decoder distributions: what p(x|z) is, given the numbers that the decoder network makes of z.

    bernoulli   P(x = high) = sigmoid(l): data of two values
    gaussian    N(m, s²): a density of data without a grid, the mass of a bin of data on one
    logistic    the mass of a bin under a logistic distribution of location m and scale s
    logistic-mixture
                the mass of a pixel's bin under a mixture of `mixtures` logistics over all its channels, a channel's location
                being linear in those before it (Salimans et al., arXiv:1701.05517; `nn/logistic_mixture.py`)

Data on a grid are `Field`s with a vocabulary and a range, as the codec `pixels` makes. s is fixed by the setting `scale`, or
made by the network beside m, one for each number, and then at least e⁻⁷ (in model space). Those of a mixture are always made,
on a scale of −1 … 1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributions import Normal
from torch.nn import functional as F

from gencli.core import Field
from gencli.errors import GencliError
from gencli.nn.discretised import discretised_gaussian, discretised_logistic
from gencli.nn.logistic_mixture import LogisticMixture, numbers

LEAST_LOG_SCALE = -7.0

DecoderName = Literal["bernoulli", "gaussian", "logistic", "logistic-mixture"]


class Decoder(ABC):
    """A distribution over x with independent numbers, given the network's output `(N, *out.shape)`."""

    def __init__(self, x: Field, scale: float, mixtures: int = 5) -> None:
        self.x, self.scale, self.mixtures = x, scale, mixtures
        self.low, self.high = x.range or (0.0, 1.0)
        self.grid = x.vocab is not None and x.range is not None

    @property
    def out(self) -> Field:
        """What the network has to make."""
        return self.x

    @property
    def mass(self) -> bool:
        """Whether `log_prob` is about probabilities of values rather than a density."""
        return True

    @abstractmethod
    def each(self, made: Tensor, x: Tensor) -> Tensor:
        """log p(x|z) in nats of every number `(N, *x.shape)`, or of every pixel `(N, 1, H, W)`."""

    def log_prob(self, made: Tensor, x: Tensor) -> Tensor:
        """log p(x|z) `(N,)` in nats, the sum over an item's numbers."""
        return self.each(made, x).flatten(1).sum(1)

    @abstractmethod
    def mean(self, made: Tensor) -> Tensor:
        """x that a person is shown: the mean, or the location of a distribution that is cut off, inside the data's range."""


class Bernoulli(Decoder):
    def __init__(self, x: Field, scale: float, mixtures: int = 5) -> None:
        super().__init__(x, scale, mixtures)
        if x.vocab != 2:
            raise GencliError(
                f"a bernoulli decoder needs data of two values, got {x.kind} {_values(x)}",
                "use the codec binarise, as the recipe vae-mnist does, or another --likelihood",
            )

    def each(self, made: Tensor, x: Tensor) -> Tensor:
        bits = (x - self.low) / (self.high - self.low)
        return -F.binary_cross_entropy_with_logits(made, bits, reduction="none")

    def mean(self, made: Tensor) -> Tensor:
        return self.low + (self.high - self.low) * made.sigmoid()


class _Located(Decoder):
    """A location and a scale for each number."""

    @property
    def out(self) -> Field:
        if self.scale:
            return self.x
        return Field(self.x.kind, (2 * self.x.shape[0], *self.x.shape[1:]))

    def split(self, made: Tensor) -> tuple[Tensor, Tensor]:
        """Location and scale, each `(N, *x.shape)`."""
        if self.scale:
            return made, torch.full_like(made, self.scale)
        location, log_scale = made.chunk(2, 1)
        return location, log_scale.clamp(min=LEAST_LOG_SCALE).exp()

    def mean(self, made: Tensor) -> Tensor:
        location = self.split(made)[0]
        return location if self.x.range is None else location.clamp(*self.x.range)

    @property
    def width(self) -> float:
        """Between neighbouring values of the grid."""
        return (self.high - self.low) / ((self.x.vocab or 0) - 1)


class Gaussian(_Located):
    @property
    def mass(self) -> bool:
        return self.grid

    def each(self, made: Tensor, x: Tensor) -> Tensor:
        mean, spread = self.split(made)
        if self.grid:
            return discretised_gaussian(x, mean, spread, (self.low, self.high), self.width)
        return Normal(mean, spread).log_prob(x)


class Logistic(_Located):
    def __init__(self, x: Field, scale: float, mixtures: int = 5) -> None:
        super().__init__(x, scale, mixtures)
        if not self.grid:
            raise GencliError(
                f"a logistic decoder needs values on a grid, got {x.kind} {_values(x)}",
                "use `--likelihood gaussian`, or the pixels codec with images",
            )

    def each(self, made: Tensor, x: Tensor) -> Tensor:
        location, scale = self.split(made)
        return discretised_logistic(x, location, scale, (self.low, self.high), self.width)


class Mixed(Decoder):
    """A mixture of logistics for each pixel."""

    def __init__(self, x: Field, scale: float, mixtures: int = 5) -> None:
        super().__init__(x, scale, mixtures)
        if not self.grid or len(x.shape) != 3:
            raise GencliError(
                f"a logistic-mixture decoder needs images of values on a grid, got {x.kind} {_values(x)}",
                "use `--likelihood gaussian`, or the pixels codec with images",
            )
        if scale:
            raise GencliError(
                f"a logistic-mixture decoder makes all its scales, got scale {scale:g}", "leave --scale out"
            )

    @property
    def out(self) -> Field:
        channels, *sides = self.x.shape
        return Field(self.x.kind, (numbers(channels) * self.mixtures, *sides))

    def mixture(self, made: Tensor) -> LogisticMixture:
        """Of every pixel `(N, H, W)`."""
        return LogisticMixture.of(made.movedim(1, -1), self.x.shape[0], self.x.vocab or 0)

    def each(self, made: Tensor, x: Tensor) -> Tensor:
        values = ((x - self.low) / (self.high - self.low) * ((self.x.vocab or 0) - 1)).round()
        return self.mixture(made).log_prob(values.movedim(1, -1))[:, None]

    def mean(self, made: Tensor) -> Tensor:
        unit = self.mixture(made).mean().movedim(-1, 1).clamp(-1, 1)
        return self.low + (self.high - self.low) * (unit + 1) / 2


DECODERS: dict[str, Any] = {
    "bernoulli": Bernoulli,
    "gaussian": Gaussian,
    "logistic": Logistic,
    "logistic-mixture": Mixed,
}


def _values(x: Field) -> str:
    count = f"of {x.vocab} values" if x.vocab else "without a number of values"
    return count if x.range else f"{count} and without a range"
