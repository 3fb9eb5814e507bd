"""Averages of the weights of any width, chosen after training (Karras et al., 2023). arXiv:2312.02696

    p(τ; t, γ) = (γ + 1) τ^γ / t^(γ + 1)  for 0 ≤ τ ≤ t        the profile of a power-function average at step t

A run with `ema_profiles` leaves these averages at every save in `train/ema/step-N.safetensors` (`WIDTH/NAME`). The average of
another width at the last of these steps is the combination Σ xᵢ θᵢ of what is kept whose profile Σ xᵢ pᵢ is nearest to the
wanted p in the mean square: A x = b with Aᵢⱼ = ⟨pᵢ, pⱼ⟩, bᵢ = ⟨pᵢ, p⟩, in float64, divided by Σ xᵢ so that it is an average.

    ⟨p, q⟩ = (γp + 1)(γq + 1) / (γp + γq + 1) · (t_min / t_max)^γ / t_max,    γ that of the later one

Nothing is lost by whole steps: the trainer's update gives step i exactly the integral of p over (i − 1, i]. The weights that a
run began from count as its first step, all others as one later.

Ours: models of more than `HALF_ABOVE` numbers are kept in half precision (the authors keep all so), tensor by tensor where
their greatest number allows it. Integers and batch statistics are those of the last step.

Errors: a run that kept nothing; a width that no power function has; a damaged file.
"""

from __future__ import annotations

import datetime
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from gencli import __version__, files
from gencli.bundle import Run, read_tensors
from gencli.core import Model
from gencli.errors import GencliError
from gencli.training.ema import Profiles, copied_names, gamma_of, kept_state, steps_before
from gencli.training.settings import check_widths

PREFIX = "step-"
HALF_ABOVE = 50_000_000
POOR = 0.05  # a relative error of the profile that a user should know of

Floats = NDArray[np.float64]


# ------------------------------------------------------------------------------------------------------------------ keeping


def snapshots(folder: Path) -> list[Path]:
    """What a run kept, oldest first."""
    return sorted((folder / "train" / "ema").glob(f"{PREFIX}*.safetensors"))


def _step(path: Path) -> int:
    return int(path.stem.removeprefix(PREFIX))


def keep(folder: Path, step: int, profiles: Profiles) -> None:
    """Leave the averages of this step in the run's folder."""
    if profiles:
        tensors = profiles.tensors()
        if sum(value.numel() for value in tensors.values()) > HALF_ABOVE * len(profiles.averages):
            tensors = {name: _halved(value) for name, value in tensors.items()}
        path = folder / "train" / "ema" / f"{PREFIX}{step:08d}.safetensors"
        files.atomic_write(path, save(tensors, metadata={"step": str(step)}))


def _halved(value: Tensor) -> Tensor:
    fits = value.is_floating_point() and value.numel() > 0 and 1e-3 < float(value.abs().max()) < 6e4
    return value.half() if fits else value


def rewind(folder: Path, step: int, profiles: Profiles) -> None:
    """Go back to `step`: what was kept later is removed, what a killed save did not leave is written."""
    for path in snapshots(folder):
        if _step(path) > step:
            path.unlink()
    if step:
        keep(folder, step, profiles)


# ------------------------------------------------------------------------------------------------------------------ fitting


@dataclass(frozen=True)
class Fit:
    """What to take of each of the kept averages, and how well their profiles make the wanted one (0 = exactly)."""

    weights: Floats
    error: float


def inner(gamma_p: Any, t_p: Any, gamma_q: Any, t_q: Any) -> Floats:
    """⟨p, q⟩ of the profiles of two averages, elementwise."""
    first, last = np.minimum(t_p, t_q), np.maximum(t_p, t_q)
    later = np.where(t_p < t_q, gamma_q, gamma_p)
    return (gamma_p + 1) * (gamma_q + 1) / (gamma_p + gamma_q + 1) * (first / last) ** later / last


def fit(kept: Sequence[tuple[int, float]], step: int, width: float) -> Fit:
    """The best combination of averages kept as (step, width) for that of `width` at `step`."""
    t = np.array([each for each, _ in kept], dtype=np.float64)
    gamma = np.array([gamma_of(each) for _, each in kept])
    wanted, at = gamma_of(width), float(step)
    overlaps = inner(gamma[:, None], t[:, None], gamma, t)
    x: Floats = np.linalg.solve(overlaps, inner(gamma, t, wanted, at)).astype(np.float64)
    x /= x.sum()
    norm = float(inner(wanted, at, wanted, at))
    off = float(x @ overlaps @ x - 2 * x @ inner(gamma, t, wanted, at)) + norm
    return Fit(x, math.sqrt(max(0.0, off) / norm))


# ------------------------------------------------------------------------------------------------------------------- making


@dataclass(frozen=True)
class Made:
    """An average that was made: the state of a model, the step it ends at, and how."""

    state: dict[str, Tensor]
    step: int
    fit: Fit
    note: str


def reconstruct(folder: Path, model: Model, width: float, before: int = 0) -> Made:
    """The average of relative width `width` at the last step that the run in `folder`, of this model, kept averages of.

    `before` is how many steps the weights that the run began with count as.

    Raises:
        GencliError: no power function has this width; the run kept nothing; a file is damaged.
    """
    check_widths((width,), "--ema")
    paths = snapshots(folder)
    if not paths:
        raise GencliError(
            f"run {folder.name} kept no averages to make another from",
            "train with --ema-profiles 0.05,0.1; `gencli runs slim` removes what was kept",
        )
    kept = [(path, each) for path in paths for each in _widths(path)]
    step = _step(paths[-1])
    found = fit([(_step(path) + before, each) for path, each in kept], step + before, width)
    shares = {(path, each): share for (path, each), share in zip(kept, found.weights, strict=True)}
    like, copied = kept_state(model), copied_names(model)
    sums = {name: torch.zeros(value.shape, dtype=torch.float64) for name, value in like.items() if name not in copied}
    for path in paths:
        tensors = _read(path, set(like))
        for each in _widths(path):
            for name, total in sums.items():
                total.add_(tensors[f"{each}/{name}"].double(), alpha=shares[path, each])
    last = f"{_widths(paths[-1])[0]}/"
    state = {name: sums.get(name, tensors[last + name]).to(value.dtype) for name, value in like.items()}
    return Made(state, step, found, _note(kept, step, width, found.error))


def _note(kept: Sequence[tuple[Path, float]], step: int, width: float, error: float) -> str:
    widths = " and ".join(f"{each:g}" for each in sorted({each for _, each in kept}))
    steps = len({path for path, _ in kept})
    poor = "; more saves (--save-every) or a width nearer to these make it better" if error > POOR else ""
    return (
        f"the average of width {width:g} at step {step}, from those of {widths} at {steps} steps; "
        f"relative error of its profile {error:.2g}{poor}"
    )


def _widths(path: Path) -> list[float]:
    try:
        with safe_open(path, framework="pt") as handle:
            return sorted({float(key.split("/", 1)[0]) for key in handle.keys()})  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, str(error)) from None


def _read(path: Path, names: set[str]) -> Mapping[str, Tensor]:
    tensors, _ = read_tensors(path)
    wrong = names - {key.split("/", 1)[1] for key in tensors}
    if wrong:
        raise _damaged(path, f"it has no {min(wrong)}")
    return tensors


def _damaged(path: Path, why: str) -> GencliError:
    return GencliError(f"{path} is damaged: {why}", "delete this file: the other steps' averages will do")


def make_run(path: Path, width: float, root: Path, name: str | None, command: str) -> tuple[Path, str]:
    """A new run under `root` with the average of that width as its weights; its folder, and what the user should know.

    Args:
        path: the run that kept averages.
        width: the wanted relative width.
        root: where the folder is made.
        name: of the new run; None = RUN-ema-WIDTH.
        command: what was typed.
    """
    from gencli.training.session import make_folder, safe_name

    run = Run.load(path)
    made = reconstruct(path, run.model, width, steps_before(run.config))
    folder = make_folder(root, safe_name(name) if name else f"{path.name}-ema-{width:g}")
    recipe = run.config["recipe"]
    train = {**recipe["train"], "ema": width, "ema_decay": 0.0}
    config = {
        **run.config,
        "gencli": __version__,
        "name": folder.name,
        "created": datetime.datetime.now(datetime.UTC).isoformat(),
        "command": command,
        "recipe": {**recipe, "train": train},
        "step": made.step,
        "converted": {
            "from": "ema",
            "path": str(path),
            "command": run.config.get("command"),
            "profile_error": made.fit.error,
        },
    }
    try:
        for inside in ("codec", "sources"):
            if (path / inside).is_dir():
                shutil.copytree(path / inside, folder / inside)
        files.atomic_write(folder / "model.safetensors", save(made.state, metadata={"step": str(made.step)}))
        files.atomic_json(folder / "config.json", config)  # last: a folder without it is no run
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder, made.note
