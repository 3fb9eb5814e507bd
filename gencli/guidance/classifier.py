"""Diffusion Models Beat GANs on Image Synthesis: classifier guidance (Dhariwal & Nichol, 2021). arXiv:2105.05233

Offers: guidance

    D = D(x, σ) + s σ² ∇ₓ log p(y | x, σ)

For every sampler alike, since the score (D − x) / σ² gains s ∇ log p. The paper has two forms of it: ε − s √(1 − ᾱ) ∇ log p
for DDIM, and a shift of the ancestral mean by s Σ ∇ log p to first order in the step. The classifier is trained on noisy
images (`noisy-classifier`); s = 1 is Bayes' rule, s = 0 is the model alone and costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gencli.config import Component, opt
from gencli.core import Classifier, as_rows
from gencli.guidance._base import Denoise


class ClassifierGuidance(Component):
    """A denoiser that climbs a classifier's log-probability."""

    @dataclass(frozen=True)
    class Config:
        scale: float = opt(1.0, "strength s; 1 = Bayes' rule")

    def __init__(self, config: Config) -> None:
        self.config = config

    def __call__(self, denoise: Denoise, classifier: Classifier, label: Tensor) -> Denoise:
        return climbing(denoise, classifier, label, self.config.scale)


def climbing(denoise: Denoise, classifier: Classifier, label: Tensor, scale: float) -> Denoise:
    """`denoise` plus `scale` σ² times the gradient of the classifier's log p(label | x)."""
    if scale == 0.0:
        return denoise

    def guided(x: Tensor, sigma: Tensor) -> Tensor:
        slope = log_slope(classifier, x, sigma, label)
        return denoise(x, sigma) + scale * as_rows(sigma, x).to(x) ** 2 * slope

    return guided


def log_slope(classifier: Classifier, x: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
    """∇ₓ log p(label | x, σ), each item its own."""
    with torch.enable_grad():
        here = x.detach().requires_grad_(True)
        chance = classifier.class_logits(here, sigma).log_softmax(-1)
        chosen = chance.gather(1, label[:, None]).sum()
        (slope,) = torch.autograd.grad(chosen, here)
    return slope
