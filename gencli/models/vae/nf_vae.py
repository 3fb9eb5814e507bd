"""Variational Inference with Normalizing Flows (Rezende & Mohamed, 2015). arXiv:1505.05770

Offers: sample, bound, encode, reconstruct

    z_0 ~ N(μ(x), diag σ²(x)),   z_K = f_K ∘ … ∘ f_1(z_0),   log q(z_K|x) = log N(z_0; μ, σ²) − Σ_k log |det ∂f_k/∂z_{k−1}|

    ELBO = E[log p(x|z_K) + log p(z_K) − log q(z_K|x)]

`planar`, `radial`   the paper's maps (`nn/planar.py`), whose numbers the encoder makes; at first the identity, so that the
                     model begins as `vae`
`iaf`                z_k = σ_k ⊙ z_{k−1} + (1 − σ_k) ⊙ m_k with m_k and σ_k of a masked network that sees z_{k−1} and a
                     context of the encoder, in opposite orders in turn (Kingma et al., arXiv:1606.04934, algorithm 1)

The KL divergence has no closed form: training and bounds take log q − log p at the draw. Latents are flat, `(N, dim)`; `encode`
pushes the mean of z_0.

Paper: binarised MNIST with 40 latents, 400 maxout units, and up to 80 maps. Ours: the numbers of a map are an affine function
of `context` numbers of the encoder, not of its last hidden layer; a warm-up weighs the KL divergence (`kl_warmup`) where the
paper warms up log p(x, z); any decoder and learned prior of `vae`.

Raises GencliError as `vae` does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from gencli.config import opt
from gencli.core import Field
from gencli.models.vae._family import GaussianVAE
from gencli.nn.affine_autoregressive import AffineAutoregressive
from gencli.nn.bijection import Bijection, Chain
from gencli.nn.planar import Planar, Radial


class NfVae(GaussianVAE):
    """A Gaussian posterior pushed through a flow."""

    gaussian: ClassVar[bool] = False
    config: Any

    @dataclass(frozen=True)
    class Config(GaussianVAE.Config):
        flow: Literal["planar", "radial", "iaf"] = opt("planar", "maps that a draw of the Gaussian is pushed through")
        length: int = opt(8, "number of maps", low=1)
        context: int = opt(64, "numbers that the encoder makes for the maps", low=1)
        flow_width: int = opt(128, "hidden units in each of two layers of an iaf map's network", low=1)

    def build_networks(self, latent: Field, posterior: Field) -> None:
        super().build_networks(latent, posterior)
        self.flow = Chain(self.maps())

    @property
    def context_size(self) -> int:
        context: int = self.config.context
        return context

    def maps(self) -> Iterator[Bijection]:
        """The maps, first to last."""
        config = self.config
        for i in range(config.length):
            if config.flow == "iaf":
                hidden = (config.flow_width, config.flow_width)
                yield AffineAutoregressive(config.dim, hidden, config.context, reverse=i % 2 == 1, gate=True)
            else:
                yield (Planar if config.flow == "planar" else Radial)(config.dim, config.context)

    def push(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        return self.flow(z.to(self._dtype), context.to(self._dtype))
