"""Conditional Generative Adversarial Nets (Mirza & Osindero, 2014). arXiv:1411.1784

Offers: sample

    min_G max_D E log D(x | y) + E log(1 − D(G(z | y) | y))

Both networks are told the class y; samples that the discriminator sees bear the classes of the data beside them. The generator
follows −log D as in `gan`, or minimax. With one class for all it is `gan`.

Paper: MNIST with the class as a one-hot vector beside z and x. Ours: a learned row a class added to what the first layer makes,
which is the same; the networks of `gan`, or convolutional ones.

Images or points with class labels. Errors: data without labels, and as of the family (`gencli/models/gan/_family.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

from gencli.config import opt
from gencli.models.gan.gan import Gan


class CGan(Gan):
    """A game for every class, played by one pair of networks."""

    @dataclass(frozen=True)
    class Config(Gan.Config):
        classes: bool = opt(True, "both networks are told the class")
