"""What normalising flows share: an invertible map f to noise, and the density that it gives.

    log p(x) = log p_Z(f(x)) + log |det df/dx|,   p_Z = N(0, I) or a logistic distribution

Unless a subclass's `logit` is False, data with a range are first mapped from it to all numbers (Dinh et al., arXiv:1605.08803,
section 4.1): with u = x scaled to [0, 1] and the constraint c,

    l = logit(½ + c (u − ½)),   log |dl/du| = log c + softplus(l) + softplus(−l)

Data without a range (points, latents) are taken as they are. The codec spreads grey levels over their bins, evenly; with
`dequantiser = "variational"` a learned bijection of the bins moves them on (`_dequantiser.py`). z has the shape of x. Losses
are sums over an item's numbers. A flow whose Config has `classes` set is a density of each class, log p(x | label), whose
layers are told the label.
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
from gencli.models.flow._dequantiser import Dequantiser, redrawn
from gencli.nn.actnorm import FIRST, ActNorm, fitted
from gencli.nn.embed import label_field
from gencli.nn.squeeze import Corners, squeeze, unsqueeze


class Flow(Model):
    """A subclass gives `transform` and `unfold`, inverse to each other, between real numbers; its Config has `constraint`."""

    codecs: ClassVar[tuple[Mapping[str, Any], ...]] = ({"name": "dequantise"},)
    likelihood: ClassVar[Literal["exact", "bound"]] = "exact"
    mass: ClassVar[bool] = False
    logit: ClassVar[bool] = True  # data with a range lose it first
    corners: ClassVar[Corners | None] = None  # how the halves of a multi-scale latent lie; its `net` has the `rest`
    noise: Literal["normal", "logistic"] = "normal"
    net: Any

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
        learned = config.dequantiser == "variational"
        self.dequantiser = Dequantiser(spec.x, config.dequantiser_width, self.public_name()) if learned else None

    @abstractmethod
    def transform(self, y: Tensor, **cond: Tensor) -> tuple[Tensor, Tensor]:
        """z and log |det dz/dy| `(N,)`, from numbers without bounds."""

    @abstractmethod
    def unfold(self, z: Tensor, **cond: Tensor) -> Iterator[Tensor]:
        """What becomes of z, one more layer undone at a time, each in the shape of x; y last."""

    def initialise(self, data: Iterator[Batch], count: int, rng: Rng) -> None:
        """Set the activation normalisations by the first items; they are parameters from then on."""
        if not any(isinstance(module, ActNorm) for module in self.net.modules()):
            return
        seen = [next(data)]
        while sum(len(batch["x"]) for batch in seen) < min(FIRST, count):
            seen.append(next(data))
        first = {key: torch.cat([batch[key] for batch in seen])[:FIRST].to(self.device) for key in seen[0]}
        training = self.training
        with fitted(self.eval().net), torch.no_grad():
            self.forward_flow(first["x"], **{key: first[key] for key in self.spec.cond})
        self.train(training)

    # ------------------------------------------------------------------------------------------------------- range of data

    def _unbounded(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """y and log |det dy/dx|."""
        before = x.new_zeros(len(x))
        if self.dequantiser is not None:
            x, before = self.dequantiser(x)
        if self.spec.x.range is None or not self.logit:
            return x, before
        low, high = self.spec.x.range
        keep = self.config.constraint
        y = torch.logit(0.5 + keep * ((x - low) / (high - low) - 0.5))
        each = F.softplus(y) + F.softplus(-y) + math.log(keep / (high - low))
        return y, before + each.flatten(1).sum(1)

    def _bounded(self, y: Tensor) -> Tensor:
        """x from y; after a logit a little outside the data's range at most."""
        if self.spec.x.range is not None and self.logit:
            low, high = self.spec.x.range
            y = low + (high - low) * ((y.sigmoid() - 0.5) / self.config.constraint + 0.5)
        return y if self.dequantiser is None else self.dequantiser.inverse(y)

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
        """log p(x) `(N,)` in nats, in model space.

        Of grey levels `samples` draws of the noise in their bins give log mean p, the first being x itself: on average the
        more there are the nearer to the levels' own probability (Burda et al., arXiv:1509.00519).
        """
        with full_precision(x.device):
            nats = [self._log_prob(x, cond)]
            if self.spec.x.vocab is not None:
                others = (redrawn(x, self.spec.x, rng.at("noise", i)) for i in range(1, samples))
                nats += [self._log_prob(other, cond) for other in others]
            return torch.logsumexp(torch.stack(nats), 0) - math.log(len(nats))

    def estimate(self, samples: int) -> str:
        """What `log_prob` of that many draws is; empty for the density itself."""
        several = samples > 1 and self.spec.x.vocab is not None
        if self.dequantiser is None and not several:
            return ""
        kind = "uniform" if self.dequantiser is None else "variational"
        return f"{kind} dequantiser" + f", IWAE-{samples}" * several

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

    def levels_of_latent(self) -> Tensor:
        """Of every number of z, `shape`, on which level it leaves: 0 the finest."""
        z = torch.zeros(1, *self.spec.x.shape, device=self.device)
        return _levels(self.net if self.corners else None, z, self.corners or "rows")[0]

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


def _levels(part: Any, z: Tensor, corners: Corners) -> Tensor:
    """Levels of a z of that shape, whose half leaves `part` and whose other half goes on to `part.rest`, if there is one."""
    if part is None or part.rest is None:
        return torch.zeros_like(z, dtype=torch.long)
    inner, leaves = squeeze(z, corners).chunk(2, dim=1)
    made = [1 + _levels(part.rest, inner, corners), torch.zeros_like(leaves, dtype=torch.long)]
    return unsqueeze(torch.cat(made, dim=1), corners)
