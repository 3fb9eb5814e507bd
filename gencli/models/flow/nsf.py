"""Neural Spline Flows (Durkan, Bekasov, Murray & Papamakarios, 2019). arXiv:1906.04032

Offers: sample, exact density

    y_A = x_A,   y_b = g(x_b; θ_b(x_A)),   g a rising rational-quadratic spline of K bins (`nn/spline.py`)

Couplings whose parts are every second number, in turn the odd and the even ones; `form = "autoregressive"` makes θ_i of all
numbers before x_i by a masked network. Before each an LU-factored linear layer (`linear`), as in the paper for more than two
numbers. Splines act within [−bound, bound]; outside, a number passes as it is. x is any row of numbers; the paper's
convolutional flows of images are not here.

Paper: networks with two residual blocks, K = 8, bound 3 for tables; in the authors' code K = 64, bound 5, no linear layers and
no spline of the numbers that stay for the plane, as here.

Raises GencliError for whole numbers, for items of one number, and for more bins than fit a bin of 1e-3 each.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from gencli.config import Part, opt, part
from gencli.core import Field
from gencli.models.flow._layers import ClassSettings, LayeredFlow, striped
from gencli.nn.affine_autoregressive import Autoregressive
from gencli.nn.bijection import Bijection
from gencli.nn.coupling import Coupling
from gencli.nn.linear_maps import LU
from gencli.nn.masked_mlp import MaskedMlp
from gencli.nn.spline import Spline


class Nsf(LayeredFlow):
    """Splines of one part, told by the other."""

    @dataclass(frozen=True)
    class Config(ClassSettings):
        layers: int = opt(4, "spline layers", low=1)
        form: Literal["coupling", "autoregressive"] = opt("coupling", "what a number's spline depends on")
        bins: int = opt(8, "bins of a spline", low=2, high=500)
        bound: float = opt(4.0, "splines act between −bound and bound", low=0.01)
        linear: bool = opt(False, "an LU-factored linear layer before each")
        hidden: tuple[int, ...] = opt((64, 64), "hidden units of an autoregressive layer's network")
        net: Part = part("networks", "residual-mlp", "network of a coupling", role="map")

    def layers(self, dim: int, context: int) -> Iterable[Bijection]:
        spline = Spline(self.config.bins, self.config.bound)
        for i in range(self.config.layers):
            if self.config.linear:
                yield LU(dim)
            if self.config.form == "autoregressive":
                order = range(dim)[::-1] if i % 2 else range(dim)
                yield Autoregressive(MaskedMlp(dim, self.config.hidden, spline.numbers, context, order), spline)
            else:
                changes = striped(dim, i % 2 == 0, "nsf")
                moved = sum(changes)
                out = Field("coupling", (moved * spline.numbers,))
                net = self.config.net.build(Field("coupling", (dim - moved + context,)), out, {})
                yield Coupling(changes, net, spline)
