"""What every adapter is: it edits a model's modules in place, and freezes what it does not train."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from torch import nn

from gencli.config import Component, choose

if TYPE_CHECKING:
    from gencli.bundle import Run


class Adapter(Component):
    """Applied to a model that was just built; a run's config.json lists it, so that loading applies it again."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)

    @abstractmethod
    def apply(self, model: nn.Module) -> None:
        """Edit `model`; its own tensors keep their names, so that its weights still fit."""

    @abstractmethod
    def fold(self, model: nn.Module) -> None:
        """Undo the edit, what was learned being put into the model's own tensors."""


def folded(run: Run) -> Run:
    """The run with what its adapters learned in its own tensors, as programs that know no adapters take it."""
    recipe = dict(run.config["recipe"])
    for table in reversed(recipe.pop("adapters", [])):
        choose("adapters", table, where="adapters").build().fold(run.model)
    run.config = {**run.config, "recipe": recipe, "adapters": []}
    return run
