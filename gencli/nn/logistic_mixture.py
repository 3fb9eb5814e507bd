"""PixelCNN++: the discretised logistic mixture (Salimans et al., 2017). arXiv:1701.05517

    P(x) = Σ_k π_k Π_c [σ((x_c + ½ − μ_kc) / s_kc) − σ((x_c − ½ − μ_kc) / s_kc)],   μ_kc = m_kc + Σ_{b<c} a_kcb x_b

over whole pixels: the components share all channels, and a component's mean in a channel is linear in the pixel's earlier
channels. The bins of the least and the greatest value reach to infinity.

Ours: places and scales are counted in bins, so that the ends of bins are exact, two neighbours share theirs to the last bit
and the masses sum to one in single precision; the mass of a bin is a product in which nothing cancels
(`nn/discretised.py`), so there is no second formula for small masses and no floor. Any number of values and channels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gencli.nn.discretised import discretised_logistic

LEAST_LOG_SCALE = -7.0


def numbers(channels: int) -> int:
    """How many numbers describe a component: its weight, a mean and a scale a channel, and the couplings."""
    return 1 + 2 * channels + channels * (channels - 1) // 2


class LogisticMixture(NamedTuple):
    """A distribution of pixels of whole numbers 0 … vocab − 1; K components.

    Args:
        log_weights: `(…, K)`, normalised.
        means: `(…, C, K)`, on the scale where values are −1 … 1.
        log_scales: `(…, C, K)`, on the same scale.
        couplings: `(…, C (C − 1) / 2, K)`: of channel 1 to 0, of 2 to 0 and 1, ….
        vocab: number of values.
    """

    log_weights: Tensor
    means: Tensor
    log_scales: Tensor
    couplings: Tensor
    vocab: int

    @classmethod
    def of(cls, raw: Tensor, channels: int, vocab: int) -> LogisticMixture:
        """From a network's numbers `(…, numbers(channels) · K)`: scales of at least e^−7, couplings by tanh."""
        wide = raw if raw.dtype == torch.float64 else raw.float()
        parts = wide.unflatten(-1, (numbers(channels), -1))
        weights, means, scales, couplings = parts.split([1, channels, channels, parts.shape[-2] - 1 - 2 * channels], -2)
        log_weights = weights.squeeze(-2).log_softmax(-1)
        return cls(log_weights, means, scales.clamp(min=LEAST_LOG_SCALE), couplings.tanh(), vocab)

    def log_prob(self, x: Tensor) -> Tensor:
        """log P `(…)` of pixels `(…, C)`."""
        return self._weights_after(x).logsumexp(-1)

    def logits(self, earlier: Tensor) -> Tensor:
        """log P `(…, V)` of each value of the next channel, given the pixel's earlier ones `(…, c)`.

        What was seen changes the weights: those of components that expected it grow.
        """
        weights = self._weights_after(earlier).log_softmax(-1)
        values = torch.arange(self.vocab, device=earlier.device)[:, None]
        place, scale = (part.unsqueeze(-2) for part in self._bins(earlier))
        return (weights.unsqueeze(-2) + self._log_masses(values, place, scale)).logsumexp(-1)

    def mean(self) -> Tensor:
        """The mixture's location `(…, C)` on the scale of −1 … 1: the mean, were the outermost bins not cut off."""
        channels, made = self.means.shape[-2], list[Tensor]()
        for channel in range(channels):
            first = channel * (channel - 1) // 2
            linked = [self.couplings[..., first + b, :] * made[b] for b in range(channel)]
            made.append(torch.stack([self.means[..., channel, :], *linked]).sum(0))
        return (torch.stack(made, -2) * self.log_weights.exp().unsqueeze(-2)).sum(-1)

    def _weights_after(self, x: Tensor) -> Tensor:
        """log of each component's weight times its mass `(…, K)` on the first channels `(…, c)` of pixels."""
        total = self.log_weights
        for channel in range(x.shape[-1]):
            total = total + self._log_masses(x[..., channel, None], *self._bins(x[..., :channel]))
        return total

    def _bins(self, earlier: Tensor) -> tuple[Tensor, Tensor]:
        """Each component's place and scale `(…, K)` in the channel after `earlier` `(…, c)`, counted in bins."""
        channel, half = earlier.shape[-1], (self.vocab - 1) / 2
        first = channel * (channel - 1) // 2
        couplings = self.couplings[..., first : first + channel, :]  # (…, c, K)
        seen = earlier[..., None].to(self.means) / half - 1
        mean = self.means[..., channel, :] + (couplings * seen).sum(-2)
        return (mean + 1) * half, self.log_scales[..., channel, :].exp() * half

    def _log_masses(self, value: Tensor, place: Tensor, scale: Tensor) -> Tensor:
        return discretised_logistic(value.to(place), place, scale, (-0.5, self.vocab - 0.5), 1.0)
