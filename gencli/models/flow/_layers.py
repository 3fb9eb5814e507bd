"""Flows of flat rows: bijections from data to noise, one after the other, fitted to data or to an unnormalised density.

With `target = "data"` the loss is −log q(x): forward KL up to the entropy of the data. With an energy U it is reverse KL,

    KL(q ‖ p) = E_z[log p_Z(z) − log |det dx/dz| + U(x)] + log ∫ exp(−U),   x = f⁻¹(z),   p ∝ exp(−U)

through whose draws gradients flow (Rezende & Mohamed, arXiv:1505.05770, section 6.1). Of the batch only the number of items is
then used. The mass of the energies of `nn/energies.py` is known, so that the loss is the divergence itself. The run's data set
becomes `energy`, exact draws of the same density, so that evaluation and pictures compare with the truth.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from gencli.config import opt
from gencli.core import Batch, Losses, Spec, Turn, full_precision
from gencli.errors import GencliError
from gencli.models.flow._dequantiser import Dequantisation
from gencli.models.flow._family import Flow
from gencli.nn.bijection import Bijection, Chain
from gencli.nn.energies import ENERGIES
from gencli.nn.moving_norm import MovingNorm, settle

Target = Literal["data", "energy-u1", "energy-u2", "energy-u3", "energy-u4", "energy-two"]


@dataclass(frozen=True)
class Settings(Dequantisation):
    """Those of every flow of rows."""

    target: Target = opt("data", "what is fitted: the data, or by reverse KL an energy of the plane")
    constraint: float = opt(0.9, "share of the unit interval that data fill before the logit", low=0.01, high=1 - 1e-6)


@dataclass(frozen=True)
class ClassSettings(Settings):
    """Those of a flow that can be told the class."""

    classes: bool = opt(False, "a density of each class")


@dataclass(frozen=True)
class MaskedSettings(ClassSettings):
    """Those of a flow of masked networks."""

    layers: int = opt(5, "masked autoregressive layers", low=1)
    hidden: tuple[int, ...] = opt((64, 64), "hidden units of each layer of a network; none = affine functions")
    activation: Literal["relu", "tanh"] = opt("relu", "nonlinearity after a hidden layer")


class LayeredFlow(Flow):
    """A subclass gives `layers`; images are seen as rows of numbers."""

    def __init__(self, config: Any, spec: Spec) -> None:
        super().__init__(config, spec)
        label = self.spec.cond.get("label")
        self.classes = label.vocab if label is not None and label.vocab else 0
        target: str = getattr(config, "target", "data")
        self.energy = ENERGIES[target.removeprefix("energy-")] if target != "data" else None
        if self.energy is not None and spec.x.shape != (2,):
            raise GencliError(
                f"target {target} is a density of the plane, the data are {spec.x.kind} of shape {spec.x.shape}",
                "leave --data out with --target",
            )
        if self.energy is not None and self.classes:
            raise GencliError(f"target {target} has no classes", "leave --classes out")
        self.net = Chain(self.layers(spec.x.size, self.classes))
        self.couples = any(isinstance(module, MovingNorm) for module in self.modules())

    @classmethod
    def data_for(cls, config: Any, data: Mapping[str, Any]) -> Mapping[str, Any]:
        target: str = getattr(config, "target", "data")
        if target == "data":
            return data
        size = {key: data[key] for key in ("size", "seed") if key in data}
        kept = data if data["name"] == "energy" else {"name": "energy", **size}
        wanted = target.removeprefix("energy-")
        if kept.get("energy", wanted) != wanted:
            raise GencliError(
                f"target {target} and the data of energy {kept['energy']} are two densities", "leave --data out"
            )
        return {**kept, "energy": wanted}

    @abstractmethod
    def layers(self, dim: int, context: int) -> Iterable[Bijection]:
        """From data to noise, for rows of `dim` numbers that are told `context` more, the class among them."""

    def told(self, cond: Mapping[str, Tensor]) -> Tensor | None:
        """The class as zeros and a one, `(N, classes)`; only zeros for no class."""
        if not self.classes:
            return None
        return F.one_hot(cond["label"], self.classes + 1)[:, :-1].to(self._dtype)

    def transform(self, y: Tensor, **cond: Tensor) -> tuple[Tensor, Tensor]:
        z, log_det = self.net(y.flatten(1), self.told(cond))
        return z.view_as(y), log_det

    def unfold(self, z: Tensor, **cond: Tensor) -> Iterator[Tensor]:
        for state, _ in self.net.unfold(z.flatten(1), self.told(cond)):
            yield state.view_as(z)

    def loss(self, batch: Batch, turn: Turn) -> Losses:
        if self.energy is None:
            return super().loss(batch, turn)
        shape = (len(batch["x"]), *self.spec.x.shape)
        with full_precision(self.device):
            z = turn.rng.at("noise").normal(shape).to(self.device, torch.promote_types(self._dtype, torch.float32))
            x, log_det = self.net.inverse(z)
            each = self.log_noise(z) - log_det - self.energy.log_prob(x)
        return {"loss": each.mean(), "each": each, "kl": each.mean().detach()}

    def after_step(self, turn: Turn) -> None:
        settle(self)


def striped(dim: int, odd: bool, method: str) -> list[bool]:
    """True at every second number, from the first or from the second."""
    if dim < 2:
        raise GencliError(f"{method} needs items of two or more numbers, got {dim}", "choose other data")
    return [i % 2 == int(odd) for i in range(dim)]
