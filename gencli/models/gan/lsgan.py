"""Least Squares Generative Adversarial Networks (Mao et al., 2016). arXiv:1611.04076

Offers: sample

    D minimises ½ E (V(x) − b)² + ½ E (V(G(z)) − a)²,   G minimises ½ E (V(G(z)) − c)²,   a = 0, b = c = 1

(the paper's equation 9): samples far on the right side of the boundary still have a gradient. With b − c = 1 and b − a = 2
instead the generator would minimise a Pearson χ² divergence. Logged: the losses, and `real` and `fake`, the shares of data and
samples on their own side of ½.

Ours: the networks of `gan` by default; the paper's are convolutional (`dcgan-generator`, `dcgan-critic`).

Images `(N, C, H, W)` or points `(N, d)`, continuous. Errors: as of the family (`gencli/models/gan/_family.py`).
"""

from __future__ import annotations

from gencli.models.gan._objectives import OBJECTIVES, Objective
from gencli.models.gan._scored import Scored


class LsGan(Scored):
    """A regression to one and to zero."""

    def objective(self) -> Objective:
        return OBJECTIVES["least-squares"]
