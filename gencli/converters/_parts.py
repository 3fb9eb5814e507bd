"""The part of a model that is a function without loops or randomness, which a graph can hold: a denoiser, or a decoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gencli import registry
from gencli.bundle import Run
from gencli.core import Autoencoder, Denoiser, Field, LatentVariable, Model, Rng
from gencli.errors import GencliError

BATCHES = (1, 2, 5)
"""The sizes at which a graph is checked."""


@dataclass(frozen=True)
class Part:
    """A function of a model: its name, the function of named tensors, examples for a batch of n, its output's name."""

    what: str
    function: Callable[..., Tensor]
    inputs: Callable[[int], dict[str, Tensor]]
    output: str


def exportable(run: Run) -> Part:
    """What of a run's model is a function without loops or randomness."""
    model = run.model
    if isinstance(model, Denoiser):
        return Part("a denoiser", model.denoise, lambda n: _noisy(model, n), "x0")
    if isinstance(model, LatentVariable) and not getattr(model, "sequential", False):
        return Part("a decoder", _decoder(model), lambda n: _latent(model, n), "x")
    if isinstance(model, Autoencoder):
        return Part("a decoder", model.decode, lambda n: {"z": _example(model.latent, n, "z")}, "x")
    name = registry.public_name(run.config["recipe"]["model"]["name"])
    codec = (
        f"; its codec can: gencli convert {run.path / 'codec'} --to onnx"
        if run.path and run.config.get("codec")
        else ""
    )
    raise GencliError(
        f"run {run.name} is a {name}, which draws its numbers one after the other, or in rounds: no single graph is a sampler",
        f"denoisers and decoders can be exported{codec}",
    )


def gap(ours: Tensor, theirs: Tensor, inputs: Mapping[str, Tensor]) -> float:
    """The largest difference; a denoiser's in units of noise, |ΔD| / max(1, σ)."""
    apart = (ours - theirs).abs().flatten(1).amax(1)
    return float((apart / inputs["sigma"].clamp(min=1) if "sigma" in inputs else apart).max())


def _noisy(model: Any, n: int) -> dict[str, Tensor]:
    """x at levels from the whole range, and conditions."""
    if model.levels is not None:
        table = model.levels.double().cpu()
        sigma = table[torch.linspace(0, len(table) - 1, n + 2)[1:-1].round().long()]
    else:
        ends = torch.tensor([model.sigma_max, model.sigma_min], dtype=torch.float64).log()
        sigma = (ends[0] + (ends[1] - ends[0]) * torch.linspace(0, 1, n + 2)[1:-1]).exp()
    noise = Rng.rows(range(n)).at("x").normal((n, *model.spec.x.shape))
    x = noise * (1 + sigma.float() ** 2).sqrt().reshape(-1, *[1] * (noise.ndim - 1))
    return {"x": x, "sigma": sigma.float(), **_conditions(model, n)}


def _latent(model: Any, n: int) -> dict[str, Tensor]:
    cond = _conditions(model, n)
    z = model.prior(n, Rng.rows(range(n)), **cond)
    return {**(dict(z) if isinstance(z, Mapping) else {"z": z}), **cond}


def _decoder(model: Any) -> Callable[..., Tensor]:
    """`decode` of named tensors; a latent that is a dict is put together again."""

    def decode(**given: Tensor) -> Tensor:
        cond = {key: given.pop(key) for key in list(given) if key in model.spec.cond}
        return model.decode(given["z"] if set(given) == {"z"} else given, **cond)

    return decode


def _conditions(model: Model, n: int) -> dict[str, Tensor]:
    return {key: _example(field, n, key) for key, field in model.spec.cond.items()}


def _example(field: Field, n: int, key: str) -> Tensor:
    rng, shape = Rng.rows(range(n)).at(key), (n, *field.shape)
    return rng.integers(shape, field.vocab) if field.vocab and field.range is None else rng.normal(shape)


class Call(nn.Module):
    """A function of named tensors as a module of tensors in order; exporters take such."""

    def __init__(self, model: nn.Module, function: Callable[..., Tensor], names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.function, self.names = model, function, names

    def forward(self, *values: Tensor) -> Tensor:
        return self.function(**dict(zip(self.names, values, strict=True)))
