"""What every denoiser shares: D(x; σ) = c_skip x + c_out F(c_in x, c_noise) for x = x0 + σ n.

A formulation is four functions of σ. Its network target is the F that makes D equal x0, and a paper's plain loss is the
squared error of F. Coefficients are computed in float64; the network runs in its own type.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from gencli.core import Batch, Field, Losses, Model, Rng, Spec, Turn, as_rows
from gencli.errors import GencliError
from gencli.models._conditions import drop_labels, with_null
from gencli.samplers._likelihood import flow_log_prob, spread_over_bins

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


def edm(data: float, noise: Coefficient | None = None) -> Formulation:
    """The network sees and predicts numbers of unit variance at every level, for data of standard deviation `data`."""
    return Formulation(
        lambda s: data**2 / (s**2 + data**2),
        lambda s: s * data / (s**2 + data**2).sqrt(),
        lambda s: 1 / (s**2 + data**2).sqrt(),
        noise or quarter_log,
    )


def velocity(noise: Coefficient, least: float = 0.0) -> Formulation:
    """The network predicts (1 − least) n − x0, the velocity of the straight path from data to noise (flow matching).

    With τ = 1 / (1 − least + σ) the path's point is τ x, its noise has standard deviation 1 − (1 − least) τ, and that is
    `least` where τ = 1, at the data.
    """
    keep = 1 - least
    return Formulation(lambda s: keep / (keep + s), lambda s: -s / (keep + s), lambda s: 1 / (keep + s), noise)


def score(into: Coefficient, noise: Coefficient) -> Formulation:
    """The network predicts −n, that is σ times the score (NCSN, score SDEs)."""
    return Formulation(torch.ones_like, lambda s: s, into, noise)


FORMULATIONS: dict[str, Callable[[Coefficient], Formulation]] = {"eps": eps, "x0": x0, "v": v}


def quarter_log(sigma: Tensor) -> Tensor:
    """¼ log σ, what EDM tells its networks."""
    return sigma.log() / 4


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
    """A model that denoises; a subclass says which levels it is trained at and with which formulation.

    An image among the conditions, of x's sides, is concatenated to what the network sees; the others are given to the
    network. An absent image condition is zeros.
    """

    meaning: Literal["mean", "transport", "endpoint"] = "mean"
    process: Literal["vp", "ve"] = "vp"  # what a start from pure noise is scaled by: √(1 + σ²) or σ
    codecs: ClassVar[tuple[Mapping[str, Any], ...]] = ({"name": "pixels"},)

    formulation: Formulation

    def __init__(self, config: Any, spec: Spec) -> None:
        super().__init__(config, spec)
        if spec.x.vocab is not None and spec.x.range is None:
            raise GencliError(
                f"{self.public_name()} denoises continuous data, got {spec.x.kind} of shape {spec.x.shape}",
                "use images or points, or train gated-pixelcnn on these codes",
            )
        self._beside = self.beside()
        channels = spec.x.shape[0] + sum(self._beside.values())
        seen = dataclasses.replace(spec.x, shape=(channels, *spec.x.shape[1:]))
        told = {key: field for key, field in self.told().items() if key not in self._beside}
        self.net = config.net.build(seen, self.outputs(), told)

    @property
    @abstractmethod
    def levels(self) -> Tensor | None:
        """The trained sigmas, descending, float64 on the CPU; None for any level."""

    @abstractmethod
    def draw_sigma(self, n: int, rng: Rng) -> Tensor:
        """Levels `(n,)` for training, float64."""

    def beside(self) -> Mapping[str, int]:
        """The conditions that are concatenated to what the network sees, and the channels they take there."""
        return {key: field.shape[0] for key, field in self.spec.cond.items() if is_beside(field, self.spec.x)}

    def laid(self, key: str, given: Batch, x: Tensor) -> Tensor:
        """The condition as it lies beside x; zeros where it is not given."""
        return given[key].to(x) if key in given else x.new_zeros(len(x), *self.spec.cond[key].shape)

    def outputs(self) -> int:
        """Channels that the network predicts."""
        return self.spec.x.shape[0]

    def told(self) -> Mapping[str, Field]:
        """What the network is told besides the level."""
        return self.spec.cond

    def start(self, noise: Tensor, sigma: Tensor) -> Tensor:
        """Standard normal noise to x at the first level: √(1 + σ²) n where data have unit variance (`vp`), else σ n."""
        sigma = wide(sigma)
        return noise * rows(sigma if self.process == "ve" else (1 + sigma**2).sqrt(), noise)

    # ----------------------------------------------------------------------------------------------------------- denoising

    def denoise(self, x: Tensor, sigma: Tensor, **cond: Tensor) -> Tensor:
        """E[x0 | x] for x `(N, *shape)` at sigma `()` or `(N,)`; an absent condition is the null condition."""
        sigma = wide(sigma)
        return self.estimate_x0(x, sigma, self.predict(x, sigma, **cond))

    def estimate_x0(self, x: Tensor, sigma: Tensor, predicted: Tensor) -> Tensor:
        """D from the network's prediction F."""
        way = self.formulation
        return rows(way.skip(sigma), x) * x + rows(way.out(sigma), x) * predicted

    def predict(self, x: Tensor, sigma: Tensor, **cond: Tensor) -> Tensor:
        """F, the network's raw output in the type of x."""
        weights = next(self.net.parameters()).dtype
        given = with_null(cond, self.spec.cond, x)
        shown = [rows(self.formulation.into(sigma), x) * x]
        shown += [self.laid(key, given, x) for key in self._beside]
        told = {key: value for key, value in given.items() if key not in self._beside}
        exact = torch.float64 if weights == torch.float64 else torch.float32  # bfloat16 cannot tell step 999 from 1000
        level = self.formulation.noise(sigma).expand(x.shape[0]).to(x.device, exact)
        return self.net(torch.cat(shown, dim=1).to(weights), level, **told).to(x.dtype)

    # ------------------------------------------------------------------------------------------------------------ the loss

    def loss(self, batch: Batch, turn: Turn) -> Losses:
        """Each item at a level of its own; the mean over items."""
        data, cond = self.prepared(batch, turn.rng)
        sigma = self.draw_sigma(len(data), turn.rng.at("levels"))
        noise = self.noise_like(data, cond, turn.rng.at("noise"))
        each = self.errors(data, noise, sigma, cond)
        return {"loss": each.mean(), "each": each}

    def prepared(self, batch: Batch, rng: Rng) -> tuple[Tensor, Batch]:
        """The data and the conditions of a training batch, some of the conditions dropped."""
        cond = {key: value for key, value in batch.items() if key in self.spec.cond}
        if self.training:
            cond = drop_labels(cond, self.spec.cond, self.config.label_dropout, rng.at("labels"))
        return batch["x"], cond

    def noise_like(self, data: Tensor, cond: Batch, rng: Rng) -> Tensor:
        """Standard normal noise of the data's shape, one row an item."""
        return rng.normal(data.shape).to(data)

    def errors(self, data: Tensor, noise: Tensor, sigma: Tensor, cond: Batch) -> Tensor:
        """`(N,)` unweighted squared error in the network's space, averaged over dimensions."""
        return self.misses(data, noise, sigma, cond).square().flatten(1).mean(1)

    def misses(self, data: Tensor, noise: Tensor, sigma: Tensor, cond: Batch) -> Tensor:
        """How far the network's prediction is from its target, number by number."""
        x = data + rows(sigma, data) * noise
        return self.predict(x, sigma, **cond) - self.formulation.target(data, noise, sigma)


def is_beside(field: Field, x: Field) -> bool:
    """Whether a condition is an image that can be concatenated to x."""
    return len(x.shape) == 3 and len(field.shape) == 3 and field.shape[1:] == x.shape[1:]


class ContinuousModel(DiffusionModel):
    """A denoiser of any level in [sigma_min, sigma_max], whose probability-flow ODE gives densities (arXiv:2011.13456).

    Data on a grid are dequantised inside `log_prob`: uniform noise over their bins, which makes the density a bound.
    """

    likelihood: ClassVar[Literal["exact", "bound"]] = "exact"
    mass: ClassVar[bool] = False
    levels = None
    sigma_min: float
    sigma_max: float

    @abstractmethod
    def sigma_at(self, u: Tensor) -> Tensor:
        """The level at the model's own time u in (0, 1], 1 the noisiest, float64."""

    def draw_sigma(self, n: int, rng: Rng) -> Tensor:
        """Evenly in the model's own time."""
        return self.sigma_at(1 - rng.uniform((n,)).double())

    def log_prob(self, x: Tensor, rng: Rng, samples: int = 1, **cond: Tensor) -> Tensor:
        """log p(x) `(N,)` in nats by the ODE, `samples` probes for its divergence."""
        nats, _ = flow_log_prob(self, spread_over_bins(x, self.spec.x, rng.at("dequantise")), rng, cond, samples)
        return nats

    def estimate(self, samples: int) -> str:
        """What `log_prob` of that many draws is."""
        return f"probability-flow ODE, {samples} Hutchinson probe" + ("s" if samples > 1 else "")
