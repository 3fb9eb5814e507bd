"""What multi-step samplers share: what they remember, and weights that integrate a polynomial through it exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gencli.samplers._diffusion import Memory

Points = list[tuple[float, Tensor]]  # (σ, what was found there), the newest first


def remembered(memory: Memory, here: Tensor, there: Tensor, value: Tensor, most: int) -> Points:
    """The newest `most` values, this one first; those from before a jump to another level are forgotten."""
    kept = memory["points"] if memory.get("reached") == float(here) else []
    memory["points"] = points = [(float(here), value), *kept][:most]
    memory["reached"] = float(there)
    return points


def straight(x: Tensor, x0: Tensor, here: Tensor, there: Tensor) -> Tensor:
    """The first-order step: along the line from x0 through x; at σ = 0 it is x0 itself."""
    return x0 + (there / here) * (x - x0)


def extrapolated(points: Points, there: Tensor) -> Tensor:
    """D half a step ahead on the line in log σ through the two newest; the newest if it is alone or the last."""
    (here, newest), *older = points
    if not older or there == 0:
        return newest
    before, old = older[0]
    return newest + 0.5 * math.log(here / float(there)) / math.log(before / here) * (newest - old)


def nodes(points: Points, here: float, there: float) -> list[float]:
    """Where the points lie on a scale of log σ that is 0 here and 1 there."""
    return [math.log(sigma / here) / math.log(there / here) for sigma, _ in points]


def weights(at: Sequence[float], moments: Sequence[float]) -> list[float]:
    """w with Σ_j w_j u_j^k = moment k: the integral of the polynomial through values at the u_j is Σ_j w_j value_j."""
    u = torch.tensor(at, dtype=torch.float64, device="cpu")
    powers = u ** torch.arange(len(at), dtype=torch.float64, device="cpu")[:, None]
    solved = torch.linalg.solve(powers, torch.tensor(moments, dtype=torch.float64, device="cpu"))
    return [float(w) for w in solved]


def weighted(by: Sequence[float], points: Points) -> Tensor:
    """Σ_j w_j value_j."""
    first, *rest = [w * value for w, (_, value) in zip(by, points, strict=True)]
    return sum(rest, first)
