"""Adaptive Runge–Kutta integration, each row with steps of its own, and log p(x) by the probability-flow ODE.

A solver whose error norm spans the batch lets an item's result depend on its batch-mates. Here every row has its own time,
step and error, as if it were integrated alone, while the derivative is asked for all rows in one call; a row that has
arrived waits. Control is Hairer's: the first step from two derivatives, then h ← 0.9 h ‖e‖^(−1/p), by 0.2 at least and 10 at
most, the error e measured against atol + rtol max(|y|, |y'|) and the step repeated where ‖e‖ > 1. The last step ends where it
should, so that nothing is evaluated beyond.

The density (Score-Based Generative Modeling through SDEs, arXiv:2011.13456; FFJORD, arXiv:1810.01367): along the flow
dx/du = x − D(x, e^u) with u = log σ,

    log p(x) = log N(x_T; 0, scale² I) + ∫ (dim − tr ∂D/∂x) du      from log σ_min to log σ_max

The trace is exact, or Hutchinson's average of v·(∂D/∂x)v over signs v that each item keeps all the way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from gencli.core import Rng, as_rows
from gencli.errors import GencliError
from gencli.guidance._base import Denoise
from gencli.nn.trace import exact, hutchinson, signs
from gencli.samplers._butcher import METHODS, Method, SolverName

Derivative = Callable[[Tensor, Tensor], Tensor]  # (t (N,), y (N, …)) -> dy/dt (N, …)
Measure = Callable[[Tensor, Tensor], Tensor]  # error (N, …), |y| (N, …) -> error over what is allowed (N,)

SAFETY, LEAST_FACTOR, MOST_FACTOR = 0.9, 0.2, 10.0
LONGEST = 1.5  # in log σ; at the data's end the flow stands still, and a step that leaps over its whole change may pass
LEAST_STEP = 1e-9  # of the way; below it the derivative jumps more than the tolerance allows


class Point(NamedTuple):
    """All rows at one of the times asked for: y, dy/dt, and the derivatives that each row has needed so far."""

    y: Tensor
    slope: Tensor
    evaluations: Tensor


def within(rtol: float, atol: float) -> Measure:
    """The root mean square over a row of its error in units of atol + rtol |y|."""
    return lambda error, size: (error / (atol + rtol * size)).flatten(1).square().mean(1).sqrt()


def integrate(
    f: Derivative,
    y: Tensor,
    times: Tensor,
    measure: Measure,
    solver: SolverName = "dopri5",
    longest: float = math.inf,
) -> Iterator[Point]:
    """y at `times[1:]`, in order, from y `(N, …)` at `times[0]`; each as soon as every row has passed it.

    The last is the solution; those before are cubics between the steps on either side, and cost nothing.

    Args:
        f: dy/dt of all rows, each at its own time.
        y: float64, or float32 where the device has no more.
        times: ascending or descending.
        measure: a step whose error it finds above 1 is repeated.
        solver: the method.
        longest: step allowed, whatever the error seems to be.

    Raises:
        GencliError: a derivative that is not finite, or jumps so that no step is small enough.
    """
    sign = 1 if times[-1] > times[0] else -1
    stops = ((times - times[0]) * sign).to(y)
    assert (stops.diff() > 0).all(), f"times must ascend or descend, got {times.tolist()}"
    origin, end, method = times[0].to(y), stops[-1], METHODS[solver]

    def along(gone: Tensor, y: Tensor) -> Tensor:
        return sign * f(origin + sign * gone, y)

    gone, slope = y.new_zeros(len(y)), along(y.new_zeros(len(y)), y)
    if not torch.isfinite(slope).all():
        raise GencliError("the model's estimate is not finite where the ODE begins", "check the run")
    step = _first_step(along, y, slope, method.order, measure)
    evaluations = torch.full((len(y),), 2, device=y.device)
    values, speeds = [y] * len(stops), [slope] * len(stops)
    ready = 1
    while ready < len(stops):
        # Every row that has not arrived tries a step of its own size.
        taken = torch.minimum(step.clamp(max=longest), end - gone)
        moving = taken > 0
        new, new_slope, error = _attempt(along, gone, y, slope, taken, method)
        ratio = measure(error, torch.maximum(y.abs(), new.abs())).nan_to_num(nan=math.inf)
        evaluations += moving * len(method.nodes)

        # Accepted rows move on, and are noted at the times that they pass.
        accepted = moving & (ratio <= 1)
        after = torch.where(accepted, torch.where(taken < end - gone, gone + taken, end), gone)
        for k in _passed(stops, gone, after, ready):
            at = (gone < stops[k]) & (stops[k] <= after)
            value, speed = _between((stops[k] - gone) / taken, taken, y, slope, new, new_slope)
            values[k] = torch.where(as_rows(at, y), value, values[k])
            speeds[k] = torch.where(as_rows(at, y), speed, speeds[k])
        y = torch.where(as_rows(accepted, y), new, y)
        slope = torch.where(as_rows(accepted, y), new_slope, slope)
        gone = after

        # The next step's size.
        factor = (SAFETY * ratio ** (-1 / method.order)).clamp(max=MOST_FACTOR)
        step = torch.where(
            moving, taken * torch.where(accepted, factor.clamp(min=1), factor.clamp(min=LEAST_FACTOR)), step
        )
        if ((gone < end) & (step < LEAST_STEP * end)).any():
            raise GencliError(
                "the ODE's solver found no step small enough for its tolerance",
                "use --rtol and --atol ten times as large, or a sampler with fixed steps such as heun",
            )
        while ready < len(stops) and (gone >= stops[ready]).all():
            yield Point(values[ready], sign * speeds[ready], evaluations.clone())
            ready += 1


def _first_step(f: Derivative, y: Tensor, slope: Tensor, order: int, measure: Measure) -> Tensor:
    """Hairer, Nørsett & Wanner, II.4: a guess at the step's size `(N,)` from how the derivative changes."""
    scale = y.abs()
    size, speed = measure(y, scale), measure(slope, scale)
    small = torch.where((size < 1e-5) | (speed < 1e-5), torch.full_like(size, 1e-6), 0.01 * size / speed)
    bend = measure(f(small, y + as_rows(small, y) * slope) - slope, scale) / small
    most = torch.maximum(speed, bend)
    step = torch.where(most <= 1e-15, (1e-3 * small).clamp(min=1e-6), (0.01 / most) ** (1 / order))
    return torch.minimum(100 * small, step)


def _attempt(
    f: Derivative, gone: Tensor, y: Tensor, slope: Tensor, taken: Tensor, method: Method
) -> tuple[Tensor, Tensor, Tensor]:
    """The solution one step on, its derivative, and the error estimate."""
    h, slopes, new = as_rows(taken, y), [slope], y
    for node, weights in zip(method.nodes, method.weights, strict=True):
        new = y + h * _weighted(weights, slopes)
        slopes.append(f(gone + node * taken, new))
    return new, slopes[-1], h * _weighted(method.error, slopes)


def _weighted(weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    total = torch.zeros_like(slopes[0])
    for weight, slope in zip(weights, slopes, strict=True):
        if weight:
            total.add_(slope, alpha=weight)
    return total


def _passed(stops: Tensor, gone: Tensor, after: Tensor, first: int) -> list[int]:
    """The stops that some row has just passed."""
    low, high = float(gone.min()), float(after.max())
    return [k for k in range(first, len(stops)) if low < float(stops[k]) <= high]


def _between(
    part: Tensor, taken: Tensor, y: Tensor, slope: Tensor, new: Tensor, new_slope: Tensor
) -> tuple[Tensor, Tensor]:
    """The cubic through both ends of a step, and its derivative, `part` of the way along."""
    p, h = as_rows(part, y), as_rows(taken, y)
    rise = new - y
    value = y + p**2 * (3 - 2 * p) * rise + p * (1 - p) * h * ((1 - p) * slope - p * new_slope)
    speed = 6 * p * (1 - p) * rise / h + (1 - p) * (1 - 3 * p) * slope + p * (3 * p - 2) * new_slope
    last = p == 1
    return torch.where(last, new, value), torch.where(last, new_slope, speed)


# ---------------------------------------------------------------------------------------------------- the likelihood


def velocity(denoise: Denoise, low: Tensor, high: Tensor) -> Derivative:
    """dx/du = x − D(x, e^u), with e^u kept between the ends against rounding."""
    return lambda u, x: x - denoise(x, u.exp().clamp(low, high))


def log_prob(
    denoise: Denoise,
    x: Tensor,
    sigma_min: float,
    sigma_max: float,
    start_scale: float,
    rng: Rng,
    divergence: Literal["hutchinson", "exact"] = "hutchinson",
    probes: int = 1,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    solver: SolverName = "dopri5",
) -> tuple[Tensor, Tensor]:
    """log p(x) `(N,)` in nats, and the evaluations of the denoiser that each item took.

    Args:
        denoise: differentiable in x, each row independent of the others, conditions inside.
        x: data `(N, …)`, taken to be at `sigma_min`.
        sigma_min: where the flow begins.
        sigma_max: where data are drowned.
        start_scale: standard deviation of the noise at `sigma_max`: σ, or √(1 + σ²) for data of unit variance.
        rng: one row an item; the probes are drawn from it.
        divergence: `exact` costs as many backward passes an evaluation as an item has values.
        probes: random directions averaged, a backward pass each.
        rtol: error allowed in a step, relative to x.
        atol: where x is 0, and of log p per dimension.
        solver: the method.

    Raises:
        GencliError: as `integrate`.
    """
    size = x[0].numel()
    drawn = [signs(rng.at("probe", i), x) for i in range(probes)]
    trace = exact() if divergence == "exact" else hutchinson(drawn)

    def slope(u: Tensor, joint: Tensor) -> Tensor:
        with torch.enable_grad():
            here = joint[:, :-1].reshape(x.shape).detach().requires_grad_(True)
            x0 = denoise(here, u.exp().clamp(sigma_min, sigma_max))
            volume = 1 - trace(x0, here) / size
        return torch.cat([(here - x0).detach().flatten(1), volume[:, None]], dim=1)

    times = torch.tensor([sigma_min, sigma_max], dtype=torch.float64).log()
    joint = torch.cat([x.flatten(1), x.new_zeros(len(x), 1)], dim=1)
    (last,) = integrate(slope, joint, times, of_both(rtol, atol), solver, LONGEST)
    end, gained = last.y[:, :-1], last.y[:, -1] * size
    prior = -0.5 * (end / start_scale).square().sum(1) - size * math.log(start_scale * math.sqrt(2 * math.pi))
    return prior + gained, last.evaluations


def of_both(rtol: float, atol: float) -> Measure:
    """The greater error of x and of log p, which would drown among many values of x and whose size means nothing."""
    own = within(rtol, atol)
    return lambda error, size: torch.maximum(own(error[:, :-1], size[:, :-1]), error[:, -1].abs() / atol)
