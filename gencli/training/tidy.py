"""Freeing disk space: removing runs, and slimming them by what only training needs.

What goes is first renamed into a hidden folder beside it, so that a run is there or not there, never half there; the next
removal in the same place sweeps up what an interrupted one left. Nested bundles are copies or hard links, so a run whose
codec is removed keeps working.
"""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path

from gencli import files, home, registry, runs
from gencli.errors import GencliError
from gencli.training.lock import locked

TRASH = ".removing-"


def chosen(names: list[str]) -> list[Path]:
    """The folders of runs named exactly, by name or path; a damaged run counts, a model's name does not.

    Raises:
        GencliError: no run has the name, or the run may not be changed.
    """
    return list(dict.fromkeys(_chosen(name) for name in names))


def _chosen(name: str) -> Path:
    places = [Path(name), *(folder / name for folder in home.run_folders() if name == Path(name).name)]
    path = next((place for place in places if (place / "config.json").is_file()), None)
    if path is None:
        near = registry.nearest(name, [run.name for run in runs.every()])
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise runs.NoRun(f"no run '{name}'", f"{hint}looked in {runs.places()}")
    whole = path.absolute()
    if home.shipped_runs().absolute() in whole.parents:
        raise GencliError(f"run {whole.name} came with gencli and is read-only", "name a run of yours: gencli runs")
    owner = whole.parent if whole.name == "codec" else whole.parents[1] if whole.parent.name == "sources" else None
    if owner is not None and (owner / "config.json").is_file():
        raise GencliError(f"{path} is a part of run {owner.name}", f"name the whole run: {owner.name}")
    return whole


def sharers(path: Path) -> list[str]:
    """The runs that hold a copy of the run in `path` as their codec."""
    return [run.name for run in runs.every() if run.config.get("codec") == path.name and run.path.absolute() != path]


def remove(path: Path) -> None:
    """Delete a run; refuses one that is being trained."""
    with locked(path):
        place = _aside(path)
    _sweep(place)


def slim(path: Path) -> None:
    """Delete what only training needs; the run samples and evaluates as before, and cannot be resumed."""
    if not (path / "train").is_dir():
        return
    if not (path / "model.safetensors").is_file():
        raise GencliError(
            f"run {path.name} has no weights to sample with yet",
            f"train it further, or remove it: gencli runs rm {path.name}",
        )
    with locked(path):
        place = _aside(path / "train")
    _sweep(place)


def _aside(path: Path) -> Path:
    place = path.with_name(f"{TRASH}{os.getpid()}-{secrets.token_hex(4)}")
    with files.explained(path):
        place.mkdir()
        try:
            files.replace(path, place / path.name)
        except OSError:
            place.rmdir()
            raise
    return place


def _sweep(place: Path) -> None:
    with files.explained(place):
        shutil.rmtree(place)
    for left in place.parent.glob(f"{TRASH}*"):
        shutil.rmtree(left, ignore_errors=True)  # of an interrupted removal, or of one that is at work
