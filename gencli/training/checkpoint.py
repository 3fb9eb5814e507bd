"""Saved states: a folder `train/step-N` appears whole or not at all; the newest good one is always loadable.

    train/step-00000500/  raw.safetensors  optim.safetensors  average.safetensors  state.json (step, scaler, sha256 of each)

Each is written under a temporary name, fsynced and renamed. `model.safetensors` is the average of the newest state. With
`ema_profiles` there is also profiles.safetensors, and each save leaves what `posthoc` needs of it in `train/ema`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from gencli import crash, files
from gencli.bundle import load_tensors, read_tensors, state_of
from gencli.errors import GencliError
from gencli.training import optim, posthoc
from gencli.training.trainer import Trainer

PREFIX = "step-"
FILES = {"raw.safetensors", "optim.safetensors", "average.safetensors"}
PROFILES = "profiles.safetensors"


def states(folder: Path) -> list[Path]:
    """Whole saved states of a run, newest first."""
    return sorted((p for p in (folder / "train").glob(f"{PREFIX}*") if p.is_dir()), reverse=True)


def _write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    data = save(tensors, metadata=metadata)
    files.atomic_write(path, data)
    return hashlib.sha256(data).hexdigest()


def save_state(trainer: Trainer, folder: Path, keep: int) -> Path:
    """Write the trainer's whole state, then the averaged weights; older states beyond `keep` are removed last."""
    target = folder / "train" / f"{PREFIX}{trainer.step:08d}"
    temporary = folder / "train" / f".writing-{trainer.step:08d}-{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    metadata = {"step": str(trainer.step)}  # of several keys safetensors writes a random order: hashes would differ
    try:
        with files.explained(temporary):
            temporary.mkdir(parents=True)
            crash.point("state.begun")
        digests = {
            "raw.safetensors": _write(temporary / "raw.safetensors", state_of(trainer.model), metadata),
            "optim.safetensors": _write(temporary / "optim.safetensors", _optimiser_tensors(trainer), metadata),
            "average.safetensors": _write(temporary / "average.safetensors", _average_tensors(trainer), metadata),
        }
        if trainer.profiles:
            digests[PROFILES] = _write(temporary / PROFILES, trainer.profiles.tensors(), metadata)
        scaler = trainer.accelerator.scaler
        state = {"step": trainer.step, "sha256": digests, "scaler": scaler.state_dict() if scaler is not None else None}
        files.atomic_json(temporary / "state.json", state)
        if target.exists():
            shutil.rmtree(target)
        with files.explained(target):
            crash.point("state.written")
            files.replace(temporary, target)
            crash.point("state.renamed")
            files.sync_folder(target.parent)
            crash.point("state.kept")
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    publish(target, folder)
    posthoc.keep(folder, trainer.step, trainer.profiles)
    older = [state for state in states(folder) if state.name < target.name]  # newer ones are damaged and do not count
    for old in older[keep - 1 :]:
        with files.explained(old):
            shutil.rmtree(old)
            crash.point("state.removed")
    return target


def _optimiser_tensors(trainer: Trainer) -> dict[str, Tensor]:
    made = {}
    for name, optimiser in trainer.optimisers.items():
        for key, value in optim.state_tensors(optimiser, trainer.params[name]).items():
            made[f"{name}/{key}"] = value
    return made


def _average_tensors(trainer: Trainer) -> dict[str, Tensor]:
    return {key: value.to("cpu").contiguous() for key, value in trainer.average.state.items()}


def publish(state: Path, folder: Path) -> None:
    """Make a state's averaged weights the run's `model.safetensors`, in one rename."""
    temporary = folder / f".model-{os.getpid()}"
    temporary.unlink(missing_ok=True)
    with files.explained(folder):
        try:
            os.link(state / "average.safetensors", temporary)
        except OSError:
            shutil.copy2(state / "average.safetensors", temporary)
        crash.point("weights.linked")
        files.replace(temporary, folder / "model.safetensors")
        crash.point("weights.renamed")
        files.sync_folder(folder)


def remove_partial(folder: Path) -> None:
    """Remove what an interrupted save left behind; only the process that holds the run's lock may."""
    for path in (folder / "train").glob(".writing-*"):
        shutil.rmtree(path)
    for path in [*folder.rglob(".*.tmp"), *folder.glob(".model-*")]:
        path.unlink(missing_ok=True)


def newest(folder: Path) -> tuple[Path | None, dict[str, Any], list[str]]:
    """The newest good state with its facts, and a line for each damaged one passed over."""
    passed: list[str] = []
    for state in states(folder):
        try:
            return state, _read(state), passed
        except GencliError as error:
            passed.append(error.message)
    return None, {}, passed


def _read(state: Path) -> dict[str, Any]:
    try:
        facts = files.read_json(state / "state.json")
        digests, _ = dict(facts["sha256"]), facts["scaler"]
        if int(facts["step"]) != int(state.name.removeprefix(PREFIX)):
            raise ValueError(f"it is about step {facts['step']}")
        if set(digests) - {PROFILES} != FILES:
            raise ValueError(f"it lists {', '.join(sorted(digests)) or 'no files'}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise GencliError(f"{state / 'state.json'} is damaged: {error}") from None
    for name, digest in digests.items():
        try:
            found = hashlib.sha256((state / name).read_bytes()).hexdigest()
        except OSError as error:
            raise GencliError(f"{state / name} cannot be read: {error}") from None
        if found != digest:
            raise GencliError(f"{state / name} is damaged: its sha256 is not the recorded one")
    return facts


def restore(trainer: Trainer, state: Path, facts: dict[str, Any]) -> None:
    """Put a prepared trainer into a saved state."""
    raw, _ = read_tensors(state / "raw.safetensors")
    load_tensors(trainer.model, raw, str(state / "raw.safetensors"))
    average, _ = read_tensors(state / "average.safetensors")
    for name, value in average.items():
        trainer.average.state[name].copy_(value)
    if trainer.profiles:
        trainer.profiles.load(read_tensors(state / PROFILES)[0])
    tensors, _ = read_tensors(state / "optim.safetensors")
    for name, optimiser in trainer.optimisers.items():
        mine = {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}
        optim.load_state(optimiser.optimizer, trainer.params[name], mine)
    scaler = trainer.accelerator.scaler
    if (scaler is None) != (facts["scaler"] is None):
        raise GencliError(f"{state / 'state.json'} is of a run in another precision", "delete that state's folder")
    if scaler is not None:
        scaler.load_state_dict(facts["scaler"])
    trainer.step = int(facts["step"])
