"""Which noise levels a sampler of denoisers visits: the trained ones, or evenly in a function of σ between two ends.

Every list is float64, descends, and ends in 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from gencli.errors import GencliError
from gencli.samplers._sdes import vp_sigma, vp_time

Spacing = Literal["leading", "trailing", "linspace", "quad"]
NoiseSchedule = Literal["own", "model", "karras", "linear", "cosine", "logsnr"]

TIMES = 1000  # what stands in for the table of a model trained at any level
SIGMA_MIN, SIGMA_MAX = 0.002, 80.0  # beyond these nothing is seen in data of unit variance (arXiv:2206.00364)
RHO = 7.0


def table_of(model: Any) -> Tensor:
    """The levels of a model, descending: the trained ones, or 1,000 spread evenly over its own time.

    A model trained at any level says by `sigma_at(u)`, u in (0, 1] with 1 the noisiest, how its time runs; without it time
    runs as EDM's.
    """
    if model.levels is not None:
        return model.levels.double().cpu()
    u = torch.arange(1, TIMES + 1, dtype=torch.float64) / TIMES
    if hasattr(model, "sigma_at"):
        return model.sigma_at(u).double().cpu().flip(0)
    return _even(*_CURVES["karras"], model.sigma_min, model.sigma_max, TIMES)


def spaced(model: Any, steps: int, spacing: Spacing, sampler: str) -> Tensor:
    """`steps` of the model's levels, descending, then 0.

    `trailing` and `linspace` start at the noisiest level, `leading` and `quad` (DDIM's) below it.

    Raises:
        GencliError: if `steps` is not between 1 and the number of levels.
    """
    table = table_of(model)
    _check_steps(steps, len(table), sampler)
    return _ended(table[len(table) - 1 - timesteps(len(table), steps, spacing).flip(0)])


def timesteps(total: int, steps: int, spacing: Spacing) -> Tensor:
    """`steps` different indices of 0 … total − 1 (0 is the cleanest), ascending."""
    count = torch.arange(steps, dtype=torch.float64)
    if spacing == "leading":
        return (count * (total // steps)).long()
    if spacing == "trailing":
        return ((total - count * (total / steps)).round().long() - 1).flip(0)
    if spacing == "linspace":
        even = count * ((total - 1) / (steps - 1)) if steps > 1 else torch.full_like(count, total - 1)
        return even.round().long()
    return _distinct(((0.8 * total) ** 0.5 * count / max(steps - 1, 1)).square().long())


def scheduled(model: Any, steps: int, schedule: NoiseSchedule, sampler: str) -> Tensor:
    """`steps` levels evenly spaced by `schedule` between the model's ends, then 0.

    `karras` in σ^(1/7), `logsnr` in log σ, `cosine` in arctan σ, `linear` in the time of the linear variance-preserving
    schedule; `model` in the model's own time. Levels of a model with a table are the nearest that it was trained at.

    Raises:
        GencliError: if `steps` is below 1, or above the number of levels of a model with a table.
    """
    if schedule == "model":
        return spaced(model, steps, "trailing", sampler)
    table = None if model.levels is None else table_of(model)
    _check_steps(steps, None if table is None else len(table), sampler)
    low, high = ends(model)
    even = _even(*_CURVES[schedule], low, high, steps)
    return _ended(even if table is None else _nearest(table, even))


def ends(model: Any) -> tuple[float, float]:
    """The least and the greatest σ that are worth a step: the model's own, within EDM's."""
    if model.levels is None:
        low, high = float(model.sigma_min), float(model.sigma_max)
    else:
        low, high = float(model.levels[-1]), float(model.levels[0])
    return max(low, SIGMA_MIN), min(high, SIGMA_MAX)


Curve = Callable[[Tensor], Tensor]
_CURVES: dict[str, tuple[Curve, Curve]] = {
    "karras": (lambda s: s ** (1 / RHO), lambda u: u**RHO),
    "logsnr": (torch.log, torch.exp),
    "cosine": (torch.atan, torch.tan),
    "linear": (vp_time, vp_sigma),
}


def _even(into: Curve, back: Curve, low: float, high: float, steps: int) -> Tensor:
    top, bottom = into(torch.tensor([high, low], dtype=torch.float64)).tolist()
    inner = back(torch.linspace(top, bottom, steps, dtype=torch.float64))
    inner[0] = high
    if steps > 1:
        inner[-1] = low
    return inner


def _nearest(table: Tensor, wanted: Tensor) -> Tensor:
    """The levels of a descending table nearest to those wanted on a logarithmic scale, each taken once."""
    rising = table.flip(0)
    index = torch.searchsorted((rising[1:] * rising[:-1]).sqrt(), wanted.flip(0))
    index = _distinct(index)
    over = (index - (len(table) - len(index) + torch.arange(len(index)))).clamp(min=0)
    return rising[index - over].flip(0)


def _distinct(index: Tensor) -> Tensor:
    """Ascending indices; where one repeats, the next is taken."""
    count = torch.arange(len(index))
    return (index - count).cummax(0).values + count


def _ended(levels: Tensor) -> Tensor:
    return torch.cat([levels, levels.new_zeros(1)])


def _check_steps(steps: int, most: int | None, sampler: str) -> None:
    if most is not None and not 1 <= steps <= most:
        raise GencliError(f"{sampler}: steps is {steps}, the model has {most} noise levels", f"use --steps 1 to {most}")
    if steps < 1:
        raise GencliError(f"{sampler}: steps is {steps}", "use --steps 1 or more")


def is_noise(model: Any, spread: float = 1.0) -> bool:
    """Whether the noisiest level drowns data of standard deviation `spread`, so that pure noise is a fair start."""
    return ends(model)[1] >= 8 * spread
