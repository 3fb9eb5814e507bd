"""Generative Adversarial Networks (Goodfellow et al., 2014). arXiv:1406.2661

Offers: sample

    D maximises E log D(x) + E log(1 − D(G(z))),   D = sigmoid V
    G minimises E log(1 − D(G(z)))   (`minimax`),   or −E log D(G(z))   (`non-saturating`, the paper's own advice)

For a fixed G the best D is p / (p + q), and the value then −ln 4 + 2 JSD(p ‖ q). The gradient that reaches G through V is of
one sign for both, of size D for minimax and 1 − D for the other: minimax teaches a generator nothing while the discriminator
is sure. Logged: the losses, and `real` and `fake`, the shares of data and samples that D takes for what they are.

Paper: fully connected networks (maxout, dropout, sigmoid) with momentum on MNIST and TFD, one turn each.
Ours: leaky or plain relus (`mlp`), Adam, tanh to the data's range; penalties and classes are options of the whole family.

Images `(N, C, H, W)` or points `(N, d)`, continuous. Errors: as of the family (`gencli/models/gan/_family.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gencli.config import opt
from gencli.models.gan._objectives import OBJECTIVES, Objective
from gencli.models.gan._scored import Scored


class Gan(Scored):
    """A generator and a discriminator in one game."""

    @dataclass(frozen=True)
    class Config(Scored.Config):
        objective: Literal["non-saturating", "minimax"] = opt("non-saturating", "what the generator minimises")

    def objective(self) -> Objective:
        return OBJECTIVES[self.config.objective]
