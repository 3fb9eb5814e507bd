"""What samplers of restorations share: a measurement y = A x + σ_y n among the conditions, as `measured`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from gencli.config import Part, opt, part
from gencli.core import Batch, Model, Spec
from gencli.errors import GencliError
from gencli.operators._base import LinearOperator, Operator
from gencli.samplers._diffusion import DiffusionSampler, Memory


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

    def check(self, model: Model) -> None:
        super().check(model)
        if getattr(model, "codec_run", None) is not None:
            raise GencliError(
                f"sampler {self.public_name()} measures pixels, the model works on codes", "use a model of pixels"
            )

    def recalled(self, model: Any, spec: Spec, n: int, cond: Batch) -> Memory:
        if "measured" not in cond:
            raise GencliError(
                f"sampler {self.public_name()} restores images and was given none",
                "add --input IMAGE and --operator NAME",
            )
        operator = self.operator(spec)
        return {"operator": operator, "y": cond["measured"].to(model.device)}


def norms(r: Tensor) -> Tensor:
    """`(N,)` the length of each row."""
    return r.flatten(1).norm(dim=1)
