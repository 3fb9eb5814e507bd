"""PixelCNN Models with Auxiliary Variables for Natural Image Modeling (Kolesnikov & Lampert, 2017). arXiv:1612.08185

Offers: sample, bound

    log p(X) = log p(X̂) + log p(X | X̂),   X̂ = X̂(X) a deterministic view of the image

The view is drawn first and settles what the image shows as a whole; the second factor only adds what is lacking. `view` is

- grey: the grey levels in `bits` bits, (299 R + 587 G + 114 B) / 1000 of colours and the mean of any other channels; of one
  channel, the image in fewer levels;
- pyramid: the image at 1/2, 1/4, … of its sides, `levels` of them, each place the rounded mean of a block of the image.
  log p is a sum over the levels, each given the smaller one: p(X_2) p(X_1 | X_2) p(X | X_1).

Every factor is a causal network, told the view above as an image, which the network embeds at every place: gated-pixelcnn
sees it `condition_blocks` + 1 pixels to all sides, after an image of half the sides was enlarged. All factors are trained
together, the loss being their sum.

A view follows from its image, so that log p(X, X̂) is log p(X) where p(X | X̂) draws only images of the view X̂. What else it
draws is not counted: Σ_X p(X, X̂) is 1 less the share of such draws, so the value is a bound, and a close one.

x is `(C, H, W)` whole numbers in 0 … V−1. A latent is a normal number for each number of the views and of x, `(N, L)`, the
smallest view first: a number's value is read off its distribution at the quantile that the latent has among normal ones.

Ours: gated PixelCNNs with a softmax in place of PixelCNN++, and a residual stack as the embedding; the weights of the
colours; labels, dropped with the probability `label_dropout`, so that one model serves with and without a class.

Raises GencliError for data that are no images of whole numbers, sides that the pyramid does not divide, and networks that
cannot be told an image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from gencli.config import Part, opt, part
from gencli.core import Batch, Field, Losses, Model, Rng, Spec, Turn
from gencli.errors import GencliError
from gencli.models._conditions import drop_labels
from gencli.models.autoregressive._family import INVERT, at_quantiles
from gencli.models.autoregressive.gated_pixelcnn import GatedPixelCNN
from gencli.networks._causal import Map

COLOURS = (299, 587, 114)  # thousandths of red, green and blue in a grey level
VIEW = "view"  # the condition that a factor is told


class PixelCNNAux(Model):
    """A view of the image, then the image given the view."""

    codecs: ClassVar[tuple[Mapping[str, Any], ...]] = ({"name": "tokens"},)
    likelihood: ClassVar[Literal["exact", "bound"]] = "bound"
    compilable = ()
    shardable = ()
    sequential: ClassVar[bool] = True  # decoding is a loop over tokens

    @dataclass(frozen=True)
    class Config:
        view: Literal["grey", "pyramid"] = opt(
            "grey", "what is drawn before the image: its grey levels, smaller images"
        )
        bits: int = opt(4, "bits of a grey level (view grey)", low=1, high=8)
        levels: int = opt(2, "smaller images, each of half the sides (view pyramid)", low=1, high=8)
        label_dropout: float = opt(0.1, "share of items trained without their label", low=0, high=1)
        net: Part = part("networks", "gated-pixelcnn", "causal network of each factor", role="sequence")

    def __init__(self, config: Config, spec: Spec) -> None:
        super().__init__(config, spec)
        fields = _fields(config, spec.x)
        self.names = [name for name, _ in fields]
        self.sizes = [field.size for _, field in fields]
        self.factors: Any = nn.ModuleList()
        above: dict[str, Field] = {}
        for _, field in fields:
            self.factors.append(_factor(config.net, Spec(field, {**spec.cond, **above})))
            above = {VIEW: field}

    # ----------------------------------------------------------------------------------------------------------------- views

    def views(self, x: Tensor) -> list[Tensor]:
        """What each factor makes, the smallest first and x itself last."""
        if self.config.view == "grey":
            return [grey_levels(x, self.spec.x.vocab or 0, self.factors[0].vocab), x]
        return [block_means(x, 2**i) for i in range(self.config.levels, 0, -1)] + [x]

    def shown(self, view: Tensor) -> Tensor:
        """A view as an image of x's shape and values."""
        if self.config.view == "grey":
            most, levels = (self.spec.x.vocab or 1) - 1, self.factors[0].vocab
            return ((2 * view * most + levels - 1) // (2 * (levels - 1))).expand(-1, *self.spec.x.shape)
        times = self.spec.x.shape[-1] // view.shape[-1]
        return view.repeat_interleave(times, 2).repeat_interleave(times, 3)

    # ------------------------------------------------------------------------------------------------------------ likelihood

    def loss(self, batch: Batch, turn: Turn) -> Losses:
        cond = self._known(batch)
        if self.training:
            cond = drop_labels(cond, self.spec.cond, self.config.label_dropout, turn.rng.at("labels"))
        nats = [-log for log in self.log_probs(batch["x"], cond)]
        each = torch.stack(nats).sum(0)
        bits = {f"bits_of_{name}": n.mean().detach() / math.log(2) for name, n in zip(self.names, nats, strict=True)}
        whole = each.mean().detach() / (math.log(2) * self.spec.x.size)
        return {"loss": each.mean(), "each": each, **bits, "bits_per_dim": whole}

    def log_prob(self, x: Tensor, rng: Rng, samples: int = 1, **cond: Tensor) -> Tensor:
        """log p(X̂(x)) + log p(x | X̂(x)) in nats `(N,)`; without randomness."""
        return torch.stack(self.log_probs(x, self._known(cond))).sum(0)

    @staticmethod
    def estimate(samples: int) -> str:
        """What `log_prob` is called."""
        return "log p(x, view)"

    def log_probs(self, x: Tensor, cond: Batch) -> list[Tensor]:
        """The logarithm of each factor `(N,)`."""
        made, above = [], Batch()
        for factor, view in zip(self.factors, self.views(x), strict=True):
            made.append(factor.log_prob(view, INVERT, 1, **cond, **above))
            above = {VIEW: view}
        return made

    def _known(self, cond: Mapping[str, Tensor]) -> Batch:
        return {key: value for key, value in cond.items() if key in self.spec.cond}

    # -------------------------------------------------------------------------------------------------------------- sampling

    def prior(self, n: int, rng: Rng, **cond: Tensor) -> Tensor:
        """A normal number for each number of the views and of x."""
        wide = torch.float32 if rng.device.type == "mps" else torch.float64
        return rng.normal((n, sum(self.sizes)), wide)

    def decode(self, z: Tensor, **cond: Tensor) -> Tensor:
        """x of normal numbers `(N, L)`."""
        return self._walk(z, cond)[-1]

    def stages(self, z: Tensor, **cond: Tensor) -> list[Tensor]:
        """The views, then x."""
        *views, x = self._walk(z, cond)
        return [*map(self.shown, views), x]

    def _walk(self, z: Tensor, cond: Mapping[str, Tensor]) -> list[Tensor]:
        given, made, above = self._known(cond), [], Batch()
        for factor, normal in zip(self.factors, z.split(self.sizes, dim=1), strict=True):
            made.append(at_quantiles(factor, normal, {**given, **above}))
            above = {VIEW: made[-1]}
        return made


def grey_levels(x: Tensor, vocab: int, levels: int) -> Tensor:
    """Images `(N, C, H, W)` of `vocab` values as grey ones `(N, 1, H, W)` of `levels` values; in whole numbers, so exactly."""
    weights = COLOURS if x.shape[1] == 3 else (1,) * x.shape[1]
    summed = (x * torch.tensor(weights, device=x.device).view(-1, 1, 1)).sum(1, keepdim=True)
    return summed * levels // (sum(weights) * vocab)


def block_means(x: Tensor, side: int) -> Tensor:
    """`(N, C, H, W)` to `(N, C, H/side, W/side)`, means rounded half up; in whole numbers, so exactly."""
    blocks = x.unflatten(3, (-1, side)).unflatten(2, (-1, side))
    return (2 * blocks.sum((3, 5)) + side**2) // (2 * side**2)


def _fields(config: PixelCNNAux.Config, x: Field) -> list[tuple[str, Field]]:
    """What each factor makes, and its name, the smallest first."""
    if len(x.shape) != 3 or x.vocab is None or x.range is not None:
        values = f" with values in [{x.range[0]:g}, {x.range[1]:g}]" if x.range else ""
        raise GencliError(
            f"pixelcnn-aux needs images of whole numbers, got {x.kind} of shape {x.shape}{values}",
            "use image data and the tokens codec",
        )
    channels, high, wide = x.shape
    if config.view == "grey":
        grey = Field("image", (1, high, wide), vocab=min(2**config.bits, x.vocab))
        return [("grey", grey), ("image", x)]
    step = 2**config.levels
    if high % step or wide % step:
        raise GencliError(
            f"pixelcnn-aux cannot halve an image of {high}×{wide} pixels {config.levels} times",
            f"choose fewer levels (`--levels`), or sides that {step} divides",
        )
    sides = [(high >> i, wide >> i) for i in range(config.levels, -1, -1)]
    return [(f"{h}x{w}", Field("image", (channels, h, w), vocab=x.vocab)) for h, w in sides]


def _factor(net: Part, spec: Spec) -> GatedPixelCNN:
    """The autoregressive model of a view; labels are dropped for all factors at once, not here."""
    settings = GatedPixelCNN.Config(0.0, net)
    if VIEW not in spec.cond:
        return GatedPixelCNN(settings, spec)
    use = "choose a network that can be told an image: `--net gated-pixelcnn`"
    try:
        made = GatedPixelCNN(settings, spec)
    except GencliError as error:  # the first factor was built, so what does not fit is the view
        raise GencliError(error.message, use) from error
    if not any(isinstance(module, Map) for module in made.modules()):
        raise GencliError(f"network {net.name} takes no image as a condition, which the view is", use)
    return made
