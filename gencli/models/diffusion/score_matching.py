"""Estimation of Non-Normalized Statistical Models by Score Matching (Hyvärinen, 2005).

Offers: sample

    loss = E [tr ∇s(x) + ½ ‖s(x)‖²] = ½ E ‖s − ∇ log p‖² + a number that does not depend on s

with p the data's own density: nothing is added to them. `form = exact` takes the trace, one derivative a dimension;
`form = sliced` estimates it by v^T ∇s v with `probes` random signs v, one derivative each (Song et al., arXiv:1905.07088, who
keep ½ ‖s‖² exact too).

Default sampler: `langevin`. Samplers of denoisers need a level of noise, which this method has not: `sigma` stands for it, and
x + σ² s(x), with the score at level 0 for that at σ, is the posterior mean only as far as the density is smooth on that
scale. Keep it small.

The loss has no least value on data that lie on a grid or below their dimension: use it for points in a continuum, or
denoising-score-matching.

Ours: random signs instead of Gaussian probes (less variance, equal mean); class labels with a null.

Errors: form exact in more than 256 dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gencli.config import Part, opt, part
from gencli.core import Batch, Losses, Rng, Spec, Turn, full_precision
from gencli.errors import GencliError
from gencli.models.diffusion._family import Formulation
from gencli.models.diffusion._ladder import LadderModel, geometric
from gencli.nn.trace import exact, hutchinson

MOST = 256


class ScoreMatching(LadderModel):
    """The score of the data themselves."""

    process = "vp"

    @dataclass(frozen=True)
    class Config:
        form: Literal["exact", "sliced"] = opt("exact", "the trace of the score's Jacobian: computed, or estimated")
        probes: int = opt(1, "random directions an item of the sliced form", low=1)
        sigma: float = opt(0.05, "level of noise that samplers are told; not used in training", low=1e-6)
        label_dropout: float = opt(0.1, "share of labels replaced by the null label in training", low=0, high=1)
        net: Part = part("networks", "denoising-mlp", "the score network", role="denoise")

    def __init__(self, config: Config, spec: Spec) -> None:
        if config.form == "exact" and spec.x.size > MOST:
            raise GencliError(
                f"form exact takes a derivative a dimension, the data have {spec.x.size}, the most is {MOST}",
                "use --form sliced",
            )
        self.formulation = Formulation(torch.ones_like, lambda s: s**2, torch.ones_like, torch.zeros_like)
        super().__init__(config, spec)

    @property
    def levels(self) -> Tensor:
        return geometric(self.config.sigma, self.config.sigma, 1)

    def loss(self, batch: Batch, turn: Turn) -> Losses:
        """Of the data as they are."""
        data, cond = self.prepared(batch, turn.rng)
        probes = None if self.config.form == "exact" else self._signs(data, turn.rng.at("probes"))
        each = implicit(lambda x: self.score(x, **cond), data, probes, torch.is_grad_enabled())
        return {"loss": each.mean(), "each": each}

    def score(self, x: Tensor, **cond: Tensor) -> Tensor:
        """s(x)."""
        return self.predict(x, self.levels[0].to(x.device), **cond)

    def _signs(self, data: Tensor, rng: Rng) -> Tensor:
        """`(N, probes, *shape)` of −1 and 1."""
        shape = (len(data), self.config.probes, *data.shape[1:])
        return (rng.integers(shape, 2) * 2 - 1).to(data)


def implicit(score: Callable[[Tensor], Tensor], x: Tensor, probes: Tensor | None, twice: bool) -> Tensor:
    """`(N,)` tr ∇s + ½ ‖s‖² at points `(N, …)`, the trace by probes `(N, K, …)` or exact; `twice` for its gradient."""
    with full_precision(x.device), torch.enable_grad():
        x = x.detach().requires_grad_()
        s = score(x)
        trace = exact(twice) if probes is None else hutchinson(probes.unbind(1), twice)
        each = trace(s, x) + s.square().flatten(1).sum(1) / 2
        return each if twice else each.detach()
