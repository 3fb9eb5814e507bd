"""What every sampler is: an iterator of frames, of which the last holds the samples."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from gencli.config import Component
from gencli.core import Batch, Field, Model, Rng, Spec
from gencli.errors import GencliError
from gencli.guidance._base import PLAIN, Guidance


@dataclass(frozen=True)
class Frame:
    """One state on the way to the samples.

    Args:
        x: what a person should see at this point, in model space `(N, *spec.x.shape)`; the last frame's are the samples.
        index: 0 … total − 1.
        total: number of frames.
        info: numbers about this state (`sigma`, `entropy`).
    """

    x: Tensor
    index: int
    total: int
    info: Mapping[str, Tensor] = field(default_factory=dict)


def without_guidance(cond: Batch, fields: Mapping[str, Field]) -> Batch:
    """What is left of the conditions where guidance drops them: grids and images, of which x is a part, stay."""
    return {key: value for key, value in cond.items() if len(fields[key].shape) > 1}


class Sampler(Component):
    """Needs one interface of a model and nothing else."""

    interface: ClassVar[type[Any]]  # Denoiser, NextToken, TokenDenoiser or LatentVariable
    takes: ClassVar[tuple[str, ...]] = ()  # what it must be given besides a model: `known`, `keep`, `measured`
    unguided: ClassVar[str] = ""  # why a guidance scale means nothing to it

    def __init__(self, config: Any) -> None:
        self.config = config

    @classmethod
    def fits(cls, model: type[Model]) -> bool:
        """Whether models of this class offer the interface, judged by its methods, so that nothing is built."""
        methods = [name for name, value in vars(cls.interface).items() if callable(value) and not name.startswith("_")]
        return all(hasattr(model, name) for name in methods)

    @classmethod
    def suits(cls, model: type[Model]) -> bool:
        """Whether a model of this class is worth looking at where a sampler must find one for itself."""
        return cls.fits(model)

    def check(self, model: Model) -> None:
        """Refuse a model that does not fit, with the reason."""
        if not isinstance(model, self.interface):
            name = type(self).__name__
            raise GencliError(
                f"sampler {name} needs a model that offers {self.interface.__name__}, {type(model).__name__} does not",
                "see `gencli list samplers` for one that fits",
            )

    @abstractmethod
    def frames(
        self, model: Model, spec: Spec, n: int, rng: Rng, cond: Batch, guidance: float | Guidance = PLAIN
    ) -> Iterator[Frame]:
        """Frames of `n` samples, one a row of `rng`; conditions are `(n, …)`; guidance 1 = conditional, no second call."""

    def trajectory(
        self, model: Model, spec: Spec, n: int, rng: Rng, cond: Batch, guidance: float | Guidance = PLAIN
    ) -> Iterator[Frame]:
        """Frames to look at, the same samples last; those of `frames` where they show the way already."""
        return self.frames(model, spec, n, rng, cond, guidance)

    def evaluations(self, model: Model, spec: Spec) -> int:
        """Network evaluations that one batch of samples costs, for the estimate shown before sampling."""
        return 1
