"""Beginning from the weights of another run: what fits is taken, and what does not is said.

A tensor is taken where name and shape agree; what is new (a head for other classes, a layer more) starts as the recipe has it,
and what the model has no place for is left. State that only training needs (critics, averages of codebooks) is not in a run's
weights, so it begins anew. Nothing is set from data then: what the other run set is in its weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gencli.bundle import hash_of, read_tensors, state_of
from gencli.errors import GencliError

NAMED = 3
"""Tensors that are named in a line."""
COUNTS = 1
"""Steps that the weights a run begins with count as in its averages (`training/ema.py`)."""


@dataclass(frozen=True)
class Begun:
    """What became of another run's weights.

    Args:
        run: its name.
        weights: the hash of its weights.
        taken: tensors that were taken.
        anew: those of the model that it does not have, or of another shape.
        left: those that the model has no place for.
    """

    run: str
    weights: str
    taken: tuple[str, ...]
    anew: tuple[str, ...]
    left: tuple[str, ...]

    @property
    def notes(self) -> list[str]:
        """What a user must be told, a line each."""
        made = [f"begun from {self.run}: {len(self.taken)} of {len(self.taken) + len(self.anew)} tensors"]
        made += [f"anew: {_named(self.anew)}"] if self.anew else []
        return made + ([f"left out: {_named(self.left)}"] if self.left else [])

    @property
    def facts(self) -> dict[str, Any]:
        """For config.json."""
        taken = {"run": self.run, "weights": self.weights, "anew": list(self.anew), "left": list(self.left)}
        return {**taken, "counts": COUNTS}


def _named(keys: Iterable[str]) -> str:
    names = list(keys)
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def begin(model: nn.Module, folder: Path) -> Begun:
    """Fill `model` with what fits of the weights of the run in a folder.

    Raises:
        GencliError: nothing fits, or what fits is not finite.
    """
    tensors, _ = read_tensors(folder / "model.safetensors")
    own = model.state_dict()
    taken = tuple(key for key in own if key in tensors and own[key].shape == tensors[key].shape)
    if not taken:
        raise GencliError(
            f"no tensor of run {folder.name} fits this model",
            f"train with its settings: see `gencli info {folder.name}`",
        )
    bad = next((key for key in taken if not tensors[key].to(own[key].dtype).isfinite().all()), None)
    if bad is not None:
        raise GencliError(
            f"tensor {bad} of run {folder.name} is not finite: no training begins with it", "give another run"
        )
    with torch.no_grad():
        model.load_state_dict({key: tensors[key] for key in taken}, strict=False)
    kept, skipped = state_of(model), tuple(getattr(model, "training_only", ())) or ("\0",)
    anew = tuple(key for key in kept if key not in taken and not key.startswith(skipped))
    left = tuple(key for key in tensors if key not in own)
    return Begun(folder.name, hash_of(folder), taken, anew, left)
