"""Autoregressive maps: each number's function has parameters that a masked network makes of the numbers before it.

    y_i = f(x_i; θ_i),   θ_i = net(x_<i, context),   log |det| = Σ_i log f'(x_i; θ_i)

One pass of the network from x to y, D passes back. f is any `Univariate`; `AffineAutoregressive` has the affine one of MAF,
y_i = (x_i − μ_i) exp(−α_i), or with `gate` the gated one of IAF, y_i = σ_i x_i + (1 − σ_i) m_i.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gencli.nn.bijection import Bijection
from gencli.nn.masked_mlp import Activation, MaskedMlp
from gencli.nn.univariate import Affine, Gate, Univariate


class Autoregressive(Bijection):
    """A masked network and a family of functions, for rows `(N, D)`."""

    def __init__(self, net: MaskedMlp, univariate: Univariate) -> None:
        super().__init__()
        assert net.each == univariate.numbers, "the network makes the functions' parameters"
        self.net, self.univariate = net, univariate

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y, log_slope = self.univariate.forward(x, self.net(x, context).to(x.dtype))
        return y, log_slope.sum(1)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x, total = torch.zeros_like(y), y.new_zeros(len(y))
        places = torch.arange(y.shape[1], device=y.device)
        for place in self.net.order:
            given = self.net(x, context)[:, place].to(y.dtype)
            value, log_slope = self.univariate.inverse(y[:, place], given)
            x = torch.where(places == place, value[:, None], x)
            total = total + log_slope
        return x, total


class AffineAutoregressive(Autoregressive):
    """Shifts and scales by what comes before; the identity at first, but for a gate.

    Args:
        dim: D.
        hidden: units of each hidden layer; none makes the parameters affine functions.
        context: numbers of the context; 0 for none.
        reverse: the last number comes first.
        activation: of the hidden layers.
        gate: σ x + (1 − σ) m in place of (x − μ) exp(−α).
    """

    def __init__(
        self,
        dim: int,
        hidden: Sequence[int] = (64, 64),
        context: int = 0,
        reverse: bool = False,
        activation: Activation = "relu",
        gate: bool = False,
    ) -> None:
        order = range(dim)[::-1] if reverse else range(dim)
        univariate: Univariate = Gate() if gate else Affine()
        super().__init__(MaskedMlp(dim, hidden, 2, context, order, activation), univariate)
