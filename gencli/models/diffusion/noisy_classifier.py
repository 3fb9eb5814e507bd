"""Diffusion Models Beat GANs on Image Synthesis: its noisy classifier (Dhariwal & Nichol, 2021). arXiv:2105.05233

Offers: classify

    loss = −log p(y | x),   x = x_0 + σ_t n,   t uniform in 1 … T

with x scaled by 1/√(1 + σ²) for its network, which is told t − 1 of the nearest level, scaled to 1,000. Its gradient guides a
denoiser of the same data at any σ, whatever schedule that one was trained with. It makes no samples.

`class_logits` without a σ takes x as it is for clean.

Errors: data without class labels; whole numbers as data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from gencli.config import Part, opt, part
from gencli.core import Batch, Losses, Model, Spec, Turn
from gencli.errors import GencliError
from gencli.models.diffusion._chain import nearest_level
from gencli.models.diffusion._family import rows, variance_preserving, wide
from gencli.models.diffusion._schedules import SCHEDULES, ScheduleName, sigmas

TOLD = 1000


class NoisyClassifier(Model):
    """Classes of noisy data."""

    codecs: ClassVar[tuple[Mapping[str, Any], ...]] = ({"name": "pixels"},)

    @dataclass(frozen=True)
    class Config:
        timesteps: int = opt(1000, "levels of noise T", low=2, high=100_000)
        schedule: ScheduleName = opt("cosine", "how the noise grows")
        net: Part = part("networks", "adm-encoder", "the classifying network", role="classify")

    def __init__(self, config: Config, spec: Spec) -> None:
        super().__init__(config, spec)
        classes = spec.cond["label"].vocab if "label" in spec.cond else None
        if not classes:
            raise GencliError(
                "noisy-classifier needs data with class labels, these have none", "choose labelled data with --data"
            )
        if spec.x.vocab is not None and spec.x.range is None:
            raise GencliError(
                f"noisy-classifier adds noise to continuous data, got whole numbers ({spec.x.kind} of {spec.x.vocab} values)",
                "use images or points",
            )
        self._rising = sigmas(SCHEDULES[config.schedule](config.timesteps), "v").flip(0)
        self.net = config.net.build(spec.x, classes)

    def class_logits(self, x: Tensor, sigma: Tensor | None = None) -> Tensor:
        """`(N, classes)` for x at sigma `()` or `(N,)`; None = clean."""
        weights = next(self.net.parameters()).dtype
        sigma = wide(torch.zeros((), device=x.device) if sigma is None else sigma)
        level = nearest_level(self._rising, sigma) * (TOLD / self.config.timesteps)
        told = level.expand(len(x)).to(x.device, torch.float64 if weights == torch.float64 else torch.float32)
        return self.net((rows(variance_preserving(sigma), x) * x).to(weights), told).to(x.dtype)

    def loss(self, batch: Batch, turn: Turn) -> Losses:
        """Cross-entropy of each item at a level of its own; the mean over items."""
        x, label = batch["x"], batch["label"]
        step = turn.rng.at("levels").integers((len(x),), self.config.timesteps)
        sigma = self._rising[step.cpu()]
        noise = turn.rng.at("noise").normal(x.shape).to(x)
        logits = self.class_logits(x + rows(sigma, x) * noise, sigma)
        each = F.cross_entropy(logits.float(), label, reduction="none")
        right = (logits.argmax(1) == label).float()
        return {"loss": each.mean(), "each": each, "accuracy": right.mean()}
