"""Neural Ordinary Differential Equations: continuous normalising flows (Chen et al., 2018). arXiv:1806.07366

Offers: sample, exact density

    dx/dt = f(x, t),   d log p(x(t)) / dt = −tr ∂f/∂x,   log p(x) = log N(x(T); 0, I) + ∫ tr ∂f/∂x dt from 0 to T

with the exact trace, a derivative for each of an item's numbers: for points and other small data. Gradients are the adjoint's,
another ODE solved backwards from the end, whose memory does not grow with the number of steps, or kept (`direct`). Data are at
time 0 and noise at T; a sample is integrated from T to 0. Logged: `evaluations` of f in a forward solve.

Paper: a sum of 64 gated hidden units, f = Σ σ_n(t) u_n tanh(w_n(t)·x + b_n(t)), whose trace has a closed form.
Ours: any network of the field, by default fully connected layers with tanh that see the time (`ode-net`), whose trace is taken
by differentiation; a class label (`classes`).

Points `(N, d)` or images `(N, C, H, W)`. Errors: as of the family (`gencli/models/flow/_continuous.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

from gencli.config import Part, part
from gencli.models.flow._continuous import ContinuousFlow


class NeuralOde(ContinuousFlow):
    """One ODE between data and noise."""

    @dataclass(frozen=True)
    class Config(ContinuousFlow.Config):
        net: Part = part("networks", "ode-net", "the field f(x, t)", role="denoise", activation="tanh")
