"""FFJORD: Free-form Continuous Dynamics for Reversible Generative Models (Grathwohl et al., 2018). arXiv:1810.01367

Offers: sample, exact density

    log p(x) = log N(x(T); 0, I) + ∫ tr ∂f/∂x dt,   tr ∂f/∂x = E[v·(∂f/∂x) v],   v of signs ±1, one for a whole solve

which costs one derivative a probe whatever the number of dimensions, so that f may be any network. The estimate of log p is
right on average; `--divergence exact` takes the trace itself. Images may have several scales, half of whose channels leave
after each but the last. Logged: `evaluations` of f in a forward solve.

Paper: dopri5 at 1e-5, T learned for each ODE, Adam at 1e-3; for MNIST two ODEs before and after each squeezing over three
scales, a field of three hidden layers of 64 channels that see the time as one more, α 1e-6 of the logit: 800,646 parameters.
Ours: everything that is left is Gaussian noise of the image's own shape; a class label (`classes`).

Points `(N, d)` or images `(N, C, H, W)`. Errors: as of the family (`gencli/models/flow/_continuous.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gencli.config import opt
from gencli.models.flow._continuous import ContinuousFlow


class Ffjord(ContinuousFlow):
    """ODEs of any field, their volume estimated."""

    @dataclass(frozen=True)
    class Config(ContinuousFlow.Config):
        learn_time: bool = opt(True, "T is learned, each ODE's own")
        divergence: Literal["exact", "hutchinson"] = opt(
            "hutchinson", "the trace: a derivative a number, or a random probe"
        )
