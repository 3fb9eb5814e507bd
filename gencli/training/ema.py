"""Averages of the weights that a run samples with (Karras et al., 2024). arXiv:2312.02696

Power function:  beta_t = (1 − 1/t)^(gamma + 1), so that the profile's width is a constant share `sigma_rel` of the run so
far: short and long runs are averaged alike, and the first steps are forgotten. A constant decay, as in older papers, is
warmed up by min(decay, (1 + t) / (10 + t)).

A run that begins from the weights of another one restarts the average at them: they are the first of its t + 1 steps,

    beta_t = (1 − 1/(t + 1))^g,   average_t = Σ_i ((i + 1)^g − i^g) theta_i / (t + 1)^g,   i = 0 … t,   g = gamma + 1

where a run from nothing lets go of what it was initialised with at its first step.

Several power-function averages beside the run's own (`Profiles`) let `posthoc` make that of any other width afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gencli.core import Model


def gamma_of(sigma_rel: float) -> float:
    """The exponent whose profile has relative width `sigma_rel`: sigma² = (gamma + 1) / ((gamma + 2)² (gamma + 3))."""
    roots = np.roots([1.0, 7.0, 16.0 - sigma_rel**-2, 12.0 - sigma_rel**-2])
    return float(max(roots[np.isreal(roots)].real))


class Average:
    """All persistent floating state of a model except `training_only`; integers and batch statistics are copied."""

    def __init__(self, model: Model, sigma_rel: float, decay: float, before: int = 0) -> None:
        """`before`: how many steps the weights that the model begins with count as."""
        self.before = before
        self.on = sigma_rel > 0 or decay > 0
        self._decay = decay
        self._exponent = gamma_of(sigma_rel) + 1 if sigma_rel > 0 and not decay else 0.0
        self._copied = copied_names(model)
        self.state = {name: value.detach().clone() for name, value in kept_state(model).items()}

    def beta(self, t: int) -> float:
        """The weight of the past at the t-th update (from 1)."""
        if not self.on:
            return 0.0
        if self._decay:
            return min(self._decay, (1 + t) / (10 + t))
        return (1 - 1 / (t + self.before)) ** self._exponent

    @torch.no_grad()
    def update(self, model: Model, t: int) -> None:
        """After the t-th optimiser step."""
        current = kept_state(model)
        mixed = [name for name in self.state if name not in self._copied]
        torch._foreach_lerp_([self.state[n] for n in mixed], [current[n].detach() for n in mixed], 1 - self.beta(t))
        for name in self._copied & set(self.state):
            self.state[name].copy_(current[name])

    @contextmanager
    def worn_by(self, model: Model) -> Iterator[None]:
        """The model with the averaged state inside the block, its own again after it."""
        own = {name: value.detach().clone() for name, value in kept_state(model).items()}
        training = model.training
        model.load_state_dict(self.state, strict=False)
        model.eval()
        try:
            yield
        finally:
            model.load_state_dict(own, strict=False)
            model.train(training)


class Profiles:
    """Power-function averages of several relative widths, kept for `posthoc`; as tensors they are called `WIDTH/NAME`."""

    def __init__(self, model: Model, widths: Sequence[float], before: int = 0) -> None:
        self.averages = {width: Average(model, width, 0.0, before) for width in widths}

    def __bool__(self) -> bool:
        return bool(self.averages)

    def update(self, model: Model, t: int) -> None:
        """After the t-th optimiser step."""
        for average in self.averages.values():
            average.update(model, t)

    def tensors(self) -> dict[str, Tensor]:
        """All of them, on the CPU."""
        return {
            f"{width}/{name}": value.to("cpu").contiguous()
            for width, average in self.averages.items()
            for name, value in average.state.items()
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `tensors`."""
        for width, average in self.averages.items():
            for name, value in average.state.items():
                value.copy_(tensors[f"{width}/{name}"])


def steps_before(config: Mapping[str, Any]) -> int:
    """How many steps the weights that a run began with count as in its averages; 0 if it began from nothing."""
    return int(config.get("from", {}).get("counts", 0))


def kept_state(model: Model) -> dict[str, Tensor]:
    """What belongs into model.safetensors: the state without `training_only`, tied tensors once."""
    skip = model.training_only
    seen: set[int] = set()
    made: dict[str, Tensor] = {}
    for name, value in model.state_dict(keep_vars=False).items():
        if (skip and name.startswith(skip)) or (value.numel() and value.data_ptr() in seen):
            continue
        seen.add(value.data_ptr())
        made[name] = value
    return made


def copied_names(model: Model) -> set[str]:
    """State that is copied rather than averaged: integers and batch-norm statistics."""
    names = {name for name, value in model.state_dict().items() if not value.is_floating_point()}
    for prefix, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            names |= {f"{prefix}.running_mean", f"{prefix}.running_var"}
    return names
