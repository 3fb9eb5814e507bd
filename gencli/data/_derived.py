"""Data sets made from another one of images: x is that set's image, and something is worked out from it."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from gencli import registry
from gencli.config import opt
from gencli.core import Field, Spec
from gencli.data._base import Data, Split
from gencli.data.folder import parse_size
from gencli.errors import GencliError

PAIRED = ("reduced", "edges", "pairs")
"""Sets that hold two images an item already."""


class Derived(Data):
    """A subclass says what the condition `image` is, and works it out."""

    verb: ClassVar[str]  # what is said of a set that is refused, by its name

    @dataclass(frozen=True)
    class Config:
        of: str = opt("digits", "data set of the images; folder = your own")
        path: str = opt("", "folder or zip of images, where `of` is folder")
        image_size: str = opt("0", "side of the images in pixels, or WIDTHxHEIGHT; 0 is that set's own")
        unconditional: bool = opt(False, "leave the class labels out")

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.inner = inner_of(config, self.verb)

    @abstractmethod
    def image(self, x: Field) -> Field:
        """What the condition is, of images that are x."""

    @abstractmethod
    def work_out(self, x: np.ndarray) -> np.ndarray:
        """uint8 `(N, C, H, W)` to the conditions `(N, *image.shape)`."""

    @property
    def notes(self) -> list[str]:
        return self.inner.notes

    @property
    def spec(self) -> Spec:
        inner = self.inner.spec
        return Spec(inner.x, {"image": self.image(inner.x), **inner.cond})

    @property
    def resampled(self) -> bool:
        return self.inner.resampled

    def here(self) -> bool:
        return self.inner.here()

    def load(self) -> dict[str, Split]:
        self.inner.progress = self.progress
        made = {}
        for name in ("train", "test"):
            part = self.inner.split(name)
            cond = {"image": torch.from_numpy(self.work_out(part.x)), **part.cond}
            made[name] = Split(part.x, cond, part.ids, part.factors)
        return made


def inner_of(config: Derived.Config, verb: str) -> Data:
    """The set that another is made of; `verb` is what is said of one that is refused, by its name."""
    name = registry.entry("data", config.of).name
    kind = registry.load("data", name)
    if kind.kind != "image" or name in PAIRED:
        raise GencliError(verb.format(config.of), "give a set of images, such as digits or fashion-mnist")
    made: Data = kind.make(_settings(kind, config))
    return made


def _settings(kind: Any, config: Derived.Config) -> dict[str, Any]:
    """What the other set is told, in its own terms.

    Raises:
        GencliError: it knows no such setting.
    """
    fields = kind.Config.__dataclass_fields__
    given: dict[str, Any] = {key: value for key in ("path", "unconditional") if (value := getattr(config, key))}
    if config.image_size not in ("", "0"):
        height, width = parse_size(config.image_size)
        whole = "image_size" in fields and isinstance(fields["image_size"].default, int)
        if whole and height != width:
            raise GencliError(f"image_size is '{config.image_size}'", f"{config.of} is square: give one side")
        given["image_size"] = height if whole else config.image_size
    for key in given:
        if key not in fields:
            raise GencliError(f"data set '{config.of}' has no setting {key}", "leave it out, or give --of folder")
    return given
