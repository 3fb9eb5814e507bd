"""What students share: a denoiser of any kind that is trained, and the saved run that teaches it.

The student is a denoiser of the teacher's own class and settings, so that it can begin with the teacher's weights whatever
their formulation, and is used through D(x; σ) alone. The teacher is read at the first loss and is no part of the student's
run, which is drawn from without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from gencli.core import Batch, Frozen, Model, Rng, Spec
from gencli.errors import GencliError
from gencli.guidance.cfg import guided
from gencli.models.diffusion._family import DiffusionModel, rows
from gencli.models.diffusion._teacher import teacher_of
from gencli.samplers._levels import ends

NEW = "net.number."  # weights of a student that no teacher has


class Distilled(Model):
    """A student whose Config has `teacher` and `denoiser`."""

    codecs = DiffusionModel.codecs
    meaning: ClassVar[Literal["mean", "transport", "endpoint"]] = "transport"
    denoiser: DiffusionModel

    def __init__(self, config: Any, spec: Spec) -> None:
        super().__init__(config, spec)
        chosen = config.denoiser
        if not issubclass(chosen.load(), (DiffusionModel, Distilled)):
            raise GencliError(
                f"{self.public_name()} trains a denoiser, {chosen.name} is none", "choose ddpm, edm or another"
            )
        self.denoiser = chosen.build(self.seen_by_the_denoiser(spec))
        if self.denoiser.meaning == "endpoint":
            raise GencliError(
                f"{self.public_name()} trains a denoiser, {chosen.name} has jumped to the end already",
                "choose the model that it was made from, such as ddpm or edm",
            )
        if self.scales and getattr(config, "guidance", 1.0) != 1.0:
            raise GencliError(
                f"guidance {config.guidance:g} for {chosen.name}, which is told every scale within its one call",
                "leave --guidance out: the student learns all of them",
            )

    def seen_by_the_denoiser(self, spec: Spec) -> Spec:
        """What the denoiser is built for."""
        return spec

    @property
    def net(self) -> nn.Module:
        """The network that is trained."""
        return self.denoiser.net

    @property
    def process(self) -> str:
        """As of the denoiser."""
        return self.denoiser.process

    @property
    def levels(self) -> Tensor | None:
        """Those that the denoiser is told of."""
        return self.denoiser.levels

    @property
    def sigma_min(self) -> float:
        """The least level worth a step."""
        return ends(self.denoiser)[0]

    @property
    def sigma_max(self) -> float:
        """The greatest level worth a step."""
        return ends(self.denoiser)[1]

    @property
    def scales(self) -> tuple[float, float] | None:
        """The least and the greatest scale of guidance that the denoiser is told; None where it is told none."""
        return getattr(self.denoiser, "scales", None)

    def sigma_at(self, u: Tensor) -> Tensor:
        """The level at the denoiser's own time u, where it has no table."""
        return self.denoiser.sigma_at(u)  # type: ignore[operator]  # of every one without a table

    def start(self, noise: Tensor, sigma: Tensor) -> Tensor:
        """Standard normal noise to x at the first level."""
        return self.denoiser.start(noise, sigma)

    def denoise(self, x: Tensor, sigma: Tensor, **cond: Tensor) -> Tensor:
        """The student's estimate of x0."""
        return self.denoiser.denoise(x, sigma, **cond)

    def prepared(self, batch: Batch, rng: Rng) -> tuple[Tensor, Batch]:
        """The data and the conditions of a training batch, as the denoiser has them."""
        return self.denoiser.prepared(batch, rng)

    def noise_like(self, data: Tensor, cond: Batch, rng: Rng) -> Tensor:
        """Standard normal noise of the data's shape, as the denoiser has it."""
        return self.denoiser.noise_like(data, cond, rng)

    # ---------------------------------------------------------------------------------------------------------- the teacher

    def initialise(self, data: Iterator[Batch], count: int, rng: Rng) -> None:
        """Begin with the teacher's weights, unless the student was given another network."""
        if self.config.teacher:
            self.inherit()

    def inherit(self) -> bool:
        """Whether the teacher is of the student's class and network, so that the student took its weights.

        Raises:
            GencliError: the teacher has an adapter's weights besides.
        """
        teacher, own = self.taught.teacher, self.denoiser.state_dict()
        new = {key: value for key, value in own.items() if key.startswith(NEW)}
        weights = {**teacher.state_dict(), **new}
        if type(teacher) is not type(self.denoiser):
            return False
        same = {key: value.shape for key, value in weights.items()} == {key: value.shape for key, value in own.items()}
        if same:
            self.denoiser.load_state_dict(weights)
        elif teacher.config == self.denoiser.config:
            raise GencliError(
                f"run {self.config.teacher} has an adapter, whose weights its student has no place for",
                "teach by the run that it was adapted from, or train a whole one from it",
            )
        return same

    def must_inherit(self, whose: str) -> None:
        """Take the teacher's weights.

        Raises:
            GencliError: its network is another; `whose` says what the student has of it.
        """
        if not self.inherit():
            raise GencliError(
                f"{self.public_name()}: the student's denoiser is not that of run {self.config.teacher}, whose {whose}",
                "leave --denoiser and its settings out",
            )

    @cached_property
    def taught(self) -> Frozen:
        """The teacher, read at the first loss."""
        return Frozen(teacher=teacher_of(self.config.teacher, self.spec))

    def teaching(self, cond: Batch, device: torch.device, scale: float = 1.0) -> Callable[[Tensor, Tensor], Tensor]:
        """The teacher's D(x, σ) with the conditions inside, guided by `scale`."""
        teacher: Any = self.taught.to(device).teacher
        return guided(teacher.denoise, cond, scale)


def heun(denoise: Callable[[Tensor, Tensor], Tensor], x: Tensor, here: Tensor, there: Tensor) -> Tensor:
    """One step of second order of the probability-flow ODE, each row of x between levels of its own, none of them 0."""
    slope = (x - denoise(x, here)) / rows(here, x)
    stride = rows(there - here, x)
    ahead = x + stride * slope
    return x + stride * 0.5 * (slope + (ahead - denoise(ahead, there)) / rows(there, x))
