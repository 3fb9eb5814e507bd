"""The levels of noise at which a sampler calls the network, found by letting it draw one sample from a stand-in."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from gencli.bundle import Run
from gencli.core import Batch, Denoiser, Model, Rng, Spec
from gencli.errors import GencliError
from gencli.guidance._base import Denoise, Guidance


@dataclass(frozen=True)
class Call:
    """One call of the denoiser.

    Args:
        step: of the sampler, from 1.
        evaluation: of the network, from 1.
        told: what the model tells its network of the level: an index, a time or a logarithm; None where it does not say.
        sigma: σ in x = x0 + σ n.
        alpha_bar: the share of the data's variance in the variance-preserving form, 1 / (1 + σ²).
        log_snr: −2 log σ.
    """

    step: int
    evaluation: int
    told: float | None
    sigma: float
    alpha_bar: float
    log_snr: float

    def row(self) -> dict[str, Any]:
        """As a document holds it."""
        return asdict(self)


def visited(run: Run, sampler: Any) -> list[Call]:
    """Every call that one sample takes, in order.

    The network is not asked: the stand-in is the denoiser of Gaussian data, so a sampler that chooses its steps by what it
    sees chooses them as for such data.

    Raises:
        GencliError: the sampler knows no levels of noise.
    """
    if sampler.interface is not Denoiser or sampler.unguided:
        raise GencliError(
            f"sampler {sampler.public_name()} has no noise levels, so no timesteps",
            "choose a sampler of diffusion models, such as ddim",
        )
    seen: list[tuple[int, float]] = []
    step = 1

    def standin(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append((step, float(sigma.max())))
        return x / (1 + sigma.reshape(-1, *[1] * (x.ndim - 1)).to(x) ** 2)

    def denoiser(model: Model, spec: Spec, cond: Batch, guidance: Guidance, memory: dict[str, Any]) -> Denoise:
        return standin

    spy = copy.copy(sampler)
    spy.denoiser = denoiser
    with torch.no_grad():
        for frame in spy.frames(run.model, run.spec, 1, Rng.rows([0], run.model.device), {}):
            step = frame.index + 2
    sigmas = torch.tensor([sigma for _, sigma in seen], dtype=torch.float64)
    formulation = getattr(run.model, "formulation", None)
    told = [None] * len(seen) if formulation is None else formulation.noise(sigmas).tolist()
    return [
        Call(step, i + 1, told[i], float(s), float(1 / (1 + s**2)), float(-2 * s.log()))
        for i, ((step, _), s) in enumerate(zip(seen, sigmas, strict=True))
    ]
