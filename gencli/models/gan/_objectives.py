"""What a discriminator's output V means: the two losses of adversarial training, of each item.

    non-saturating   D: softplus(−V(x)) + softplus(V(G(z)))      G: softplus(−V(G(z)))      D(x) = sigmoid V(x)
    minimax          the same                                    G: −softplus(V(G(z))) = log(1 − D(G(z)))
    least-squares    ½ (V(x) − 1)² + ½ V(G(z))²                  ½ (V(G(z)) − 1)²
    hinge            max(0, 1 − V(x)) + max(0, 1 + V(G(z)))      −V(G(z))
    wasserstein      V(G(z)) − V(x)                              −V(G(z))

f-divergences (Nowozin et al., arXiv:1606.00709, table 2): with T = g_f(V) and the conjugate f*,

    D: −T(x) + f*(T(G(z))),   whose negative is at most D_f(P ‖ Q);   G: −f*(T(G(z))),   or −T(G(z)) (section 3.2)

`middle` is the V at which the discriminator holds data and samples for equally likely.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import softplus

Each = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Objective:
    """The discriminator's loss is `data(V(x)) + samples(V(G(z)))`, the generator's `generator(V(G(z)))`."""

    data: Each
    samples: Each
    generator: Each
    middle: float = 0.0


OBJECTIVES: dict[str, Objective] = {
    "non-saturating": Objective(lambda v: softplus(-v), softplus, lambda v: softplus(-v)),
    "minimax": Objective(lambda v: softplus(-v), softplus, lambda v: -softplus(v)),
    "least-squares": Objective(
        lambda v: (v - 1).square() / 2, lambda v: v.square() / 2, lambda v: (v - 1).square() / 2, 0.5
    ),
    "hinge": Objective(lambda v: (1 - v).relu(), lambda v: (1 + v).relu(), lambda v: -v),
    "wasserstein": Objective(lambda v: -v, lambda v: v, lambda v: -v),
}


@dataclass(frozen=True)
class Divergence:
    """An f-divergence D_f(P ‖ Q) = E_Q f(p/q) by its output activation and conjugate.

    Args:
        activation: g_f, from all numbers to the domain of f*.
        conjugate: f*.
        of_output: f*(g_f(V)), as it can be computed for any V.
        best: f\'(p/q), the T at which the bound is tight.
        value: f, of the ratio p/q.
    """

    activation: Each
    conjugate: Each
    of_output: Each
    best: Each
    value: Each

    def objective(self, saturating: bool) -> Objective:
        """The losses; the generator minimises the bound, or follows T."""

        follow = self.of_output if saturating else self.activation
        return Objective(lambda v: -self.activation(v), self.of_output, lambda v: -follow(v))


DIVERGENCES: dict[str, Divergence] = {
    "kl": Divergence(
        activation=lambda v: v,
        conjugate=lambda t: (t - 1).exp(),
        of_output=lambda v: (v - 1).exp(),
        best=lambda u: 1 + u.log(),
        value=lambda u: u * u.log(),
    ),
    "reverse-kl": Divergence(
        activation=lambda v: -(-v).exp(),
        conjugate=lambda t: -1 - (-t).log(),
        of_output=lambda v: v - 1,
        best=lambda u: -1 / u,
        value=lambda u: -u.log(),
    ),
    "pearson": Divergence(
        activation=lambda v: v,
        conjugate=lambda t: t.square() / 4 + t,
        of_output=lambda v: v.square() / 4 + v,
        best=lambda u: 2 * (u - 1),
        value=lambda u: (u - 1).square(),
    ),
    "hellinger": Divergence(
        activation=lambda v: -(-v).expm1(),
        conjugate=lambda t: t / (1 - t),
        of_output=lambda v: v.expm1(),
        best=lambda u: 1 - u.rsqrt(),
        value=lambda u: (u.sqrt() - 1).square(),
    ),
    "jensen-shannon": Divergence(
        activation=lambda v: math.log(2) - softplus(-v),
        conjugate=lambda t: -(2 - t.exp()).log(),
        of_output=lambda v: softplus(v) - math.log(2),
        best=lambda u: math.log(2) + u.log() - (1 + u).log(),
        value=lambda u: u * u.log() - (1 + u) * ((1 + u) / 2).log(),
    ),
    "gan": Divergence(
        activation=lambda v: -softplus(-v),
        conjugate=lambda t: -(-t.expm1()).log(),
        of_output=softplus,
        best=lambda u: u.log() - (1 + u).log(),
        value=lambda u: u * u.log() - (1 + u) * (1 + u).log(),
    ),
}
