"""Batch normalisation whose statistics are combined over micro-batches and processes, once per optimiser step.

In evaluation it normalises with running averages of the batches' means and variances. In training with a share `lag` = ρ of the
past (Dinh et al., arXiv:1605.08803, appendix E)

    m̃ = ρ m_running + (1 − ρ) m_batch,   ṽ = ρ v_running + (1 − ρ) v_batch

through which gradients flow to the batch's part only; ρ = 0 is ordinary batch normalisation. The first steps' averages weigh
all steps alike, so that they are never drawn towards where they started.

Running averages are ordinary state: a run's averaged weights come with equally averaged statistics, to first order those of
the averaged weights. What `forward` gathers in between is no buffer, since wrappers broadcast buffers before each forward;
`settle` applies it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gencli import core

EPSILON = 1e-4
RATE = 0.1  # of the running averages, where nothing lags


class MovingNorm(nn.Module):
    """The mean and variance of every channel of `(N, C, …)`."""

    mean: Tensor
    var: Tensor
    steps: Tensor

    def __init__(self, channels: int, lag: float = 0.0) -> None:
        super().__init__()
        self.lag = lag
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("var", torch.ones(channels))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self._gathered: Tensor | None = None

    def moments(self, x: Tensor, among: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and variance + ε to normalise with, each `(C, 1, …)`.

        Args:
            x: what is normalised.
            among: ones where `x` counts, broadcast over items; everywhere by default.
        """
        mean, var = self._batch(x, among) if self.training else (self.mean, self.var)
        shape = (-1, *[1] * (x.ndim - 2))
        return mean.view(shape).to(x.dtype), var.view(shape).to(x.dtype) + EPSILON

    def _batch(self, x: Tensor, among: Tensor | None) -> tuple[Tensor, Tensor]:
        over = [0, *range(2, x.ndim)]
        if among is None:
            var, mean = torch.var_mean(x, over, correction=0)
        else:
            weight = among.expand(x.shape[1:])
            shape = (-1, *[1] * (x.ndim - 2))
            share = weight / (len(x) * weight.reshape(len(weight), -1).sum(1).clamp(min=1)).view(shape)
            mean = (x * share).sum(over)
            var = ((x - mean.view(shape)).square() * share).sum(over)
        self.gather(mean, var)
        if not self.lag:
            return mean, var
        return torch.lerp(self.mean, mean, self._rate()), torch.lerp(self.var, var, self._rate())

    def _rate(self) -> float:
        """The weight of the newest batch."""
        return max((1 - self.lag) if self.lag else RATE, 1 / (int(self.steps) + 1))

    @torch.no_grad()
    def gather(self, mean: Tensor, var: Tensor) -> None:
        """Remember a batch's statistics until `settle`."""
        seen = torch.cat([mean.new_ones(1), mean, var]).to(self.mean)
        self._gathered = seen if self._gathered is None else self._gathered + seen

    def take(self) -> Tensor:
        """What was gathered since the last call: `(1 + 2C,)`, the number of batches and the sums."""
        seen, self._gathered = self._gathered, None
        return self.mean.new_zeros(1 + 2 * len(self.mean)) if seen is None else seen

    def absorb(self, seen: Tensor) -> None:
        """Move the running averages by what one step's batches gathered."""
        if seen[0] > 0:
            mean, var = (seen[1:] / seen[0]).chunk(2)
            rate = self._rate()
            self.mean.lerp_(mean, rate)
            self.var.lerp_(var, rate)
            self.steps += 1


class ShiftedNorm(MovingNorm):
    """Normalises, multiplies each channel by a learned number if `gain`, then adds a learned number to it."""

    weight: nn.Parameter | None

    def __init__(self, channels: int, lag: float = 0.0, gain: bool = False) -> None:
        super().__init__(channels, lag)
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_parameter("weight", nn.Parameter(torch.ones(channels)) if gain else None)

    def forward(self, x: Tensor) -> Tensor:
        if self.lag and self.training:
            mean, var = self.moments(x)
            normal = (x - mean) * var.rsqrt()
            if self.weight is not None:
                normal = normal * self.weight.view(mean.shape)
            return normal + self.bias.view(mean.shape)
        seen = (torch.zeros_like(self.mean), torch.ones_like(self.var)) if self.training else (self.mean, self.var)
        made = F.batch_norm(
            x, *seen, self.weight, self.bias, self.training, 1.0, EPSILON
        )  # fills `seen` while training
        if self.training:
            self.gather(*seen)
        return made


@torch.no_grad()
def settle(model: nn.Module) -> None:
    """Apply what every `MovingNorm` in a model gathered, on every process: from `Model.after_step` only."""
    norms = [module for module in model.modules() if isinstance(module, MovingNorm)]
    if norms:
        seen = [norm.take() for norm in norms]
        for norm, part in zip(norms, core.all_reduce(torch.cat(seen)).split([len(s) for s in seen]), strict=True):
            norm.absorb(part)
