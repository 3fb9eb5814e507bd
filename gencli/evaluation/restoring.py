"""Restoration: images are measured by an operator, a sampler draws what may have been measured, and both are compared.

    x = encode(image),   y = A x + σ_y n  →  sampler  →  decode

The noise of the measurement is a function of the input's place, so that all restorations of an input explain the same one.
With `taken` the input is itself a picture of a measurement: nothing is added, and there is no original to compare with.

PSNR and SSIM are of the uint8 images that a person sees; of each restoration and of the mean of an input's, which is the
better estimate where many images are possible. The baseline is the linear estimate of data that are white around grey,
argmin |y − A x|² / σ_y² + |x|² / ½². The residual is |A x − y| / (σ_y √m) for m numbers measured: 1 for the truth.

Raises GencliError for runs whose space is no images, and what operators raise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from gencli.bundle import Run
from gencli.core import Batch, Rng
from gencli.evaluation.inputs import Inputs
from gencli.metrics.reconstruction import psnr, ssim
from gencli.operators._base import LinearOperator, Operator
from gencli.samplers._restoring import SURE

if TYPE_CHECKING:
    from gencli.samplers._restoring import Restorer

WHITE = 0.5
"""Deviation of the data that the baseline reckons with."""


@dataclass(frozen=True)
class Restoration:
    """Inputs and what was measured of them.

    Args:
        inputs: the images, or pictures of measurements.
        operator: A.
        y: `(M, …)` the measurements.
        noise: σ_y.
        each: restorations of an input.
        taken: the inputs are measurements.
    """

    inputs: Inputs
    operator: Operator
    y: Tensor
    noise: float
    each: int
    taken: bool

    @classmethod
    def of(cls, run: Run, sampler: Restorer, inputs: Inputs, each: int, taken: bool = False) -> Restoration:
        """What is measured of the inputs, in the run's model space."""
        sampler.check(run.model)
        operator, noise = sampler.operator(run.spec), float(sampler.config.noise)
        rng = Rng.rows(list(range(len(inputs))))
        x = run.encode({"x": inputs.x, **inputs.cond}, rng)["x"].cpu().double()
        if taken:
            return cls(inputs, operator, operator.taken(x), noise, each, taken)
        clean = operator.measure(x)
        z = rng.at("measurement").normal(clean.shape).to(clean)
        if isinstance(operator, LinearOperator):
            z = operator.lift(operator.lower(z))  # what is hidden has no noise either
        return cls(inputs, operator, clean + noise * z, noise, each, taken)

    @property
    def count(self) -> int:
        """Of the images that are made."""
        return len(self.inputs) * self.each

    def rows(self, labels: Batch) -> Batch:
        """The conditions of every image: an input's restorations follow one another."""
        own = {key: value.repeat_interleave(self.each, 0) for key, value in self.inputs.cond.items()}
        return {**own, **labels, "measured": self.y.repeat_interleave(self.each, 0)}

    def seen(self, run: Run) -> Tensor:
        """Pictures of the measurements `(M, C, H, W)` uint8."""
        return run.decode({"x": self.operator.seen(self.y).clamp(-1, 1).float()})["x"]

    def baseline(self, run: Run) -> Tensor | None:
        """What a linear estimate makes of them; None where A is not linear."""
        if not isinstance(self.operator, LinearOperator):
            return None
        made = self.operator.nearest(self.y, torch.zeros(len(self.y), *run.spec.x.shape).double(), self._weight)
        return run.decode({"x": made.clamp(-1, 1).float()})["x"]

    @property
    def _weight(self) -> float:
        return max(self.noise, SURE) ** 2 / WHITE**2

    def residual(self, run: Run, made: Tensor) -> float:
        """How well images `(M each, C, H, W)` explain what was measured; 1 for the truth."""
        x = run.encode({"x": made, **self.inputs.cond}, Rng.rows([0] * len(made)))["x"].cpu().double()
        left = self.operator.measure(x) - self.y.repeat_interleave(self.each, 0)
        measured = self._numbers()
        return float((left.flatten(1).norm(dim=1) / (max(self.noise, SURE) * math.sqrt(measured))).mean())

    def _numbers(self) -> int:
        if isinstance(self.operator, LinearOperator):
            return int((self.operator.values > 0).sum())
        return self.y[0].numel()

    def scores(self, run: Run, made: Tensor) -> dict[str, float]:
        """PSNR and SSIM of restorations, of their mean and of the baseline, and the residual."""
        found = {"residual": self.residual(run, made)}
        if self.taken:
            return found
        whole, mean = self.inputs.x.repeat_interleave(self.each, 0), self.means(made)
        pairs = {"": (whole, made), "mean_": (self.inputs.x, mean)}
        if (plain := self.baseline(run)) is not None:
            pairs["baseline_"] = (self.inputs.x, plain)
        for prefix, (real, fake) in pairs.items():
            found[f"{prefix}psnr"], found[f"{prefix}ssim"] = (float(f(real, fake).mean()) for f in (psnr, ssim))
        return found

    def means(self, made: Tensor) -> Tensor:
        """The mean of each input's restorations, uint8."""
        return made.unflatten(0, (-1, self.each)).float().mean(1).round().to(torch.uint8)

    def sheet(self, run: Run, made: Tensor) -> Tensor:
        """Rows of the input, what was measured, and the restorations; without the first where the input is what was."""
        parts = [self.seen(run)[:, None], made.unflatten(0, (-1, self.each))]
        parts = parts if self.taken else [self.inputs.x[:, None], *parts]
        return torch.cat(parts, 1).flatten(0, 1)

    @property
    def facts(self) -> dict[str, Any]:
        """For the receipt."""
        inputs: Sequence[tuple[str, str]] = list(zip(self.inputs.names, self.inputs.digests, strict=True))
        return {
            "operator": cast(Any, self.operator).public_name(),
            "measured_numbers": self._numbers(),
            "noise": 0.0 if self.taken else self.noise,
            "taken": self.taken,
            "inputs": [{"input": name, "sha256": digest} for name, digest in inputs],
        }
