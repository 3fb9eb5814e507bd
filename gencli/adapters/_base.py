"""What every adapter is: it edits a model's modules in place, and freezes what it does not train."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from gencli.config import Component, choose
from gencli.core import Spec

if TYPE_CHECKING:
    from gencli.bundle import Run


class Adapter(Component):
    """Applied to a model that was just built; a run's config.json lists it, so that loading applies it again."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)

    def data_for(self, data: Mapping[str, Any]) -> Mapping[str, Any]:
        """The table of a run's data set: another one where the adapter needs more than the model was trained on."""
        return data

    def narrowed(self, spec: Spec) -> Spec:
        """What the model itself is built for: without the conditions that the adapter takes."""
        return spec

    @abstractmethod
    def apply(self, model: nn.Module, spec: Spec) -> None:
        """Edit `model`; its own tensors keep their names, so that its weights still fit.

        Args:
            model: just built, for `narrowed(spec)`.
            spec: of model space, with all conditions.
        """

    def begin(self, model: nn.Module, anew: Collection[str]) -> None:
        """After the weights of another run were taken: set what begins as a function of those.

        Args:
            model: with the weights.
            anew: the tensors that the other run did not have.
        """

    @abstractmethod
    def fold(self, model: nn.Module) -> None:
        """Undo the edit, what was learned being put into the model's own tensors."""


def made(recipe: Mapping[str, Any]) -> list[Adapter]:
    """The adapters that a recipe lists."""
    return [choose("adapters", table, where="adapters").build() for table in recipe.get("adapters", [])]


def folded(run: Run) -> Run:
    """The run with what its adapters learned in its own tensors, as programs that know no adapters take it."""
    recipe = dict(run.config["recipe"])
    for adapter in reversed(made(recipe)):
        adapter.fold(run.model)
    recipe.pop("adapters", None)
    run.config = {**run.config, "recipe": recipe, "adapters": []}
    return run
