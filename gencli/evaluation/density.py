"""The exact density of a model of points in the plane, on a grid, and what it integrates to.

    ∫ p(x) dx ≈ Σ p(x_i) h²     over the middles of square cells of side h

A density with a wrong log-determinant does not integrate to one; what is missing may also lie outside the square, which is
therefore stated with it. Flows are asked for their own density, with the trace itself where they estimate it; denoisers for
that of their probability-flow ODE, with all directions of its divergence. With classes it is the mean of the classes'
densities, of a denoiser that of the null condition.

Far from its data a flow may throw a point beyond what floats hold, where no density is left: such a cell counts as zero, and
how many there are is told.

Raises GencliError for data other than points in the plane, for models without an exact density, and where no cell has one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gencli.bundle import Run
from gencli.core import Batch, Denoiser, Likelihood, Rng
from gencli.errors import GencliError
from gencli.metrics.bpd import ByOde, encode_with_volume, is_mass

SIDE, FEWER = 256, 128  # cells of a grid's side; where each is an ODE
_BATCH = 8192

Extent = tuple[float, float, float, float]
"""Left, right, bottom, top."""


class Plane(NamedTuple):
    """Densities `(side, side)` at the middles of cells, the topmost row first; their square; what they integrate to.

    `lost` are the cells whose numbers no float holds.
    """

    p: Tensor
    extent: Extent
    integral: float
    lost: int


def of_plane(
    run: Run, extent: Extent, classes: Sequence[int] | None = None, side: int | None = None, judged: Any = None
) -> Plane:
    """The density of a run on a square."""
    judged = judged or exact(run)
    side = side or (FEWER if isinstance(judged, ByOde) else SIDE)
    nats = log_density(run, grid(extent, side), classes, judged).view(side, side)
    lost = nats.isnan()
    if lost.all():
        raise GencliError(f"run {run.name} has no density anywhere: its numbers are not finite", "train it again")
    p = nats.exp().masked_fill(lost, 0.0)
    left, right, bottom, top = extent
    return Plane(p, extent, float(p.sum()) * (right - left) * (top - bottom) / side**2, int(lost.sum()))


def grid(extent: Extent, side: int) -> Tensor:
    """Middles of `side`² cells `(side², 2)` in float64, from the top row, left to right."""
    left, right, bottom, top = extent
    middle = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    y, x = torch.meshgrid(top + (bottom - top) * middle, left + (right - left) * middle, indexing="ij")
    return torch.stack([x, y], -1).flatten(0, 1)


def exact(run: Run) -> Any:
    """What gives the exact log-density of the plane."""
    model: Any = run.model
    if run.data_spec.x.shape != (2,) or run.spec.x.kind != "points":
        raise GencliError(
            f"a density is drawn of points in the plane, run {run.name} makes {run.data_spec.x.kind} of shape "
            f"{run.data_spec.x.shape}",
            "ask `gencli eval bpd` for that of images",
        )
    if isinstance(model, Likelihood) and model.likelihood == "exact" and not is_mass(model):
        return model.traced() if hasattr(model, "traced") else model
    if isinstance(model, Denoiser):
        return ByOde(model, "exact")
    raise GencliError(
        f"run {run.name} has no exact density: model {model.public_name()} offers none", "use a flow or a denoiser"
    )


@torch.no_grad()
def log_density(run: Run, x: Tensor, classes: Sequence[int] | None, judged: Any) -> Tensor:
    """log p `(N,)` of points `(N, 2)` as data are, in float64."""
    label = run.model.spec.cond.get("label")
    told: list[int | None] = list(dict.fromkeys(classes or []))
    if label is not None and not told:
        told = [None] if isinstance(run.model, Denoiser) else list(range(label.vocab or 0))
    made = []
    for part in x.split(_BATCH):
        rng = Rng.batch("density", total=len(part), device=run.model.device)
        batch, volume = encode_with_volume(run, {"x": part.float()}, rng)
        each = torch.stack([_one(judged, batch["x"], rng, k) for k in told or [None]])
        made.append(torch.logsumexp(each, 0) - math.log(len(each)) + volume)
    return torch.cat(made)


def _one(judged: Any, x: Tensor, rng: Rng, label: int | None) -> Tensor:
    cond: Batch = {} if label is None else {"label": torch.full((len(x),), label, device=x.device)}
    made: Tensor = judged.log_prob(x, rng, **cond)
    return made.double().cpu()
