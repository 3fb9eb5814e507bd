"""Semi-Supervised Learning with Ladder Networks (Rasmus et al., 2015). arXiv:1507.02672

Offers: classify

    encoder, l = 1 … L:    z̃ₗ = norm(Wₗ h̃ₗ₋₁) + n,   h̃ₗ = φ(γₗ (z̃ₗ + βₗ)),   h̃₀ = z̃₀ = x + n,   n ~ N(0, σ²)
    the same without n:    zₗ, with μₗ and sₗ the mean and deviation of Wₗ hₗ₋₁ over the batch
    decoder, l = L … 0:    uₗ = norm(Vₗ ẑₗ₊₁),   u_L = norm(h̃_L),   ẑₗ = (z̃ₗ − μ(uₗ)) v(uₗ) + μ(uₗ)
                           μ(u) = a₁ sigmoid(a₂ u + a₃) + a₄ u + a₅,   v(u) = a₆ sigmoid(a₇ u + a₈) + a₉ u + a₁₀
    loss = −log p̃(y | x) over labelled items + Σₗ λₗ |zₗ − (ẑₗ − μₗ)/sₗ|² / Dₗ over all,   z₀ = x, μ₀ = 0, s₀ = 1

The classes of a few labelled items and the shape of all data are learned together: each layer of the decoder must clean its
layer of the noisy encoder, given what the layers above have made of the item. φ is relu, softmax at the top (L, the classes);
γ is at the top only, as a relu does not need it. Each unit has ten numbers a.

`labels` items are labelled, as many of each class: the first of each that training meets, which depends on the seed alone;
the labels of all others are never looked at. Each step has as many labelled items as unlabelled ones, normalised apart
from them, evenly from the labelled set; with `labels` 0 all are labelled, and an item is both. `weights` are the λ from the
input upwards; the last one holds for all layers that are left.

Ours: classes are told with the running means and variances of the clean unlabelled batches (the released code's are of
labelled ones); Adam's schedule (the paper's is constant for 100 epochs, then linear for 50).

x has any shape, best in [0, 1]; the layers are fully connected. It makes no samples.

Raises GencliError for data without classes, for labels that the classes cannot share evenly or do not have, and for a single
item in a micro-batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gencli.config import opt
from gencli.core import Batch, Losses, Model, Rng, Spec, Turn, full_precision
from gencli.errors import GencliError
from gencli.models.discriminative._labelled import classes_of, refuse_noise

TINY = 1e-10  # added to variances, as in the released code


class Climb(NamedTuple):
    """What an encoder makes of a batch: z of every layer, mean and deviation before they were normalised, and the logits."""

    z: list[Tensor]
    mean: list[Tensor]
    deviation: list[Tensor]
    hidden: Tensor
    logits: Tensor


class Combinator(nn.Module):
    """ẑ of a noisy z̃ and what comes from above, ten numbers a unit."""

    def __init__(self, units: int) -> None:
        super().__init__()
        start = torch.zeros(10, units)
        start[1] = start[6] = 1.0
        self.a = nn.Parameter(start)

    def forward(self, noisy: Tensor, above: Tensor) -> Tensor:
        a = self.a
        mean = a[0] * (a[1] * above + a[2]).sigmoid() + a[3] * above + a[4]
        share = a[5] * (a[6] * above + a[7]).sigmoid() + a[8] * above + a[9]
        return (noisy - mean) * share + mean


class LadderNetwork(Model):
    """A classifier whose layers are denoised from above."""

    codecs: ClassVar[tuple[Mapping[str, Any], ...]] = ({"name": "pixels", "range": "0,1"},)
    clean_only: ClassVar[bool] = True
    couples = True  # batch normalisation
    training_only = ("down.", "combinators.", "labelled_")
    compilable = ()
    shardable = ()

    labelled_x: Tensor
    labelled_y: Tensor

    @dataclass(frozen=True)
    class Config:
        labels: int = opt(100, "items whose labels are used, as many of each class; 0 = all", low=0)
        units: tuple[int, ...] = opt((1000, 500, 250, 250, 250), "hidden units, from the data upwards")
        noise: float = opt(0.3, "deviation σ of the noise in every layer", low=0)
        weights: tuple[float, ...] = opt((1000.0, 10.0, 0.1), "weights λ of denoising, the last for all layers above")

    def __init__(self, config: Config, spec: Spec) -> None:
        super().__init__(config, spec)
        self.classes = classes_of(spec, "ladder-network")
        if config.labels % self.classes:
            raise GencliError(
                f"labels is {config.labels}, which {self.classes} classes cannot share evenly",
                f"give a multiple of {self.classes}, or 0 for all",
            )
        sizes = (spec.x.size, *config.units, self.classes)
        if min(sizes) < 1 or not 1 <= len(config.weights) <= len(sizes):
            raise GencliError(
                f"{len(config.weights)} weights for the {len(sizes)} layers {', '.join(map(str, sizes))}",
                f"give --weights from one to {len(sizes)} numbers, and units of 1 or more",
            )
        self.up = nn.ModuleList(nn.Linear(below, above, bias=False) for below, above in pairwise(sizes))
        self.down = nn.ModuleList(nn.Linear(above, below, bias=False) for below, above in pairwise(sizes))
        for layer in (*self.up, *self.down):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
        self.norms = nn.ModuleList(nn.BatchNorm1d(size, eps=TINY, momentum=0.01, affine=False) for size in sizes[1:])
        self.shift = nn.ParameterList(nn.Parameter(torch.zeros(size)) for size in sizes[1:])
        self.gain = nn.Parameter(torch.ones(self.classes))
        self.combinators = nn.ModuleList(Combinator(size) for size in sizes)
        self.lambdas = [*config.weights, *[config.weights[-1]] * (len(sizes) - len(config.weights))]
        self.register_buffer("labelled_x", torch.zeros(config.labels, *spec.x.shape))
        self.register_buffer("labelled_y", torch.zeros(config.labels, dtype=torch.long))

    @torch.no_grad()
    def initialise(self, data: Iterator[Batch], count: int, rng: Rng) -> None:
        """Which items are labelled: the first of each class, in the order of training, then mixed."""
        each, seen = self.config.labels // self.classes, 0
        found: list[list[Tensor]] = [[] for _ in range(self.classes)]
        while seen < count and min(map(len, found)) < each:
            batch = next(data)
            for x, y in list(zip(batch["x"], batch["label"].tolist(), strict=True))[: count - seen]:
                if len(found[y]) < each:
                    found[y].append(x)
            seen += len(batch["x"])
        rarest = min(range(self.classes), key=lambda y: len(found[y]))
        if (there := len(found[rarest])) < each:
            raise GencliError(
                f"labels is {self.config.labels}, {each} of each class, and class {rarest} has {there} items",
                f"give --labels {there * self.classes} or fewer" if there else "use data with items of every class",
            )
        if each:
            mixed = rng.at("labelled").uniform((1, self.config.labels), torch.float64)[0].argsort().to(self.device)
            self.labelled_x.copy_(torch.stack([x for items in found for x in items]).to(self.device)[mixed])
            self.labelled_y.copy_(torch.arange(self.classes, device=self.device).repeat_interleave(each)[mixed])

    # ---------------------------------------------------------------------------------------------------------- the encoder

    def climb(self, x: Tensor, noise: list[Tensor] | None = None) -> Climb:
        """The encoder, clean or with the noise of every layer. Running statistics follow the clean one while training."""
        h = x.flatten(1).to(self.gain)
        h = h if noise is None else h + noise[0]
        z, means, deviations, hidden = [h], [torch.zeros_like(h[0])], [torch.ones_like(h[0])], h
        for i, (layer, norm, shift) in enumerate(zip(self.up, self.norms, self.shift, strict=True)):
            raw, hidden = layer(h), h
            clean = norm(raw) if noise is None else F.batch_norm(raw, None, None, training=True, eps=TINY)
            z.append(clean if noise is None else clean + noise[i + 1])
            means.append(raw.mean(0))
            deviations.append((raw.var(0, correction=0) + TINY).sqrt())
            h = (z[-1] + shift).relu() if i + 1 < len(self.up) else self.gain * (z[-1] + shift)
        return Climb(z, means, deviations, hidden, h)

    def _noise(self, rng: Rng, n: int) -> list[Tensor]:
        sizes = (self.spec.x.size, *self.config.units, self.classes)
        made = [rng.at("noise", i).normal((n, size)) for i, size in enumerate(sizes)]
        return [self.config.noise * part.to(self.gain) for part in made]

    def descend(self, noisy: Climb) -> list[Tensor]:
        """The decoder: ẑ of every layer, from the input upwards."""
        above, made = noisy.logits.softmax(1), []
        for i in range(len(self.up), -1, -1):
            u = F.batch_norm(above, None, None, training=True, eps=TINY)
            made.append(self.combinators[i](noisy.z[i], u))
            above = self.down[i - 1](made[-1]) if i else above
        return made[::-1]

    def costs(self, clean: Climb, estimates: list[Tensor]) -> Tensor:
        """|zₗ − (ẑₗ − μₗ)/sₗ|² / Dₗ of each layer `(L + 1,)`, the mean over items."""
        rows = zip(clean.z, clean.mean, clean.deviation, estimates, strict=True)
        return torch.stack([(z - (made - mean) / deviation).square().mean() for z, mean, deviation, made in rows])

    # ------------------------------------------------------------------------------------------------------------- the loss

    def loss(self, batch: Batch, turn: Turn) -> Losses:
        x = batch["x"]
        if len(x) < 2:
            raise GencliError(
                f"ladder-network normalises over items and was given {len(x)} at a time",
                "give a larger --batch-size, or fewer micro-batches",
            )
        with full_precision(x.device):
            clean, noisy = self.climb(x), self.climb(x, self._noise(turn.rng.at("unlabelled"), len(x)))
            costs = self.costs(clean, self.descend(noisy))
            logits, label = noisy.logits, batch["label"]
            if self.config.labels:
                at = (turn.rng.at("labelled").stratified(len(x)) * self.config.labels).long()
                at = at.clamp(max=self.config.labels - 1).to(x.device)
                label = self.labelled_y[at]
                logits = self.climb(self.labelled_x[at], self._noise(turn.rng.at("labelled"), len(x))).logits
            nats = F.cross_entropy(logits, label)
            denoising = (costs * costs.new_tensor(self.lambdas)).sum()
        right = (logits.argmax(1) == label).float().mean()
        shown = {"nats": nats.detach(), "denoising": denoising.detach(), "accuracy": right}
        return {"loss": nats + denoising, **shown}

    # ------------------------------------------------------------------------------------------------------------- classes

    def class_logits(self, x: Tensor, sigma: Tensor | None = None) -> Tensor:
        """`(N, classes)` of clean x; `sigma` may only be 0."""
        refuse_noise(sigma, "ladder-network")
        return self.climb(x).logits.to(x.dtype)

    def features(self, x: Tensor) -> Tensor:
        """`(N, D)`: the last hidden layer of clean x."""
        return self.climb(x).hidden
