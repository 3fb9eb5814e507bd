"""Ladder Variational Autoencoders (Sønderby et al., 2016). arXiv:1602.02282

Offers: sample, bound, encode, reconstruct

    up    d_n = MLP(d_n−1),  d_0 = x,   m_n = linear(d_n),   s²_n = softplus(linear(d_n))
    down  p(z_L) = N(0, I),   p(z_n | z_n+1) = N(μ_p, σ²_p) from an MLP of z_n+1,   p(x | z_1) from an MLP of z_1
    q     σ²_q = 1 / (s⁻² + σ_p⁻²),   μ_q = (m s⁻² + μ_p σ_p⁻²) σ²_q;   of the topmost layer N(m_L, s²_L)

What the data say on the way up is merged with what the layers above expect, by the precision of both: the normalised product
of two Gaussians. The KL divergence's weight rises from 0 to 1 over the warm-up (`kl_warmup`). Every linear layer is followed
by batch normalisation, those of m, s², μ_p and σ²_p too, but not the last one before x.

`latents` and `widths` list the layers from z_1, next to the data, to z_L: width n is that of the MLP below z_n on the way up,
and of the one that z_n makes z_n−1 (or x) with on the way down. One layer is `vae` with variances by a softplus.
Paper: five layers of 64, 32, 16, 8 and 4 latents between MLPs of two layers of 512, 256, 128, 64 and 32 units with leaky
rectifiers. From the released code: their slope 0.01, the normalised linear layers, variances that start near softplus(1) and
are at least 10⁻⁵. (There each pass may have MLPs of its own; here, as in the paper, p is one thing in both.)
Ours: running averages of the normalisation instead of statistics collected over the training set before each test.

Data `(N, *shape)` of any shape; latents flat, see `gencli/models/vae/_hierarchy.py`.
Raises GencliError as of the decoders, and for latents and widths of different number or below 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gencli.config import opt
from gencli.core import Spec
from gencli.errors import GencliError
from gencli.models.vae._hierarchy import Choose, Hierarchical
from gencli.nn.gaussian import DiagonalGaussian
from gencli.nn.moving_norm import ShiftedNorm

SLOPE = 0.01
LEAST_VARIANCE = 1e-5


def merge(seen: DiagonalGaussian, expected: DiagonalGaussian) -> DiagonalGaussian:
    """The normalised product of two Gaussians; exactly `expected` where `seen` has infinite variance."""
    wider = seen.log_var - expected.log_var
    mean = torch.lerp(expected.mean, seen.mean, (-wider).sigmoid())
    return DiagonalGaussian(mean, expected.log_var + F.logsigmoid(wider))


class LadderVAE(Hierarchical):
    """Inference that climbs the ladder and comes down it with the generative model."""

    @dataclass(frozen=True)
    class Config(Hierarchical.Config):
        latents: tuple[int, ...] = opt((64, 32, 16, 8, 4), "numbers in each layer of latents, from the data up")
        widths: tuple[int, ...] = opt((512, 256, 128, 64, 32), "units of the MLPs at each layer, from the data up")
        layers: int = opt(2, "hidden layers in an MLP", low=1)
        batch_norm: bool = opt(True, "batch normalisation after every linear layer but the last")

        def __post_init__(self) -> None:
            if len(self.latents) != len(self.widths) or not self.latents:
                raise GencliError(
                    f"ladder-vae has {len(self.latents)} layers of latents and {len(self.widths)} of widths",
                    "give as many of each: --latents 16,8 --widths 256,128",
                )
            if min(*self.latents, *self.widths) < 1:
                raise GencliError(
                    f"ladder-vae has latents {self.latents} and widths {self.widths}, the least is 1", "give 1 or more"
                )

    def __init__(self, config: Config, spec: Spec) -> None:
        super().__init__(config, spec, [(size,) for size in reversed(config.latents)])
        ins = [spec.x.size, *config.widths[:-1]]
        self.rungs = nn.ModuleList(self._mlp(a, b) for a, b in zip(ins, config.widths, strict=True))
        self.heads = nn.ModuleList(
            _Head(width, size, config.batch_norm) for width, size in zip(config.widths, config.latents, strict=True)
        )
        self.steps = nn.ModuleList(self._mlp(a, b) for a, b in zip(config.latents, config.widths, strict=True))
        self.priors = nn.ModuleList(
            _Head(width, size, config.batch_norm)
            for width, size in zip(config.widths[1:], config.latents[:-1], strict=True)
        )
        self.last = nn.Linear(config.widths[0], self.observed.out.size)
        self.couples = self.normed()

    def _mlp(self, ins: int, width: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for here in [ins, *[width] * (self.config.layers - 1)]:
            layers += [*linear(here, width, self.config.batch_norm), nn.LeakyReLU(SLOPE)]
        return nn.Sequential(*layers)

    def up(self, x: Tensor) -> list[Tensor]:
        """m and s² before the softplus `(N, 2 latents)` of each layer, the topmost first."""
        d, seen = x.flatten(1), list[Tensor]()
        for rung, head in zip(self.rungs, self.heads, strict=True):
            d = rung(d)
            seen.append(head(d))
        return seen[::-1]

    def down(self, n: int, seen: list[Tensor] | None, choose: Choose) -> Tensor:
        top, count = self.shapes[0], len(self.shapes)
        zeros = self.wide(torch.zeros((n, *top), device=self.device))
        p = DiagonalGaussian(zeros, zeros)
        for i in range(count):
            q = self._gaussian(seen[i]) if seen is not None else None
            z = choose(i, p, merge(q, p) if i and q is not None else q)
            h = self.steps[count - 1 - i](z.to(self._dtype))
            if i < count - 1:
                p = self._gaussian(self.priors[count - 2 - i](h))
        return self.last(h).unflatten(1, self.observed.out.shape)

    def _gaussian(self, made: Tensor) -> DiagonalGaussian:
        mean, before = self.wide(made).chunk(2, 1)
        return DiagonalGaussian(mean, (F.softplus(before) + LEAST_VARIANCE).log())


class _Head(nn.Module):
    """Mean and variance before the softplus, side by side."""

    def __init__(self, ins: int, size: int, norm: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(*linear(ins, 2 * size, norm))
        with torch.no_grad():
            last = self.body[-1].bias
            assert isinstance(last, nn.Parameter)
            last[size:] = 1.0

    def forward(self, d: Tensor) -> Tensor:
        return self.body(d)


def linear(ins: int, outs: int, norm: bool) -> list[nn.Module]:
    """A linear layer, normalised over the batch or not."""
    return [nn.Linear(ins, outs, bias=False), ShiftedNorm(outs, gain=True)] if norm else [nn.Linear(ins, outs)]
