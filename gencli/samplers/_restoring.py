"""What samplers of restorations share: a measurement y = A x + σ_y n among the conditions, as `measured`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from gencli.config import Part, opt, part
from gencli.core import Batch, Spec
from gencli.errors import GencliError
from gencli.guidance._base import Denoise
from gencli.operators._base import LinearOperator, Operator
from gencli.samplers._diffusion import DiffusionSampler, Memory

SURE = 1e-3
"""The least deviation of a measurement's noise that a solver reckons with."""


@dataclass(frozen=True)
class Measured:
    """Settings of a measurement."""

    operator: Part = part("operators", "inpaint", "what is measured of the image")
    noise: float = opt(0.05, "deviation of the measurement's noise; data lie in −1 … 1", low=0)


class Restorer(DiffusionSampler):
    """Recalls the operator as `operator` and the measurement as `y`."""

    accepts: ClassVar[tuple[str, ...]] = ("mean",)
    takes: ClassVar[tuple[str, ...]] = ("measured",)
    linear: ClassVar[bool] = True  # whether it needs the singular values of A
    draws: ClassVar[bool] = True  # whether another seed gives another image

    def operator(self, spec: Spec) -> Operator:
        """A, for images of this shape.

        Raises:
            GencliError: the operator is not linear, and the sampler needs it to be.
        """
        made: Operator = self.config.operator.build(spec.x)
        if self.linear and not isinstance(made, LinearOperator):
            raise GencliError(
                f"sampler {self.public_name()} needs a linear operator, {made.public_name()} is none", "use dps"
            )
        return made

    def recalled(self, model: Any, spec: Spec, n: int, cond: Batch) -> Memory:
        if "measured" not in cond:
            raise GencliError(
                f"sampler {self.public_name()} restores images and was given none",
                "add --input IMAGE and --operator NAME",
            )
        operator = self.operator(spec)
        return {"operator": operator, "y": cond["measured"].to(model.device)}


def led(
    denoise: Denoise, x: Tensor, sigma: Tensor, memory: Memory, aim: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """D(x), and the gradient by x of `aim(D(x))`, a number; neither has a graph."""
    with torch.enable_grad():
        given = x.detach().requires_grad_()
        x0 = denoise(given, sigma)
        (slope,) = torch.autograd.grad(aim(x0), given)
    if "spread" in memory:
        memory["spread"] = memory["spread"].detach()
    return x0.detach(), slope
