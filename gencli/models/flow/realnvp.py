"""Density estimation using Real NVP (Dinh, Sohl-Dickstein & Bengio, 2016). arXiv:1605.08803

Offers: sample, exact density

    x = (x₁, x₂),   z₁ = x₁,   z₂ = (x₂ + t(x₁)) ⊙ exp s(x₁),   log |det dz/dx| = Σ s(x₁)

A scale is `couplings` couplings whose two parts are the colours of a checkerboard, then, with every 2×2 square made channels,
as many whose parts are halves of the channels; then one colour leaves (its numbers are latents) and the next scale works on
the other at half the side. The last scale is one coupling more on checkerboards alone. z keeps the shape of the image. Data
without sides, such as points, have one scale, and parts of every second number.

As in the authors' code: s = a tanh(·) with one learned number a a coupling, from 0; the network sees its part normalised, as
relu(x, −x), with the checkerboard as one more channel; its width doubles with every halving of the side; couplings end in a
batch normalisation, whose log-determinant counts; lengths of filters and the numbers a have an L2 penalty.

Ours: means and variances at a coupling's end count only the numbers that it changes. `lag` is appendix E's moving average, in
the flow's own normalisations, for which the paper names no share. `norm = "actnorm"` has Glow's instead, of the same numbers,
which the first 256 items set; networks keep what normalisation they have. Inverting uses running statistics, as evaluation
does. With `classes` every coupling's network is told the label, so that the flow is a density of each class.

Raises GencliError for whole numbers, and for images whose sides cannot be halved often enough.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from gencli.config import Part, opt, part
from gencli.core import Field, Spec, Turn
from gencli.errors import GencliError
from gencli.models.flow._dequantiser import Dequantisation
from gencli.models.flow._family import Flow
from gencli.nn.actnorm import ActNorm
from gencli.nn.moving_norm import MovingNorm, ShiftedNorm, settle
from gencli.nn.sides import check_sides
from gencli.nn.squeeze import Corners, squeeze, unsqueeze


class RealNVP(Flow):
    """Affine couplings on several scales."""

    corners: ClassVar[Corners | None] = "colours"

    @dataclass(frozen=True)
    class Config(Dequantisation):
        scales: int = opt(2, "scales of an image; the side halves between them", low=1, high=8)
        couplings: int = opt(3, "couplings of each kind on a scale", low=1)
        constraint: float = opt(
            0.9, "share of the unit interval that data fill before the logit", low=0.01, high=0.9999
        )
        norm: Literal["batch", "actnorm", "none"] = opt(
            "batch", "normalisation at both ends of a coupling: of the batch, or by numbers that the first items set"
        )
        lag: float = opt(0.0, "share of the past in the statistics that training normalises with", low=0, high=0.999)
        penalty: float = opt(5e-5, "L2 penalty on lengths of filters and on the factors of s", low=0)
        classes: bool = opt(False, "a density of each class: couplings are told the label")
        net: Part = part("networks", "coupling-resnet", "network for s and t; wider at smaller sides", role="map")

    def __init__(self, config: Config, spec: Spec) -> None:
        super().__init__(config, spec)
        _check(config, spec.x)
        self.net = Scale(config, spec.x.shape, 0, self.spec.cond)
        self.couples = any(isinstance(module, MovingNorm) for module in self.modules())

    def transform(self, y: Tensor, **cond: Tensor) -> tuple[Tensor, Tensor]:
        return self.net(y, **cond)

    def unfold(self, z: Tensor, **cond: Tensor) -> Iterator[Tensor]:
        return self.net.unfold(z, **cond)

    def penalty(self) -> Tensor | float:
        lengths = [p for name, p in self.named_parameters() if name.endswith(("magnitude", "factor"))]
        return self.config.penalty * sum((p.square().sum() for p in lengths), start=0.0)

    def after_step(self, turn: Turn) -> None:
        settle(self)


class Coupling(nn.Module):
    """Changes one part of its input by what a network makes of the other."""

    changes: Tensor | None  # ones where a full-sized part may change

    def __init__(
        self, config: RealNVP.Config, shape: tuple[int, ...], doublings: int, swap: bool, cond: Mapping[str, Field]
    ) -> None:
        super().__init__()
        self.swap = swap
        count, sides = shape[0], shape[1:]
        widened = dataclasses.replace(config.net.config, width=config.net.config.width << doublings)
        net = dataclasses.replace(config.net, config=widened)
        ins = Field("coupling", (2 * count + self.extra(shape), *sides))
        self.net = net.build(ins, Field("coupling", (2 * count, *sides)), cond)
        if cond and getattr(self.net, "label", None) is None:
            raise GencliError(f"network {net.name} takes no class label", "leave --classes out, or use coupling-resnet")
        self.factor = nn.Parameter(torch.zeros(()))
        self.norm_in: Any = nn.Identity()
        self.norm_out: Any = None
        if config.norm == "batch":
            self.norm_in, self.norm_out = ShiftedNorm(count, config.lag), MovingNorm(count, config.lag)
        elif config.norm == "actnorm":
            self.norm_in, self.norm_out = ActNorm(count), ActNorm(count)
        self.register_buffer("changes", self.board(shape, swap), persistent=False)

    def board(self, shape: tuple[int, ...], swap: bool) -> Tensor | None:
        """Where a full-sized part may change."""
        return None

    def extra(self, shape: tuple[int, ...]) -> int:
        """Channels that the network is given besides its part."""
        return 0

    @abstractmethod
    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What stays and what changes."""

    @abstractmethod
    def join(self, stays: Tensor, changed: Tensor) -> Tensor:
        """The inverse of `parts`."""

    def seen(self, stays: Tensor) -> Tensor:
        """The network's input."""
        h = self.norm_in(stays)
        return torch.cat([h, -h], dim=1).relu()

    def _affine(self, stays: Tensor, cond: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        shift, raw = self.net(self.seen(stays), **cond).to(stays.dtype).chunk(2, dim=1)
        return self._only(shift), self._only(self.factor * raw.tanh())

    def _only(self, x: Tensor) -> Tensor:
        return x if self.changes is None else x * self.changes

    def forward(self, x: Tensor, **cond: Tensor) -> tuple[Tensor, Tensor]:
        """The output and its log-determinant `(N,)`."""
        stays, free = self.parts(x)
        shift, log_scale = self._affine(stays, cond)
        made = (free + shift) * log_scale.exp()
        if isinstance(self.norm_out, MovingNorm):
            mean, var = self.norm_out.moments(made, self.changes)
            made = self._only((made - mean) * var.rsqrt())
            log_scale = log_scale - self._only(0.5 * var.log().expand_as(made))
        elif self.norm_out is not None:
            made = self._only(self.norm_out(made, self.changes))
            log_scale = log_scale + self._only(self.norm_out.log_slope(made).expand_as(made))
        return self.join(stays, made), log_scale.flatten(1).sum(1)

    def inverse(self, z: Tensor, **cond: Tensor) -> Tensor:
        """The input, by running statistics."""
        stays, made = self.parts(z)
        shift, log_scale = self._affine(stays, cond)
        if isinstance(self.norm_out, MovingNorm):
            mean, var = self.norm_out.moments(made, self.changes)
            made = self._only(made * var.sqrt() + mean)
        elif self.norm_out is not None:
            made = self._only(self.norm_out.inverse(made))
        return self.join(stays, made * (-log_scale).exp() - shift)


class Checkerboard(Coupling):
    """Parts are the colours of a checkerboard over the sides, or every second number of data without sides."""

    changes: Tensor

    def board(self, shape: tuple[int, ...], swap: bool) -> Tensor:
        places = torch.meshgrid(*(torch.arange(side) for side in shape[1:] or shape), indexing="ij")
        odd = ((torch.stack(places).sum(0) + swap) % 2).float()
        return odd[None] if shape[1:] else odd

    def extra(self, shape: tuple[int, ...]) -> int:
        return 1 if shape[1:] else 0

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x * (1 - self.changes), x * self.changes

    def join(self, stays: Tensor, changed: Tensor) -> Tensor:
        return stays + changed

    def seen(self, stays: Tensor) -> Tensor:
        h = 2 * super().seen(stays)  # half of it was zero
        if stays.ndim == 2:
            return h
        return torch.cat([h, (1 - self.changes).to(h).expand(h.shape[0], -1, -1, -1)], dim=1)


class Halves(Coupling):
    """Parts are halves of the channels."""

    def __init__(
        self, config: RealNVP.Config, shape: tuple[int, ...], doublings: int, swap: bool, cond: Mapping[str, Field]
    ) -> None:
        super().__init__(config, (shape[0] // 2, *shape[1:]), doublings, swap, cond)

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, second = x.chunk(2, dim=1)
        return (second, first) if self.swap else (first, second)

    def join(self, stays: Tensor, changed: Tensor) -> Tensor:
        return torch.cat([changed, stays] if self.swap else [stays, changed], dim=1)


class Scale(nn.Module):
    """One scale and those inside it, between tensors of shape `(N, *shape)`."""

    def __init__(self, config: RealNVP.Config, shape: tuple[int, ...], level: int, cond: Mapping[str, Field]) -> None:
        super().__init__()
        last = level == config.scales - 1 or len(shape) == 1
        boards = config.couplings + last
        self.boards: Any = nn.ModuleList(Checkerboard(config, shape, level, i % 2 == 1, cond) for i in range(boards))
        self.halves: Any = nn.ModuleList()
        self.rest: Any = None
        if not last:
            channels, sides = shape[0], tuple(side // 2 for side in shape[1:])
            inner = (4 * channels, *sides)
            self.halves.extend(Halves(config, inner, level + 1, i % 2 == 1, cond) for i in range(config.couplings))
            self.rest = Scale(config, (2 * channels, *sides), level + 1, cond)

    def forward(self, x: Tensor, **cond: Tensor) -> tuple[Tensor, Tensor]:
        """z and log |det dz/dx| `(N,)`."""
        total = x.new_zeros(len(x))
        for coupling in self.boards:
            x, log_det = coupling(x, **cond)
            total = total + log_det
        if self.rest is None:
            return x, total
        x = squeeze(x, "rows")
        for coupling in self.halves:
            x, log_det = coupling(x, **cond)
            total = total + log_det
        stays, leaves = squeeze(unsqueeze(x, "rows"), "colours").chunk(2, dim=1)
        stays, log_det = self.rest(stays, **cond)
        return unsqueeze(torch.cat([stays, leaves], dim=1), "colours"), total + log_det

    def unfold(self, z: Tensor, **cond: Tensor) -> Iterator[Tensor]:
        """z with one more coupling undone at a time; x last."""
        if self.rest is not None:
            inner, leaves = squeeze(z, "colours").chunk(2, dim=1)
            for stays in self.rest.unfold(inner, **cond):
                z = unsqueeze(torch.cat([stays, leaves], dim=1), "colours")
                yield z
            for coupling in reversed(self.halves):
                z = unsqueeze(coupling.inverse(squeeze(z, "rows"), **cond), "rows")
                yield z
        for coupling in reversed(self.boards):
            z = coupling.inverse(z, **cond)
            yield z


def _check(config: RealNVP.Config, x: Field) -> None:
    if len(x.shape) == 1 and x.size > 1:
        return
    if len(x.shape) != 3:
        raise GencliError(
            f"realnvp works on images (channels, height, width) or on points of two or more numbers, got {x.kind} of shape "
            f"{x.shape}",
            "choose other data",
        )
    stride = 1 << (config.scales - 1)
    check_sides(*x.shape[1:], stride, "fewer --scales")
    if min(x.shape[1:]) < 2 * stride:
        raise GencliError(
            f"an image of {x.shape[1]}×{x.shape[2]} has too few pixels for {config.scales} scales", "use fewer --scales"
        )
