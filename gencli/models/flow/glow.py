"""Glow: Generative Flow with Invertible 1×1 Convolutions (Kingma & Dhariwal, 2018). arXiv:1807.03039

Offers: sample, exact density

    step    actnorm · y = W x at every pixel · x₂ ← (x₂ + t(x₁)) ⊙ sigmoid(s(x₁) + 2), or x₂ + t(x₁) if additive
    level   every 2×2 square made channels · `steps` steps · half of the channels leave

What leaves is Gaussian with a mean and a deviation that a convolution makes of what stays, and so is the rest at the end, by
learned numbers: z is all of it less its mean over its deviation, so that p(z) = N(0, I). W begins as a rotation and is kept as
it is, as in the released code; the paper's other form, P L (U + diag s), is in `linear-flow`. Actnorm is set by the first 256
items, then learned. x is taken as it is, in [0, 1) after dequantisation, without a logit. `temperature` of the sampler scales
the deviations.

Paper: CIFAR-10 has 32 affine steps on each of 3 levels and 512 channels in the networks: 44,603,604 parameters; Adamax at 1e-3.
Ours: Adam. With `classes` the networks of the couplings and the last deviations are told the label.

Raises GencliError for what is no image, and for sides that 2^levels does not divide.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gencli.config import Part, opt, part
from gencli.core import Field, Spec
from gencli.errors import GencliError
from gencli.models.flow._dequantiser import Dequantisation
from gencli.models.flow._family import Flow
from gencli.networks.glow_net import FromZero
from gencli.nn.actnorm import ActNorm
from gencli.nn.embed import LabelEmbedding
from gencli.nn.sides import check_sides
from gencli.nn.squeeze import Corners, squeeze, unsqueeze


class Glow(Flow):
    """Steps of flow on several levels."""

    logit: ClassVar[bool] = False
    corners: ClassVar[Corners | None] = "rows"

    @dataclass(frozen=True)
    class Config(Dequantisation):
        levels: int = opt(3, "levels L; the side halves before each", low=1, high=8)
        steps: int = opt(32, "steps of flow K on a level", low=1)
        additive: bool = opt(False, "couplings that only shift")
        classes: bool = opt(False, "a density of each class: couplings are told the label")
        net: Part = part("networks", "glow-net", "network of a coupling's shift and scale", role="map")

    def __init__(self, config: Config, spec: Spec) -> None:
        super().__init__(config, spec)
        if len(spec.x.shape) != 3:
            raise GencliError(
                f"glow works on images (channels, height, width), got {spec.x.kind} of shape {spec.x.shape}",
                "choose other data, or realnvp, maf or nsf for points",
            )
        check_sides(*spec.x.shape[1:], 1 << config.levels, "fewer --levels")
        self.net = Level(config, spec.x.shape, config.levels, self.spec.cond)

    def transform(self, y: Tensor, **cond: Tensor) -> tuple[Tensor, Tensor]:
        return self.net(y, cond)

    def unfold(self, z: Tensor, **cond: Tensor) -> Iterator[Tensor]:
        return self.net.unfold(z, cond)


class Step(nn.Module):
    """Actnorm, a 1×1 convolution and a coupling."""

    def __init__(self, config: Glow.Config, shape: tuple[int, ...], cond: Mapping[str, Field]) -> None:
        super().__init__()
        channels, half = shape[0], shape[0] // 2
        self.norm, self.additive = ActNorm(channels), config.additive
        self.mix = nn.Parameter(nn.init.orthogonal_(torch.empty(channels, channels)))
        out = Field("coupling", (half if config.additive else 2 * half, *shape[1:]))
        self.net = config.net.build(Field("half", (half, *shape[1:])), out, cond)

    def _coupling(self, stays: Tensor, cond: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Shift and log scale."""
        made = self.net(stays, **cond).to(stays.dtype)
        if self.additive:
            return made, torch.zeros_like(made)
        shift, raw = made[:, 0::2], made[:, 1::2]
        return shift, F.logsigmoid(raw + 2)

    def forward(self, x: Tensor, cond: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """y and log |det dy/dx| `(N,)`."""
        log_det = torch.linalg.slogdet(self.mix.to(x)).logabsdet * (x.shape[2] * x.shape[3])
        if self.norm.fitting:
            x = F.conv2d(self.norm(x), self.mix.to(x)[..., None, None])
        else:
            weight, bias = self.norm.before(self.mix)
            x = F.conv2d(x, weight.to(x)[..., None, None], bias.to(x))
        log_det = log_det + self.norm.volume(x)
        stays, free = x.chunk(2, dim=1)
        shift, log_scale = self._coupling(stays, cond)
        made = (free + shift) * log_scale.exp()
        return torch.cat([stays, made], dim=1), log_det + log_scale.flatten(1).sum(1)

    def inverse(self, y: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        stays, made = y.chunk(2, dim=1)
        shift, log_scale = self._coupling(stays, cond)
        y = torch.cat([stays, made * (-log_scale).exp() - shift], dim=1)
        mix = (
            self.mix if y.device.type == "mps" else self.mix.double()
        )  # as released: a small inverse, in double precision
        back = torch.linalg.inv(mix).to(y)
        return self.norm.inverse(F.conv2d(y, back[..., None, None]))


class Level(nn.Module):
    """One level and those inside it, between tensors of shape `(N, *shape)`."""

    def __init__(self, config: Glow.Config, shape: tuple[int, ...], left: int, cond: Mapping[str, Field]) -> None:
        super().__init__()
        channels, sides = 4 * shape[0], tuple(side // 2 for side in shape[1:])
        self.steps: Any = nn.ModuleList(Step(config, (channels, *sides), cond) for _ in range(config.steps))
        self.rest: Any = Level(config, (channels // 2, *sides), left - 1, cond) if left > 1 else None
        known = channels // 2 if self.rest else 2 * channels
        self.law = FromZero(known, 2 * (channels - channels // 2) if self.rest else 2 * channels)
        label = cond.get("label") if self.rest is None else None
        self.label = LabelEmbedding(label, 2 * channels, std=0.0) if label else None

    def _law(self, known: Tensor, cond: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Mean and log deviation of what leaves; at the end, of everything, by zeros of twice its channels."""
        made = self.law(known if self.rest is not None else torch.cat([torch.zeros_like(known)] * 2, dim=1))
        if self.label is not None:
            made = made + self.label(cond["label"])[..., None, None]
        mean, log_std = made.to(known.dtype).chunk(2, dim=1)
        return mean, log_std

    def forward(self, x: Tensor, cond: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """z and log |det dz/dx| `(N,)`."""
        x, total = squeeze(x, "rows"), x.new_zeros(len(x))
        for step in self.steps:
            x, log_det = step(x, cond)
            total = total + log_det
        if self.rest is None:
            mean, log_std = self._law(x, cond)
            z = (x - mean) * (-log_std).exp()
            return unsqueeze(z, "rows"), total - log_std.flatten(1).sum(1)
        stays, leaves = x.chunk(2, dim=1)
        mean, log_std = self._law(stays, cond)
        leaves = (leaves - mean) * (-log_std).exp()
        inner, log_det = self.rest(stays, cond)
        z = unsqueeze(torch.cat([inner, leaves], dim=1), "rows")
        return z, total + log_det - log_std.flatten(1).sum(1)

    def unfold(self, z: Tensor, cond: Mapping[str, Tensor]) -> Iterator[Tensor]:
        """z with one more step undone at a time; x last."""
        x = squeeze(z, "rows")
        if self.rest is None:
            mean, log_std = self._law(x, cond)
            x = x * log_std.exp() + mean
        else:
            inner, leaves = x.chunk(2, dim=1)
            for stays in self.rest.unfold(inner, cond):
                yield unsqueeze(torch.cat([stays, leaves], dim=1), "rows")
            mean, log_std = self._law(stays, cond)
            x = torch.cat([stays, leaves * log_std.exp() + mean], dim=1)
        for step in reversed(self.steps):
            x = step.inverse(x, cond)
            yield unsqueeze(x, "rows")
