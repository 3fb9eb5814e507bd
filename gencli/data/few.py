"""A few images of one class, of another data set or of one's own: what a trained run is taught besides what it knows.

Offers: image, label

The first `items` training images of class `label`, and all test images of it; the classes are those of the set, of which the
others have no image. Images of a folder are all of class `label` of the `classes` that are named, so that they suit a run that
has these. `invert` exchanges light and dark: images that no run of that set has seen. Without labels (`unconditional`) the
first images, whatever they show.

Raises GencliError for a set that is not one of images, for a class that it does not have, and where no class is named.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch

from gencli import registry
from gencli.config import opt
from gencli.core import Field, Spec
from gencli.data._base import Data, Split
from gencli.data._derived import Derived, inner_of
from gencli.errors import GencliError

REFUSED = "'{}' is no set of images of one kind"


class Few(Data):
    """Some of a set."""

    @dataclass(frozen=True)
    class Config(Derived.Config):
        label: str = opt("", "the class of all of them, by name")
        classes: str = opt("", "names of all classes of the run to be taught, comma-separated, where the set has none")
        items: int = opt(20, "training images, at most", low=1)
        invert: bool = opt(False, "exchange light and dark")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.named = tuple(name.strip() for name in config.classes.split(",") if name.strip())
        blind = config.unconditional or bool(self.named)
        self.inner = inner_of(dataclasses.replace(config, unconditional=blind), REFUSED)

    @property
    def name(self) -> str:
        """For runs: `digits-few`."""
        return f"{self.inner.name}-few"

    @property
    def notes(self) -> list[str]:
        return self.inner.notes

    @property
    def spec(self) -> Spec:
        return Spec(self.inner.spec.x, {"label": self._field} if not self.config.unconditional else {})

    @property
    def resampled(self) -> bool:
        return self.inner.resampled

    def here(self) -> bool:
        return self.inner.here()

    @property
    def _field(self) -> Field:
        if not self.config.label:
            raise GencliError("few: images of which class is not said", "give --label NAME, or --unconditional")
        own = self.inner.spec.cond.get("label")
        field = Field("label", (), vocab=len(self.named), names=self.named) if self.named else own
        if field is None:
            raise GencliError(
                f"data set '{self.inner.name}' has no classes, so none called '{self.config.label}'",
                "name those of the run with --classes, or give --unconditional",
            )
        if self.config.label not in field.names:
            raise registry.unknown("class", self.config.label, field.names, "gencli info RUN")
        return field

    def load(self) -> dict[str, Split]:
        self.inner.progress = self.progress
        return {
            "train": self._some(self.inner.split("train"), self.config.items),
            "test": self._some(self.inner.split("test")),
        }

    def _some(self, part: Split, count: int | None = None) -> Split:
        keep, cond = torch.arange(len(part)), {}
        if not self.config.unconditional:
            label = self._field.names.index(self.config.label)
            keep = keep if self.named else (part.cond["label"] == label).nonzero()[:, 0]
            cond = {"label": torch.full((len(keep[:count]),), label)}
        few = part.only(keep[:count].numpy())
        return Split(np.invert(few.x) if self.config.invert else few.x, cond, few.ids)
