"""Variational Inference with Normalizing Flows: radial flows (Rezende & Mohamed, 2015). arXiv:1505.05770

Offers: sample, exact density

    f(z) = z + β̂ h (z − z₀),   h = 1 / (α + ‖z − z₀‖),   log |det| = (D − 1) log (1 + β̂ h) + log (1 + β̂ α h²),   K in turn

All else is as in `planar`; the inverse of a layer is the root of a quadratic.
"""

from __future__ import annotations

from gencli.models.flow.planar import Planar
from gencli.nn.planar import Radial as Bump


class Radial(Planar):
    """Bumps in turn."""

    bijection = Bump
