"""What functions to the end of a path share: levels, distances between end points, a target that follows as an average."""

from __future__ import annotations

import math
from functools import cached_property
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from gencli.core import Frozen
from gencli.models.diffusion._distilled import Distilled
from gencli.models.vae._perceptual import Perceptual
from gencli.samplers._levels import RHO

HUBER = 0.00054


class ToTheEnd(Distilled):
    """A student whose Config has `distance` and `perceptual` too."""

    meaning: ClassVar[Literal["mean", "transport", "endpoint"]] = "endpoint"

    @property
    def levels(self) -> None:
        """Any between the least and the greatest."""

    def sigma_at(self, u: Tensor) -> Tensor:
        """Time runs evenly in σ^(1/7), as the levels of training do."""
        low, high = (end ** (1 / RHO) for end in (self.sigma_min, self.sigma_max))
        return (low + u.double() * (high - low)) ** RHO

    def apart(self, a: Tensor, b: Tensor) -> Tensor:
        """The distance `(N,)` of two end points."""
        if self.config.distance == "perceptual":
            return self.seen.to(a.device).distance(a, b)
        error = (a - b).flatten(1)
        if self.config.distance == "pseudo-huber":
            least = HUBER * math.sqrt(error.shape[1])
            return (error.square().sum(1) + least**2).sqrt() - least
        return (error.abs() if self.config.distance == "l1" else error.square()).mean(1)

    @cached_property
    def seen(self) -> Frozen:
        """The perceptual network, read at the first loss."""
        return Frozen(distance=Perceptual(self.config.perceptual, self.spec.x))


@torch.no_grad()
def follow(average: nn.Module, now: nn.Module, weight: float) -> None:
    """The average, `weight` of the way nearer to what is now."""
    for old, new in zip(average.state_dict().values(), now.state_dict().values(), strict=True):
        old.lerp_(new, weight) if old.is_floating_point() else old.copy_(new)
