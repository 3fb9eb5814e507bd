"""What every guidance is: a denoiser made of denoisers, `D(x, σ)` with the conditions inside.

The order, from the inside: guidance (without a classifier, or by a worse model), a classifier's gradient, all of it only in
an interval of levels, and outermost the clip to the data's range.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gencli.core import Batch, Classifier, Denoiser, Field
from gencli.errors import GencliError

Denoise = Callable[[Tensor, Tensor], Tensor]  # (x, sigma) -> x0, conditions and guidance inside


@dataclass(frozen=True)
class Guidance:
    """How a model is guided; the default is not at all.

    Args:
        scale: 1 = conditional, no second call; 0 = unconditional; the paper's w is scale − 1.
        interval: the least and the greatest σ at which it works; None = all.
        guide: a worse model to move away from, instead of the same one without its condition.
        classifier: whose log p(y|x) is climbed.
        strength: of the classifier; 1 = Bayes' rule.
        names: what receipts say of the guide and the classifier, key by key.
    """

    scale: float = 1.0
    interval: tuple[float, float] | None = None
    guide: Denoiser | None = None
    classifier: Classifier | None = None
    strength: float = 1.0
    names: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, value: float | Guidance) -> Guidance:
        """A number is a scale."""
        return value if isinstance(value, Guidance) else cls(scale=float(value))

    def only_scale(self, sampler: str) -> float:
        """The scale, for samplers that know no levels of noise; anything else is refused."""
        if self.interval or self.guide is not None or self.classifier is not None:
            raise GencliError(
                f"sampler {sampler} takes a guidance scale only: intervals, guides and classifiers work on noise levels",
                "leave --guidance-interval, --guide and --classifier out, or sample a diffusion model",
            )
        return self.scale

    def left(self, model: Any) -> tuple[dict[str, Tensor], Guidance]:
        """What a model that was taught with a scale is told of it, and the guidance that is left to calls of the network.

        Raises:
            GencliError: a scale that the model was not taught, or an interval or a guide, which it cannot be told.
        """
        if getattr(model, "scales", None) is None:
            return {}, self
        if self.interval is not None or self.guide is not None:
            raise GencliError(
                f"{model.public_name()} does its guidance within one call: it can be told a scale only",
                "leave --guidance-interval and --guide out, or sample its teacher",
            )
        low, high = model.scales
        if not low <= self.scale <= high:
            raise GencliError(
                f"guidance {self.scale:g}: the run was taught scales from {low:g} to {high:g}", "use one of them"
            )
        return {"guidance": torch.tensor(self.scale - 1)}, dataclasses.replace(self, scale=1.0)

    @property
    def classes(self) -> Field | None:
        """What the classifier tells apart."""
        spec = getattr(self.classifier, "spec", None)
        return None if spec is None else spec.cond.get("label")

    def guides(self, cond: Batch) -> bool:
        """Whether it changes anything, given the conditions that the model takes."""
        scaled = self.scale != 1.0 and (self.guide is not None or bool(cond))
        return scaled or (self.classifier is not None and self.strength != 0.0)

    def calls(self, cond: Batch) -> int:
        """Network evaluations a call of the guided denoiser takes inside the interval; outside it takes one."""
        doubled = self.scale not in (0.0, 1.0) and (self.guide is not None or bool(cond))
        return 1 + doubled + (self.classifier is not None and self.strength != 0.0)

    def calls_at(self, sigmas: Iterable[float], cond: Batch) -> int:
        """Network evaluations of calls at these levels."""
        low, high = self.interval or (-math.inf, math.inf)
        many = self.calls(cond)
        return sum(many if low < sigma <= high else 1 for sigma in sigmas)

    def facts(self) -> dict[str, Any]:
        """For receipts."""
        made: dict[str, Any] = {"guidance": self.scale}
        if self.interval:
            made["guidance_interval"] = list(self.interval)
        if self.classifier is not None:
            made["classifier_scale"] = self.strength
        return made | dict(self.names)


PLAIN = Guidance()
