"""NICE: Non-linear Independent Components Estimation (Dinh, Krueger & Bengio, 2014). arXiv:1410.8516

Offers: sample, exact density

    y_A = x_A,  y_B = x_B + m(x_A)  with A and B the even and the odd numbers in turn;  z = exp(s) ⊙ y,  log |det| = Σ s_i

z has independent numbers with the logistic density 1 / (2 + eᶻ + e⁻ᶻ), or a normal one. m is any network of role `map`.
Couplings keep the volume, so that s alone tells which directions vary: small exp(−s) are fine detail. Data are taken as they
are, in [0, 1] after dequantisation, without a logit; images are rows of numbers.

Paper: four couplings whose networks have 5 hidden layers of 1000 relu units for MNIST, logistic prior; a test log-likelihood of
1980.50 nats. Ours: Adam; s begins where z is as wide as its distribution on the first batch; no whitening, which the paper has
for natural images; with `classes` the networks see the class.

Raises GencliError for whole numbers and for items of one number.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch

from gencli.config import Part, opt, part
from gencli.core import Batch, Field, Rng, Spec
from gencli.models.flow._dequantiser import Dequantisation
from gencli.models.flow._layers import LayeredFlow, striped
from gencli.nn.bijection import Bijection
from gencli.nn.coupling import Coupling
from gencli.nn.linear_maps import Scaling
from gencli.nn.univariate import Shift


class Nice(LayeredFlow):
    """Additive couplings, and a factor for each number."""

    logit = False

    @dataclass(frozen=True)
    class Config(Dequantisation):
        couplings: int = opt(4, "additive couplings", low=1)
        noise: Literal["logistic", "normal"] = opt("logistic", "distribution of the latents")
        classes: bool = opt(False, "a density of each class")
        net: Part = part("networks", "mlp", "network of a coupling", role="map", activation="relu")

    def __init__(self, config: Any, spec: Spec) -> None:
        super().__init__(config, spec)
        self.noise = config.noise

    def layers(self, dim: int, context: int) -> Iterable[Bijection]:
        for i in range(self.config.couplings):
            changes = striped(dim, i % 2 == 0, "nice")
            moved = sum(changes)
            net = self.config.net.build(Field("coupling", (dim - moved + context,)), Field("coupling", (moved,)), {})
            yield Coupling(changes, net, Shift())
        yield Scaling(dim, shift=False)

    @torch.no_grad()
    def initialise(self, data: Iterator[Batch], count: int, rng: Rng) -> None:
        batch = {key: value.to(self.device) for key, value in next(data).items()}
        z, _ = self.forward_flow(batch["x"], **{key: batch[key] for key in self.spec.cond})
        wide = math.pi / math.sqrt(3) if self.noise == "logistic" else 1.0
        *_, scaling = self.net
        cast(Scaling, scaling).log_scale.add_((wide / z.flatten(1).square().mean(0).sqrt().clamp(min=1e-3)).log())
