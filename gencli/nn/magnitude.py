"""Layers that keep the magnitude of what passes: Analyzing and Improving the Training Dynamics of Diffusion Models.

Karras et al., 2023, arXiv:2312.02696. Magnitude is the root mean square over channels; an input of independent channels of
magnitude 1 leaves each of these with magnitude 1 in expectation, without the network's learning to do so:

    layer   y = (g w / (√fan_in rms(w))) x, each output's weights w normalised (equation 47), g a gain
    silu    silu(x) / 0.596 (81)      sum   ((1 − t) a + t b) / √((1 − t)² + t²) (88)
    cat     [a √(N/Nₐ) (1 − t), b √(N/N_b) t] / √((1 − t)² + t²), N = Nₐ + N_b (103)
    waves   √2 cos(f level + φ), f ~ N(0, (2π)²), φ ~ U(0, 2π), drawn once (75)

*Forced* weight normalisation (66): weights are normalised whenever they are used, so that outputs depend on their direction
alone; but then their stored length grows at every step (a gradient is orthogonal to its weight) and with it the effective
learning rate falls. `normalise_weights`, called after every optimiser step, puts each stored weight back to rms 1. Weights
start so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TINY = 1e-4  # added to a magnitude that is divided by


def unit_magnitude(x: Tensor, dim: Sequence[int]) -> Tensor:
    """x over its root mean square along `dim` (pixel norm: `dim=[1]`)."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    norm = torch.linalg.vector_norm(x, dim=list(dim), keepdim=True, dtype=wide)
    return x / (norm * math.sqrt(norm.numel() / x.numel()) + TINY).to(x.dtype)


def mp_silu(x: Tensor) -> Tensor:
    """silu of magnitude 1 for standard normal x."""
    return F.silu(x) / 0.596


def mp_sum(a: Tensor, b: Tensor, t: float) -> Tensor:
    """From a (t = 0) to b (t = 1), of magnitude 1 if a and b are so and independent."""
    return a.lerp(b, t) / math.sqrt((1 - t) ** 2 + t**2)


def mp_cat(a: Tensor, b: Tensor, t: float) -> Tensor:
    """a and b side by side (dimension 1), contributing to what follows as 1 − t to t, whatever their numbers of channels."""
    left, right = a.shape[1], b.shape[1]
    scale = math.sqrt((left + right) / ((1 - t) ** 2 + t**2))
    return torch.cat([a * (scale * (1 - t) / math.sqrt(left)), b * (scale * t / math.sqrt(right))], dim=1)


class MPLayer(nn.Module):
    """A fully connected layer, or a convolution that keeps the sides, without bias."""

    def __init__(self, inputs: int, outputs: int, kernel: int | None = None) -> None:
        super().__init__()
        sides = () if kernel is None else (kernel, kernel)
        self.weight = nn.Parameter(torch.empty(outputs, inputs, *sides))
        nn.init.normal_(self.weight)
        self.normalise()

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        """`(N, inputs, …)` to `(N, outputs, …)`."""
        w = self._direction() * (gain / math.sqrt(self.weight[0].numel()))
        w = w.to(x.dtype)
        return F.linear(x, w) if w.ndim == 2 else F.conv2d(x, w, padding=w.shape[-1] // 2)

    def normalise(self) -> None:
        """Put the stored weights of each output back to rms 1; outputs stay the same."""
        with torch.no_grad():
            self.weight.copy_(self._direction())

    def _direction(self) -> Tensor:
        wide = self.weight if self.weight.dtype == torch.float64 else self.weight.float()
        return unit_magnitude(wide, range(1, self.weight.ndim))


def normalise_weights(module: nn.Module) -> None:
    """`normalise` every `MPLayer` inside; for a model's `after_step`, in training only."""
    for layer in module.modules():
        if isinstance(layer, MPLayer):
            layer.normalise()


class MPFourier(nn.Module):
    """Levels `(N,)` to waves `(N, channels)` of fixed random frequency and phase."""

    frequency: Tensor
    phase: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("frequency", nn.init.normal_(torch.empty(channels), std=2 * math.pi))
        self.register_buffer("phase", nn.init.uniform_(torch.empty(channels), 0, 2 * math.pi))

    def forward(self, level: Tensor) -> Tensor:
        wide = level if level.dtype == torch.float64 else level.float()
        return (wide[:, None] * self.frequency.to(wide) + self.phase.to(wide)).cos() * math.sqrt(2)


class LogVariance(nn.Module):
    """log u(level)², how uncertain a loss is at a level (equation 21): a loss L is trained as L / u² + log u²."""

    def __init__(self, channels: int = 128) -> None:
        super().__init__()
        self.waves, self.linear = MPFourier(channels), MPLayer(channels, 1)

    def forward(self, level: Tensor) -> Tensor:
        """`(N,)` from `(N,)`."""
        return self.linear(self.waves(level).to(self.linear.weight.dtype))[:, 0]
