"""Image Super-Resolution via Iterative Refinement (Saharia et al., 2021). arXiv:2104.07636

Offers: sample, exact density

    loss = E ‖n − F([x_t, ↑c], √ᾱ)‖,   x_t = √ᾱ x_0 + √(1 − ᾱ) n,   √ᾱ ~ U[√ᾱ_t, √ᾱ_{t−1}],   t ~ U{1 … T}

where c, the condition `image`, is smaller than x_0, and ↑ enlarges it to x's sides, bicubic; both lie side by side in channels.
The norm is `l2` or `l1`. The network is told √ᾱ and no index, so that one may sample at levels of another schedule than that of
training. β grows evenly from `beta_first` to `beta_last`. An image of x's own sides stays as it is: then this is Palette's
translation of images (arXiv:2111.05826). In the coordinates x = x_0 + σ n of all denoisers, √ᾱ = 1 / √(1 + σ²).

Cascades (Ho et al., 2021; arXiv:2106.15282): c may be drawn by another run, `gencli train sr3 --source image=RUN`, whose
mistakes this one must not believe. With `augment` > 0 it is trained, and told how much, on noisy images,

    c_s = √ᾱ_s c + √(1 − ᾱ_s) n,   s ~ U[0, augment T];   in sampling s = `level` T

noise being put on what the source drew (the paper's non-truncated form), or, with `truncated`, left there by a source that
stops at the level s. At level 0 nothing is changed.

The paper's are the norm of order one or two, the levels' law, concatenation, and the augmentation by noise. Ours: the network
is told 1,000 √ᾱ, and s / T by a plane of that value beside the image; the same schedule for image and noise; class labels with
a null. β and T are those of a third party's code (github.com/Janspiry); the authors published none.

Raises GencliError for data without an image to enlarge, for one that is larger than x, for a β, a level or an augmentation that
cannot be, and for sampling without an image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from gencli.config import Part, opt, part
from gencli.core import Batch, Rng, Spec
from gencli.errors import GencliError
from gencli.models.diffusion._family import ContinuousModel, eps, rows, variance_preserving, wide

TOLD = 1000.0
"""What √ᾱ is multiplied with for the network, whose sines and cosines are made for steps."""

IMAGE = "image"
PAIRED = ("reduced", "pairs", "edges")


class Sr3(ContinuousModel):
    """A denoiser of large images that sees small ones."""

    @dataclass(frozen=True)
    class Config:
        timesteps: int = opt(2000, "bins of the schedule T", low=2, high=100_000)
        beta_first: float = opt(1e-6, "β of the first bin", low=1e-12, high=0.999)
        beta_last: float = opt(0.01, "β of the last bin", low=1e-12, high=0.999)
        norm: Literal["l1", "l2"] = opt("l2", "of the error in the loss")
        augment: float = opt(
            0.0, "most noise on the image in training, as a share of the schedule; 0 = none", low=0, high=1
        )
        level: float = opt(0.0, "noise on the image in sampling, as a share of the schedule", low=0, high=1)
        truncated: bool = opt(False, "the image's source stops at that level, instead of noise being added afterwards")
        label_dropout: float = opt(0.1, "share of labels replaced by the null label in training", low=0, high=1)
        net: Part = part("networks", "unet", "the denoising network", role="denoise")

    def __init__(self, config: Config, spec: Spec) -> None:
        _check(config, spec)
        betas = torch.linspace(config.beta_first, config.beta_last, config.timesteps, dtype=torch.float64, device="cpu")
        self._roots = torch.cat([betas.new_ones(1), (1 - betas).cumprod(0).sqrt()])  # √ᾱ_0 = 1 … √ᾱ_T
        self.formulation = eps(lambda s: TOLD * variance_preserving(s))
        ends = torch.tensor([1 / config.timesteps, 1.0], dtype=torch.float64, device="cpu")
        self.sigma_min, self.sigma_max = self.sigma_at(ends).tolist()
        super().__init__(config, Spec(spec.x, {key: spec.cond[key] for key in (IMAGE, "label") if key in spec.cond}))
        small, large = spec.cond[IMAGE].shape[1:], spec.x.shape[1:]
        for name, few, many in zip(("tall", "broad"), small, large, strict=True):
            self.register_buffer(name, _enlarging(few, many), persistent=False)

    @classmethod
    def data_for(cls, config: Any, data: Mapping[str, Any]) -> Mapping[str, Any]:
        """A set of images is reduced; pairs are taken as they are."""
        name = data["name"]
        if name in PAIRED:
            return data
        return {"name": "reduced", "of": name, **{key: value for key, value in data.items() if key != "name"}}

    # ---------------------------------------------------------------------------------------------------------- the levels

    def sigma_at(self, u: Tensor) -> Tensor:
        """√ᾱ is drawn evenly inside a bin, so between the ends of one it grows evenly with u."""
        count = len(self._roots) - 1
        place = wide(u) * count
        below = place.floor().clamp(0, count - 1)
        roots, at = self._roots.to(place.device), below.long()
        root = roots[at] + (roots[at + 1] - roots[at]) * (place - below)
        return (1 / root**2 - 1).sqrt()

    def share_at(self, sigma: Tensor) -> Tensor:
        """u of a level."""
        root, count = 1 / (1 + wide(sigma) ** 2).sqrt(), len(self._roots) - 1
        roots = self._roots.to(root.device)
        below = (torch.searchsorted(-roots, -root, right=True) - 1).clamp(0, count - 1)
        share = (root - roots[below]) / (roots[below + 1] - roots[below])
        return ((below + share) / count).clamp(0, 1)

    # ----------------------------------------------------------------------------------------------------------- the image

    def beside(self) -> Mapping[str, int]:
        return {IMAGE: self.spec.cond[IMAGE].shape[0] + bool(self.config.augment)}

    def laid(self, key: str, given: Batch, x: Tensor) -> Tensor:
        """The image, and the plane that says how noisy it is, at x's sides."""
        if key not in given:
            raise GencliError("sr3 enlarges an image, and none is given", "add --input IMAGE")
        low = given[key].to(x)
        if low.shape[1] < self._beside[key]:  # no noise was put on it
            low = torch.cat([low, torch.zeros_like(low[:, :1])], 1)
        tall, broad = self.get_buffer("tall").to(x), self.get_buffer("broad").to(x)
        return torch.einsum("Hh,nchw,Ww->ncHW", tall, low, broad)

    def noised(self, image: Tensor, share: Tensor, rng: Rng) -> Tensor:
        """`(N, C + 1, h, w)`: images at levels given as shares `(N,)` of the schedule, and a plane of that share."""
        sigma = self.sigma_at(share)
        noisy = image + rows(sigma, image) * rng.normal(image.shape).to(image)
        return _marked(noisy / rows((1 + sigma**2).sqrt(), image), share)

    def prepared(self, batch: Batch, rng: Rng) -> tuple[Tensor, Batch]:
        data, cond = super().prepared(batch, rng)
        if self.config.augment and self.training:
            share = self.config.augment * rng.at("augment").uniform((len(data),))
            cond[IMAGE] = self.noised(cond[IMAGE], share, rng.at("augment", "noise"))
        return data, cond

    def supplied(self, cond: Batch, rng: Rng, noise: Mapping[str, Tensor]) -> Batch:
        if not self.config.augment or IMAGE not in cond:
            return cond
        image = cond[IMAGE]
        if IMAGE in noise:
            return {**cond, IMAGE: _marked(image, self.share_at(noise[IMAGE]))}
        share = torch.full((len(image),), self.config.level, device=image.device)
        return {**cond, IMAGE: self.noised(image, share, rng.at("augment"))}

    def until(self, key: str) -> float:
        if not self.config.truncated or key != IMAGE:
            return 0.0
        return float(self.sigma_at(torch.tensor(self.config.level, dtype=torch.float64, device="cpu")))

    # ------------------------------------------------------------------------------------------------------------ the loss

    def errors(self, data: Tensor, noise: Tensor, sigma: Tensor, cond: Batch) -> Tensor:
        if self.config.norm == "l2":
            return super().errors(data, noise, sigma, cond)
        return self.misses(data, noise, sigma, cond).abs().flatten(1).mean(1)


def _marked(image: Tensor, share: Tensor) -> Tensor:
    """The image and a plane of its level."""
    plane = rows(share, image).expand(len(image), 1, *image.shape[2:])
    return torch.cat([image, plane], 1)


def _enlarging(few: int, many: int) -> Tensor:
    """`(many, few)`: Pillow's bicubic filter along one side."""
    each = torch.eye(few, device="cpu")[None, None]
    return F.interpolate(each, size=(many, few), mode="bicubic", antialias=True)[0, 0]


def _check(config: Sr3.Config, spec: Spec) -> None:
    x, given = spec.x, spec.cond.get(IMAGE)
    if given is None:
        raise GencliError(
            "sr3 enlarges images, and the data have none to enlarge",
            "give --data a folder or a data set of images, such as digits",
        )
    sides = (x.shape[1:], given.shape[1:])
    if len(x.shape) != 3 or len(given.shape) != 3 or any(few > many for many, few in zip(*sides, strict=True)):
        raise GencliError(
            f"sr3 needs images no larger than those it makes, got {given.kind} {given.shape} for {x.kind} {x.shape}",
            "give --data a folder or a data set of images, such as digits",
        )
    if config.beta_first > config.beta_last:
        raise GencliError(f"beta_first {config.beta_first} is above beta_last {config.beta_last}", "give 1e-6 and 0.01")
    if config.level > config.augment:
        raise GencliError(
            f"level {config.level} is above augment {config.augment}, the most noise seen in training",
            f"give --augment {config.level} or more",
        )
    if config.truncated and not config.level:
        raise GencliError("truncated is set, and the image's source is to stop nowhere", "give --level above 0")
