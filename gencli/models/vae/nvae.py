"""NVAE: A Deep Hierarchical Variational Autoencoder (Vahdat & Kautz, 2020). arXiv:2007.03898

Offers: sample, bound, encode, reconstruct

    p(z_i | z_<i) = N(μ, σ²),   q(z_i | z_<i, x) = N(μ + Δμ, (σ Δσ)²),   p(z_1) = N(0, I)
    KL = ½ Σ (Δμ² / σ² + Δσ² − log Δσ² − 1)
    loss = −log p(x|z) + β Σ γ_i KL_i + λ (Σ_conv |W|_σ + Σ_norm max |gain|)

Groups of spatial latents over several scales, each made from those above it by residual cells (`gencli/networks/_nvae.py`):
of two normalised 3×3 convolutions on the way up, of a wide depthwise 5×5 one on the way down. The posterior is relative to the
prior: when p moves, q moves along. During the warm-up γ_i = (KL̄_i + 0.01) / α_i, brought to mean 1, asks less of groups that
say little, so that they come into use: KL̄_i is the batch's mean, α_i = s² / g for a scale s times as wide as the smallest,
with g groups. λ (`spectral`) smooths what the networks do; |W|_σ is the largest singular value of a bank of filters.

`groups` lists the groups of latents at each scale, from the smallest side to the largest, where a side is half the next: with
b `blocks` before the latents, images of side S have latents of sides …, S / 2ᵇ⁺¹, S / 2ᵇ. The width doubles with every
halving. Images whose sides do not divide are padded with their least value (28 to 32, as in the released code). Sampling at
a lower temperature, as for the paper's pictures, is `--temperature`.

Defaults are the released code's for MNIST, 33,363,134 parameters; so are the branches' weight of 0.1 and the bound of ±5.
Ours: the bound is on Δμ and log Δσ, where there it is on the sums, so that KL is the formula above; β begins at 0, there at
10⁻⁴; running averages of batch normalisation over about 10 steps, there 20; Adam, there Adamax.
Left out: normalising flows in the posterior (which the paper has for all data but MNIST), and statistics of batch
normalisation collected again for each temperature.

Images `(N, C, H, W)`; latents flat, see `gencli/models/vae/_hierarchy.py`.
Raises GencliError as of the decoders, for data that are no images, and for a scale without groups.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gencli.config import opt
from gencli.core import Batch, Losses, Spec, Turn
from gencli.errors import GencliError
from gencli.models.vae._hierarchy import Choose, Hierarchical
from gencli.networks._nvae import Cell, FilterConv
from gencli.nn.gaussian import DiagonalGaussian
from gencli.nn.moving_norm import ShiftedNorm
from gencli.nn.spectra import Spectra

BOUND = 5.0
LEAST_KL = 0.01  # added to a group's, so that its weight is never 0


def bounded(made: Tensor) -> Tensor:
    """Nearly the number itself, but within ±5."""
    return BOUND * (made / BOUND).tanh()


def residual(p: DiagonalGaussian, made: Tensor) -> DiagonalGaussian:
    """q = N(μ + Δμ, (σ Δσ)²) from Δμ and log Δσ, side by side in the channels."""
    mean, log_spread = bounded(made).chunk(2, 1)
    return DiagonalGaussian(p.mean + mean, p.log_var + 2 * log_spread)


class NVAE(Hierarchical):
    """Residual cells, residual posteriors."""

    training_only = ("spectra.",)

    @dataclass(frozen=True)
    class Config(Hierarchical.Config):
        groups: tuple[int, ...] = opt((5, 10), "groups of latents at each scale, from the smallest side up")
        channels: int = opt(20, "channels of a group of latents", low=1)
        width: int = opt(32, "feature maps at the image's side, doubled with every halving", low=2)
        blocks: int = opt(2, "halvings of the side before the first latents", low=0)
        cells: int = opt(3, "cells in a block", low=1)
        enc_cells: int = opt(2, "cells of the encoder for each group", low=1)
        dec_cells: int = opt(2, "cells of the decoder for each group", low=1)
        balance: bool = opt(True, "weigh the groups' KL divergences by their size during the warm-up")
        spectral: float = opt(0.0, "weight λ of the spectral regularisation", low=0)

        def __post_init__(self) -> None:
            if not self.groups or min(self.groups) < 1:
                raise GencliError(
                    f"nvae has groups {self.groups}, each scale has at least 1", "give as many as scales: 5,10"
                )

    def __init__(self, config: Config, spec: Spec) -> None:
        if len(spec.x.shape) != 3:
            raise GencliError(f"nvae needs images, got {spec.x.kind} of shape {spec.x.shape}", "choose image data")
        scales = len(config.groups)
        stride = 1 << (config.blocks + scales - 1)
        height, width = (-(-side // stride) for side in spec.x.shape[1:])
        self.where = [scale for scale, count in enumerate(config.groups) for _ in range(count)]
        shapes = [(config.channels, height << scale, width << scale) for scale in self.where]
        super().__init__(config, spec, shapes)
        self.padding = _padding(spec.x.shape[1:], stride)
        self.widths = [config.width << (config.blocks + scales - 1 - scale) for scale in range(scales)]
        self._build_up(spec.x.shape[0])
        self._build_down(height, width)
        self.spectra = Spectra([*self._filters()] if config.spectral else [])
        self.couples = self.normed()

    def _build_up(self, channels: int) -> None:
        c = self.config
        pre: list[nn.Module] = [FilterConv(channels, c.width, 3)]
        for block in range(c.blocks):
            pre += [*(Cell(c.width << block) for _ in range(c.cells - 1)), Cell(c.width << block, "down")]
        self.before = nn.Sequential(*pre)
        self.climbs = nn.ModuleList(  # from the widest scale to the smallest: the reverse of what the decoder does
            nn.Sequential(*(Cell(self.widths[scale]) for _ in range(c.enc_cells))) for scale in reversed(self.where)
        )
        self.falls = nn.ModuleList(Cell(wide, "down") for wide in self.widths[1:])
        top = self.widths[0]
        self.top = nn.Sequential(nn.ELU(), FilterConv(top, top, 1), nn.ELU())

    def _build_down(self, height: int, width: int) -> None:
        c, each = self.config, [self.widths[scale] for scale in self.where]
        self.start = nn.Parameter(nn.init.uniform_(torch.empty(self.widths[0], height, width)))
        self.posteriors = nn.ModuleList(FilterConv(wide, 2 * c.channels, 3) for wide in each)
        self.meets = nn.ModuleList(FilterConv(wide, wide, 1) for wide in each[1:])
        self.priors = nn.ModuleList(nn.Sequential(nn.ELU(), FilterConv(wide, 2 * c.channels, 1)) for wide in each[1:])
        self.cells = nn.ModuleList(
            nn.Sequential(*(Cell(wide, inner=6) for _ in range(c.dec_cells))) for wide in each[1:]
        )
        self.mixes = nn.ModuleList(FilterConv(wide + c.channels, wide, 1) for wide in each)
        self.rises = nn.ModuleList(Cell(wide, "up", inner=6) for wide in self.widths[:-1])
        post: list[nn.Module] = []
        for block in reversed(range(c.blocks)):
            post += [Cell(c.width << (block + 1), "up", inner=3)]
            post += [Cell(c.width << block, inner=3) for _ in range(c.cells - 1)]
        self.after = nn.Sequential(*post, nn.ELU(), FilterConv(c.width, self.observed.out.shape[0], 3))

    # -------------------------------------------------------------------------------------------------------------- passes

    def up(self, x: Tensor) -> list[Tensor]:
        """Features `(N, width, h, w)` for each group, the topmost first."""
        h = self.before(F.pad(x, self.padding, value=self.spec.x.range[0] if self.spec.x.range else 0.0))
        seen = []
        for i, climb in zip(reversed(range(len(self.where))), self.climbs, strict=True):
            h = climb(h)
            seen.append(h)
            if i and self.where[i - 1] < self.where[i]:
                h = self.falls[self.where[i - 1]](h)
        return [self.top(seen[-1]), *reversed(seen[:-1])]

    def down(self, n: int, seen: list[Tensor] | None, choose: Choose) -> Tensor:
        h, zeros = self.start.expand(n, -1, -1, -1), torch.zeros((n, *self.shapes[0]), device=self.device)
        p = DiagonalGaussian(self.wide(zeros), self.wide(zeros))
        for i, scale in enumerate(self.where):
            if i:
                h = self.rises[scale - 1](h) if scale > self.where[i - 1] else h
                h = self.cells[i - 1](h)
                mean, log_spread = bounded(self.wide(self.priors[i - 1](h))).chunk(2, 1)
                p = DiagonalGaussian(mean, 2 * log_spread)
            q = None
            if seen is not None:
                features = seen[i] + self.meets[i - 1](h) if i else seen[i]
                q = residual(p, self.wide(self.posteriors[i](features)))
            z = choose(i, p, q).to(self._dtype)
            h = self.mixes[i](torch.cat([h, z], 1))
        made = self.after(h)
        left, right, above, below = self.padding
        return made[:, :, above : made.shape[2] - below, left : made.shape[3] - right]

    # ------------------------------------------------------------------------------------------------------------ training

    def balance(self, kls: Tensor, weight: float) -> Tensor:
        if not self.config.balance or weight >= 1:
            return super().balance(kls, weight)
        sizes = kls.new_tensor([4.0**scale / self.config.groups[scale] for scale in self.where])
        gamma = (kls.detach().abs().mean(0) + LEAST_KL) / (sizes / sizes.min())
        return gamma / gamma.mean()

    def loss(self, batch: Batch, turn: Turn) -> Losses:
        losses = super().loss(batch, turn)
        if not self.config.spectral:
            return losses
        gains = [m.weight for m in self.modules() if isinstance(m, ShiftedNorm) and m.weight is not None]
        rough = self.spectra.total() + torch.stack([gain.abs().max() for gain in gains]).sum()
        penalty = self.config.spectral * rough
        return {**losses, "loss": losses["loss"] + penalty, "each": losses["each"] + penalty, "rough": rough.detach()}

    def after_step(self, turn: Turn) -> None:
        super().after_step(turn)
        if self.config.spectral:
            self.spectra.follow()

    def _filters(self) -> Iterator[partial[Tensor]]:
        for module in self.modules():
            if isinstance(module, FilterConv):
                yield partial(module.filters)
            elif isinstance(module, nn.Conv2d):
                yield partial(getattr, module, "weight")


def _padding(sides: tuple[int, ...], stride: int) -> tuple[int, int, int, int]:
    """Left, right, above and below, to the next multiple of the stride."""
    (above, below), (left, right) = ((spare // 2, spare - spare // 2) for spare in (-side % stride for side in sides))
    return left, right, above, below
