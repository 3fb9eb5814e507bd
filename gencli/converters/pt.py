"""A .pt file of plain values: what `torch.load(..., weights_only=True)` reads in any program.

    {"format": 1, "config": JSON, "state_dict": {name: tensor}}

There and back is bit-equal. A `.pt` file is a pickle, and a pickle may run code: only tensors and plain values are read, and
a file with anything else in it is refused with the name of what it would have called.

Reads also files of other programs, if `--like` says what they are: a dict of tensors, or a dict that has one under `ema`,
`state_dict` or `model` (the first of these), whose names may all begin with `module.` or `_orig_mod.`.

Errors: code in the file; no dict of tensors; names or shapes that do not fit; a foreign file without `--like`.
"""

from __future__ import annotations

import pickle
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from gencli.bundle import FORMAT, Run
from gencli.converters import _knots
from gencli.converters._base import Check, Converter, Packed, differences, foreign
from gencli.errors import GencliError

PLACES = ("ema", "state_dict", "model")

DAMAGED = (  # what torch raises of files that are no checkpoints, or no longer
    *(RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError, IndexError, OSError, OverflowError),
    *(MemoryError, struct.error, SafetensorError),
)


class Pt(Converter):
    """For programs that know PyTorch only."""

    suffix = ".pt"
    reads = True

    def write(self, run: Run, path: Path) -> list[str]:
        assert run.path is not None, "only a saved run can be converted"
        packed = Packed.of(run.path)
        torch.save({"format": FORMAT, "config": packed.text, "state_dict": packed.tensors}, path)
        return []

    def read(self, path: Path, like: Run | None) -> tuple[Packed, list[str]]:
        held = load(path)
        if isinstance(held, dict) and "config" in held and _is_state(held.get("state_dict")):
            return Packed.parsed(held["config"], held["state_dict"], path), []
        tensors, place = tensors_in(held, path)
        packed = foreign(tensors, like, path)
        return packed, [f"its {len(tensors)} tensors{place} fit {like.name}"] if like else []

    def check(self, run: Run, path: Path) -> list[Check]:
        return [differences(run, self.read(path, run)[0])]


def load(path: Path) -> Any:
    """What a `.pt` file holds, if that is tensors and plain values."""
    _knots.refuse(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        called = re.search(r"GLOBAL (\S+)|global (\S+)", str(error))
        if called is not None:
            name = (called[1] or called[2]).strip("`'.")
            raise GencliError(
                f"{path} holds code, not only tensors: it calls {name}; nothing of it was run",
                "ask for the plain weights: torch.save(model.state_dict(), …), or better a safetensors file",
            ) from None
        raise unreadable(path, error) from None
    except DAMAGED as error:
        raise unreadable(path, error) from None


def unreadable(path: Path, error: Exception) -> GencliError:
    """The error for a file that is no pickle of tensors."""
    reason = re.split(r"(?<=[.:])\s", " ".join(str(error).split()))[
        -1 if isinstance(error, pickle.UnpicklingError) else 0
    ]
    return GencliError(f"{path} is damaged or no .pt file: {reason[:160] or type(error).__name__}", "give another file")


def tensors_in(held: Any, path: Path) -> tuple[dict[str, Tensor], str]:
    """The dict of tensors in a foreign file, and where it was."""
    if _is_state(held):
        return dict(held), ""
    if isinstance(held, Mapping):
        for place in PLACES:
            if _is_state(held.get(place)):
                return dict(held[place]), f" under '{place}'"
    has = (
        f"a dict with {', '.join(map(str, list(held)[:6]))}"
        if isinstance(held, Mapping)
        else f"a {type(held).__name__}"
    )
    raise GencliError(
        f"{path} holds {has}: no tensors by name, at the top or under {', '.join(PLACES)}",
        "save the weights alone: torch.save(model.state_dict(), …)",
    )


def _is_state(held: Any) -> bool:
    return (
        isinstance(held, Mapping)
        and bool(held)
        and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in held.items())
    )
