"""Generating High Fidelity Images with Subscale Pixel Networks (Menick & Kalchbrenner, 2018). arXiv:1812.01608

Offers: sample, exact density

    p(x) = Π_m p(x_m | x_<m),   x_m = every S-th pixel of every S-th row from offset (m div S, m mod S) on

An image is S² interleaved slices of equal size, in the raster order of their offsets, each in raster order, channels
innermost. One decoder makes all of them: a causal network over a slice, told at every place what stands there in the slices
before. Those lie in channels by their offset relative to the slice that is made; where there is none, zeros, and a channel
that says so: from these it knows which slice it makes. `gated-pixelcnn` embeds them by its own residual stack.

`upscale_size`: the first slice, the image at 1/S of its size, has a network of its own, the others are its upscaling.
`low_bits` (with codec `bit-planes`): all slices' high bits come first, then their low bits by a network of its own that sees
all high bits too; log p(x) = log p(high) + log p(low | high).

Ours: the decoder is any causal network that takes an image as a condition, where the paper puts masked self-attention
before a gated PixelCNN; a training step may draw `drawn` of a network's slices, weighted so that the loss stays unbiased.

x is `(C, H, W)` pixels, `(2C, H, W)` halves of pixels, or `(h, w)` codes, whole numbers in 0 … V−1. Logits of values that
high or low bits cannot have are −10⁴.

Raises GencliError for continuous data, sides that S does not divide, networks that take no such condition, and for low
bits that do not fit the codec.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gencli import core
from gencli.config import Part, opt, part
from gencli.core import Batch, Field, Losses, Rng, Spec, Turn
from gencli.errors import GencliError
from gencli.models._conditions import drop_labels
from gencli.models.autoregressive._family import AutoregressiveModel
from gencli.networks._causal import Conditions, Tokens
from gencli.nn.sides import check_sides

IMPOSSIBLE = -1e4  # the logit of a value that cannot be; finite, so that logits may be interpolated
EMBEDDED = 8  # numbers for a code in the slices that a decoder is told


class Drawn(NamedTuple):
    """A sampling state: the tokens so far `(N,)` each, the conditions, and the state of the slice in the making."""

    tokens: tuple[Tensor, ...]
    none: Tensor  # (N, 0)
    cond: Batch
    inner: Any


class SPN(AutoregressiveModel):
    """Slices, one after the other."""

    _order: Tensor

    @dataclass(frozen=True)
    class Config:
        scale: int = opt(2, "S: an image is S² slices", low=1, high=32)
        upscale_size: bool = opt(False, "the first slice, a small image, has a network of its own")
        low_bits: int = opt(0, "low bits that codec bit-planes put apart, drawn after all high bits; 0 = none", low=0)
        drawn: int = opt(0, "slices of each network that a training step draws for an image; 0 = all", low=0)
        label_dropout: float = opt(0.1, "share of items trained without their label", low=0, high=1)
        net: Part = part("networks", "gated-pixelcnn", "causal network over a slice", role="sequence")

    def __init__(self, config: Config, spec: Spec) -> None:
        super().__init__(config, spec)
        _check(config, spec.x)
        self.flat = len(spec.x.shape) == 2
        planes, low = 2 if config.low_bits else 1, 1 << config.low_bits
        channels, high, wide = (1, *spec.x.shape) if self.flat else spec.x.shape
        sides = (high // config.scale, wide // config.scale)
        self.slice_shape = (channels // planes, *sides)
        self.tokens_read = Tokens(spec.x, self.vocab, EMBEDDED)
        self.values = (-(-self.vocab // low), low) if planes == 2 else (self.vocab,)  # of each plane
        count, first = config.scale**2, int(config.upscale_size)
        parts = [(range(first), 0, True), (range(first, count), 0, False), (range(count, planes * count), -1, False)]
        stages = [Stage(config, self, which, self.values[plane], blind) for which, plane, blind in parts if which]
        self.stages: Any = nn.ModuleList(stages)
        places = torch.arange(spec.x.size).view(1, *spec.x.shape)
        order = torch.empty_like(places).flatten()
        inner = stages[0].order  # within a slice
        for m, piece in enumerate(self.cut(places)[0]):
            order[m * len(inner) : (m + 1) * len(inner)] = piece.flatten()[inner]
        self.register_buffer("_order", order, persistent=False)

    @property
    def order(self) -> Tensor:
        return self._order

    def cut(self, x: Tensor) -> Tensor:
        """Slices `(N, planes S², C, H/S, W/S)`, all of the high bits before all of the low ones."""
        planes, side = len(self.values), self.config.scale
        x = x[:, None] if self.flat else x
        return torch.cat([cut(plane, side) for plane in x.chunk(planes, dim=1)], dim=1)

    def initialise(self, data: Iterator[Batch], count: int, rng: Rng) -> None:
        """Refuse data whose low bits are more than the model expects."""
        pieces = self.cut(next(data)["x"]).chunk(len(self.values), dim=1)
        for values, tokens, what in zip(self.values, pieces, ("high", "low"), strict=False):
            if int(tokens.max()) >= values:
                raise GencliError(
                    f"spn with {self.config.low_bits} low bits has {values} values for the {what} bits, the data have a "
                    f"{int(tokens.max())}",
                    "give the model and the codec bit-planes the same number of low bits",
                )

    # ---------------------------------------------------------------------------------------------------------- likelihood

    def told(self, pieces: Tensor) -> Tensor:
        """Slices of whole numbers as features `(N, slices, F, h, w)`, each plane's values spread over [−1, 1]."""
        dtype = next(self.stages.parameters()).dtype
        if self.tokens_read.table is not None:
            made = self.tokens_read(pieces.flatten(0, 1), dtype)
            return made.view(*pieces.shape[:2], *made.shape[1:])
        each = self.config.scale**2
        most = torch.tensor(self.values, device=pieces.device).sub(1).clamp(min=1).repeat_interleave(each)
        return pieces.to(dtype) * (2 / most.to(dtype))[:, None, None, None] - 1

    def nats(self, x: Tensor, cond: Batch, chosen: Rng | None = None) -> Tensor:
        """−log p `(N,)`; with `chosen`, an estimate from `drawn` slices of every network."""
        pieces = self.cut(x)
        told = self.told(pieces)
        total = torch.zeros(len(x), device=x.device)
        for i, stage in enumerate(self.stages):
            m = stage.every(len(x), x.device)
            if chosen is not None and 0 < self.config.drawn < len(stage.which):
                ranks = chosen.at(i).uniform((len(x), len(stage.which))).argsort(dim=1)
                m = m.gather(1, ranks[:, : self.config.drawn].to(m.device))
            targets = pieces[torch.arange(len(x), device=x.device)[:, None], m]
            logits = stage(targets, told, m, cond)  # (N, K, C, h, w, V)
            with core.full_precision(x.device):
                wide = logits if logits.dtype == torch.float64 else logits.float()
                lost = F.cross_entropy(wide.movedim(-1, 1), targets, reduction="none").flatten(1).sum(1)
            total = total + lost * (len(stage.which) / m.shape[1])
        return total

    def loss(self, batch: Batch, turn: Turn) -> Losses:
        cond = self.known(batch)
        if self.training:
            cond = drop_labels(cond, self.spec.cond, self.config.label_dropout, turn.rng.at("labels"))
        each = self.nats(batch["x"], cond, turn.rng.at("slices") if self.training else None)
        numbers = self.spec.x.size // len(self.values)  # of the data
        return {"loss": each.mean(), "each": each, "bits_per_dim": each.mean().detach() / (math.log(2) * numbers)}

    def _log_prob(self, x: Tensor, cond: Batch) -> Tensor:
        return -self.nats(x, cond)

    # ------------------------------------------------------------------------------------------------------------ sampling

    def logits(self, tokens: Tensor, **cond: Tensor) -> Tensor:
        pieces = self.cut(self._image(tokens))
        told, known, made = self.told(pieces), self.known(cond), []
        for stage in self.stages:
            logits = stage(pieces[:, list(stage.which)], told, stage.every(len(tokens), tokens.device), known)
            made.append(self._padded(logits.flatten(2, -2)[:, :, stage.order].flatten(1, 2)))
        return torch.cat(made, dim=1)

    def start(self, n: int, **cond: Tensor) -> Any:
        return Drawn((), torch.zeros(n, 0, dtype=torch.long, device=self.device), self.known(cond), ())

    def next(self, token: Tensor | None, state: Any) -> tuple[Tensor, Any]:
        tokens = state.tokens if token is None else (*state.tokens, token)
        m, inside = divmod(len(tokens), len(self.stages[0].order))
        stage = next(stage for stage in self.stages if m in stage.which)
        inner = state.inner
        if inside == 0:
            token = None
            inner = stage.start(self.told(self.cut(self._image(self._so_far(tokens, state.none)))), m, state.cond)
        logits, inner = stage.net.next(token, inner)
        return self._padded(logits), state._replace(tokens=tokens, inner=inner)

    def _so_far(self, tokens: tuple[Tensor, ...], none: Tensor) -> Tensor:
        known = torch.stack(tokens, dim=1) if tokens else none
        return F.pad(known, (0, len(self.order) - len(tokens)))

    def _image(self, tokens: Tensor) -> Tensor:
        x = torch.empty_like(tokens)
        x[:, self.order] = tokens
        return x.view(len(tokens), *self.spec.x.shape)

    def _padded(self, logits: Tensor) -> Tensor:
        return F.pad(logits, (0, self.vocab - logits.shape[-1]), value=IMPOSSIBLE)


class Stage(nn.Module):
    """One network and the slices that it makes.

    Args:
        config: the model's settings.
        model: whose slices they are.
        which: their numbers.
        values: of a token.
        blind: whether the network is told no slices.
    """

    sources: Tensor  # (S² or more, slots) the slice in each slot for each slice, −1 where there is none

    def __init__(self, config: SPN.Config, model: SPN, which: range, values: int, blind: bool = False) -> None:
        super().__init__()
        self.which = which
        sources = slots(config.scale, which)
        self.blind = blind or sources.shape[1] == 0
        shape, x = model.slice_shape, model.spec.x
        told = sources.shape[1] * (shape[0] * model.tokens_read.features + 1)
        cond = {} if self.blind else {"slices": Field("slices", (told, *shape[1:]))}
        field = Field(x.kind, shape[1:] if model.flat else shape, vocab=values)
        self.flat = model.flat
        self.net: Any = config.net.build(field, values, {**cond, **model.spec.cond})
        if cond and not any(isinstance(module, Conditions) for module in self.net.modules()):
            raise GencliError(
                f"network {config.net.name} takes no image as a condition, which slices are", "use gated-pixelcnn"
            )
        self.register_buffer("sources", sources, persistent=False)
        raster = torch.arange(math.prod(shape)).view(shape).movedim(0, -1).flatten()
        self.order: Tensor = getattr(self.net, "order", raster)

    def every(self, n: int, device: torch.device) -> Tensor:
        """The numbers of its slices `(N, K)`."""
        return torch.tensor(self.which, device=device).expand(n, -1)

    def forward(self, targets: Tensor, told: Tensor, m: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        """Logits `(N, K, C, h, w, V)` of slices `(N, K, C, h, w)` whose numbers are m `(N, K)`."""
        n, k = m.shape
        tokens = targets.flatten(0, 1)
        given = {key: value.repeat_interleave(k, dim=0) for key, value in cond.items()}
        made = self.net(tokens[:, 0] if self.flat else tokens, **given, **self.before(told, m))
        return (made[:, None] if self.flat else made).unflatten(0, (n, k))

    def start(self, told: Tensor, m: int, cond: Mapping[str, Tensor]) -> Any:
        """The network's state before slice m."""
        number = torch.full((len(told), 1), m, device=told.device)
        return self.net.start(len(told), **cond, **self.before(told, number))

    def before(self, told: Tensor, m: Tensor) -> Batch:
        """The slices that come before slices m `(N, K)`, in channels by their relative offset: `(N K, channels, h, w)`."""
        if self.blind:
            return {}
        index = self.sources[m - self.which.start]  # (N, K, slots)
        rows = torch.arange(len(told), device=told.device)[:, None, None]
        there = (index >= 0).to(told)[..., None, None, None]
        seen = told[rows, index.clamp(min=0)] * there  # (N, K, slots, F, h, w)
        marks = there.expand(*seen.shape[:3], 1, *seen.shape[4:])
        return {"slices": torch.cat([seen, marks], dim=3).flatten(2, 3).flatten(0, 1)}


def cut(x: Tensor, side: int) -> Tensor:
    """`(N, C, H, W)` to its slices `(N, side², C, H/side, W/side)`, in the raster order of their offsets."""
    n, channels, high, wide = x.shape
    parted = x.reshape(n, channels, high // side, side, wide // side, side)
    return parted.permute(0, 3, 5, 1, 2, 4).flatten(1, 2)


def join(pieces: Tensor, side: int) -> Tensor:
    """The inverse of `cut`."""
    n, _, channels, high, wide = pieces.shape
    parted = pieces.view(n, side, side, channels, high, wide).permute(0, 3, 4, 1, 5, 2)
    return parted.reshape(n, channels, high * side, wide * side)


def slots(side: int, which: range) -> Tensor:
    """`(len(which), slots)`: the slices that are told to each slice, a slot for every relative offset; −1 for none.

    Slices from side² on are of low bits: they are told the low bits before them, and all high bits.
    """
    reach, count = range(1 - side, side), side**2
    offsets = [(i, j) for i in reach for j in reach]
    before = [(i, j) for i, j in offsets if (i, j) < (0, 0)]
    made = []
    for m in which:
        i, j = divmod(m % count, side)
        base = m // count * count
        row = [_number(i + di, j + dj, side, base) for di, dj in before]
        if base:
            row += [_number(i + di, j + dj, side, 0) for di, dj in offsets]
        made.append(row)
    return torch.tensor(made, dtype=torch.long)


def _number(i: int, j: int, side: int, base: int) -> int:
    return base + i * side + j if 0 <= i < side and 0 <= j < side else -1


def _check(config: SPN.Config, x: Field) -> None:
    if len(x.shape) not in (2, 3):
        raise GencliError(
            f"spn works on images and grids of codes, got {x.kind} of shape {x.shape}", "choose image data"
        )
    check_sides(x.shape[-2], x.shape[-1], config.scale, "another --scale")
    planes = len(x.shape) == 3 and x.shape[0] % 2 == 0
    if config.low_bits and not (planes and (1 << config.low_bits) < (x.vocab or 0)):
        raise GencliError(
            f"{config.low_bits} low bits do not fit {x.kind} of shape {x.shape} with {x.vocab} values",
            'give the recipe a table [[codecs]] with name = "bit-planes" and the same number of low bits',
        )
