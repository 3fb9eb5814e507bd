"""What hierarchical variational autoencoders share: groups of Gaussian latents, drawn from the top down, and the bounds.

    p(x, z) = p(x|z) Π p(z_i | z_<i),   q(z|x) = Π q(z_i | z_<i, x),   i from the topmost group down
    loss = E_q[−log p(x|z)] + β Σ γ_i KL(q(z_i | z_<i, x) ‖ p(z_i | z_<i)),   β = min(1, step / kl_warmup)
    IWAE-k = log (1/k) Σ p(x|z) Π p(z_i | z_<i) / q(z_i | z_<i, x)

Sums over an item's numbers and over its latents, means over items; γ_i is 1 unless a method balances its groups. One draw
gives the ELBO with every KL divergence in closed form, given what was drawn above it. Logged: `kl_1` of the topmost group,
`kl_2` of the next, …, all without weights; `warmup`, β.

The latent that samplers, codecs and probes see is flat, `(N, dim)`: the noise ε_i = (z_i − μ_p) / σ_p of all groups, the
topmost first. Under the prior it is N(0, I), so that a temperature scales every σ_p and a walk keeps to the prior; an image's
own is that of the posteriors' means. To decode it draws nothing.

Batch normalisation couples the items of a batch while training. In evaluation it uses running averages, so that bounds,
latents and samples are an item's own (`gencli/nn/moving_norm.py`).
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from gencli.config import opt
from gencli.core import Batch, Field, Losses, Rng, Spec, Turn, full_precision
from gencli.models.vae._bound import Bounded, Weigh, warmup
from gencli.models.vae._decoders import DECODERS, DecoderName
from gencli.nn.gaussian import DiagonalGaussian
from gencli.nn.moving_norm import MovingNorm, settle

Choose = Callable[[int, DiagonalGaussian, DiagonalGaussian | None], Tensor]
"""z_i from the group's place, its prior and, where there are data, its posterior."""


class Group(NamedTuple):
    """One group of latents: p(z_i | z_<i), q(z_i | z_<i, x), and z_i as it was drawn."""

    prior: DiagonalGaussian
    posterior: DiagonalGaussian
    z: Tensor

    def kl(self) -> Tensor:
        """KL(q ‖ p) `(N,)` in nats."""
        return self.posterior.kl(self.prior)

    def log_weight(self) -> Tensor:
        """log p(z_i) − log q(z_i) `(N,)`."""
        return self.prior.log_prob(self.z) - self.posterior.log_prob(self.z)


class Hierarchical(Bounded):
    """A bottom-up pass over data, a top-down pass over groups of latents; labels are not used."""

    codecs: ClassVar[tuple[Mapping[str, Any], ...]] = ({"name": "pixels"},)
    compilable = ()  # the top-down pass calls back at every group
    shardable = ()

    @dataclass(frozen=True)
    class Config:
        likelihood: DecoderName = opt("logistic", "distribution of the decoder; bernoulli needs the codec binarise")
        scale: float = opt(0.0, "scale of a gaussian or logistic decoder, in model space; 0 = learned", low=0)
        mixtures: int = opt(5, "components of a logistic-mixture decoder", low=1)
        kl_warmup: int = warmup()

    def __init__(self, config: Any, spec: Spec, shapes: Sequence[tuple[int, ...]]) -> None:
        super().__init__(config, dataclasses.replace(spec, cond={}))
        self.observed = DECODERS[config.likelihood](spec.x, config.scale, config.mixtures)
        self.shapes = [torch.Size(shape) for shape in shapes]
        self.latent = Field("latent", (sum(shape.numel() for shape in self.shapes),))

    @abstractmethod
    def up(self, x: Tensor) -> list[Tensor]:
        """What the data say to each group, before anything is drawn."""

    @abstractmethod
    def down(self, n: int, seen: list[Tensor] | None, choose: Choose) -> Tensor:
        """The decoder's numbers of `n` items, each group chosen in its turn; without `seen` there are no posteriors."""

    def balance(self, kls: Tensor, weight: float) -> Tensor:
        """γ of every group, from their KL divergences `(N, groups)` and β."""
        return torch.ones_like(kls[0])

    def normed(self) -> bool:
        """Whether the networks have batch normalisation."""
        return any(isinstance(module, MovingNorm) for module in self.modules())

    # ------------------------------------------------------------------------------------------------------------- training

    def loss(self, batch: Batch, turn: Turn) -> Losses:
        x = batch["x"]
        noise = turn.rng.at("posterior").normal((len(x), self.latent.size)).to(x.device)
        made, groups = self._inferred(self.up(x.to(self._dtype)), self.wide(noise))
        weight = self.kl_weight(turn)
        with full_precision(x.device):
            recon = -self.observed.log_prob(self.wide(made), self.wide(x))
            kls = torch.stack([group.kl() for group in groups], 1)
            each = recon + weight * (kls * self.balance(kls, weight)).sum(1)
        shown = self.shown(recon, kls.sum(1)) | {"warmup": recon.new_tensor(weight)}
        shown |= {f"kl_{i + 1}": kl for i, kl in enumerate(kls.detach().mean(0))}
        return {"loss": each.mean(), "each": each, **shown}

    def after_step(self, turn: Turn) -> None:
        settle(self)

    def _inferred(self, seen: list[Tensor], noise: Tensor) -> tuple[Tensor, list[Group]]:
        """The decoder's numbers at a draw from q, in the noise's precision, and the groups on the way."""
        parts, groups = self._split(noise), list[Group]()

        def choose(i: int, p: DiagonalGaussian, q: DiagonalGaussian | None) -> Tensor:
            assert q is not None
            with full_precision(noise.device):
                prior, posterior = (DiagonalGaussian(*(part.to(noise) for part in one)) for one in (p, q))
                groups.append(Group(prior, posterior, posterior.draw(parts[i])))
            return groups[-1].z

        return self.down(len(noise), seen, choose), groups

    def _split(self, flat: Tensor) -> list[Tensor]:
        parts = flat.split([shape.numel() for shape in self.shapes], 1)
        return [part.reshape(-1, *shape) for part, shape in zip(parts, self.shapes, strict=True)]

    # ----------------------------------------------------------------------------------------------------------- likelihood

    def weighing(self, x: Tensor, rng: Rng, exact: torch.dtype, cond: Mapping[str, Tensor]) -> Weigh:
        seen = self.up(x.to(self._dtype))

        def weigh(i: int, closed: bool) -> Tensor:
            noise = rng.at("posterior", i).normal((len(x), self.latent.size)).to(x.device, exact)
            made, groups = self._inferred(seen, noise)
            terms = torch.stack([-group.kl() if closed else group.log_weight() for group in groups])
            return self.observed.log_prob(made.to(exact), x.to(exact)) + terms.sum(0)

        return weigh

    # ------------------------------------------------------------------------------------------------------------- latents

    def carried(self, x: Tensor, rng: Rng) -> Tensor:
        """KL(q ‖ p) of every number of the latent `(N, dim)` in nats, given a draw of the groups above."""
        noise = self.wide(rng.normal((len(x), self.latent.size)).to(x.device))
        groups = self._inferred(self.up(x.to(self._dtype)), noise)[1]
        return torch.cat([group.posterior.kl_each(group.prior).flatten(1) for group in groups], 1)

    def prior(self, n: int, rng: Rng, **cond: Tensor) -> Tensor:
        """ε of all groups `(n, dim)`."""
        return rng.normal((n, self.latent.size)).to(self.device, self._dtype)

    def decode(self, z: Tensor, **cond: Tensor) -> Tensor:
        """The mean of p(x|z) where every group has the noise ε that `z` says."""
        parts = self._split(self.wide(z))
        return self.observed.mean(self.down(len(z), None, lambda i, p, q: p.draw(parts[i])))

    def encode(self, x: Tensor) -> Tensor:
        """ε `(N, dim)` of the posteriors' means, each given the means above it."""
        kept: list[Tensor] = []

        def choose(i: int, p: DiagonalGaussian, q: DiagonalGaussian | None) -> Tensor:
            assert q is not None
            kept.append(((q.mean - p.mean) * (-0.5 * p.log_var).exp()).flatten(1))
            return q.mean

        self.down(len(x), self.up(x.to(self._dtype)), choose)
        return torch.cat(kept, 1)

    def reconstruct(self, x: Tensor) -> Tensor:
        """x through the posteriors' means and back."""
        return self.decode(self.encode(x))
