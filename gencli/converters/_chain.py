"""The chain of `ddpm` and a run's sampler as diffusers' schedulers, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gencli import registry
from gencli.bundle import Run
from gencli.config import parse
from gencli.converters._unet2d import demand
from gencli.core import Spec
from gencli.errors import GencliError
from gencli.models.diffusion._chain import levels_of
from gencli.models.diffusion.ddpm import Ddpm

PREDICTIONS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
SAMPLERS = {"ddim": "DDIMScheduler", "ancestral": "DDPMScheduler"}
SPACINGS = ("trailing", "leading")  # the others visit other levels there
FIXED_SCHEDULER: dict[str, tuple[Any, Any]] = {
    "thresholding": (False, False),
    "set_alpha_to_one": (True, True),
    "steps_offset": (0, 0),
    "clip_sample_range": (1.0, 1.0),
}


def scheduler_of(run: Run, model: Ddpm) -> tuple[dict[str, Any], list[str]]:
    """The arguments of the scheduler that does what the run's sampler does, and what else the user must tell it."""
    config, notes = model.config, []
    own = registry.public_name(run.config["recipe"].get("sample", {}).get("name", "ddim"))
    sampler = run.sampler(own if own in SAMPLERS else "ddim")
    settings = sampler.config
    if settings.spacing not in SPACINGS:
        raise GencliError(
            f"run {run.name} is sampled with spacing {settings.spacing}, whose levels diffusers does not visit",
            f"write {' or '.join(SPACINGS)} for it into the recipe's [sample] table, in the run's config.json",
        )
    if settings.clip:
        notes.append(
            "in diffusers give use_clipped_model_output=True to DDIM: gencli's direction follows the clipped estimate"
        )
    if getattr(settings, "eta", 0):
        notes.append(f"in diffusers give eta={settings.eta:g} to DDIM: a scheduler does not store it")
    made = {
        "_class_name": SAMPLERS[sampler.public_name()],
        **{key: ours for key, (ours, _) in FIXED_SCHEDULER.items()},
        "num_train_timesteps": config.timesteps,
        **_betas(model),
        "prediction_type": PREDICTIONS[config.prediction],
        "variance_type": f"fixed_{config.variance}",
        "clip_sample": settings.clip,
        "timestep_spacing": settings.spacing,
        "rescale_betas_zero_snr": False,
    }
    if made["_class_name"] == "DDPMScheduler":
        del made["set_alpha_to_one"]
        made["variance_type"] = f"fixed_{settings.variance}"
    return made, notes


def _betas(model: Ddpm) -> dict[str, Any]:
    config, scale = model.config, 1000 / model.config.timesteps
    plain = not config.shift and not config.zero_terminal
    if plain and config.schedule == "linear" and config.timesteps > 20:
        return {"beta_schedule": "linear", "beta_start": 1e-4 * scale, "beta_end": 0.02 * scale, "trained_betas": None}
    if plain and config.schedule == "cosine":
        return {"beta_schedule": "squaredcos_cap_v2", "trained_betas": None}
    kept = 1 / (1 + model.levels.flip(0) ** 2)  # ᾱ_1 … ᾱ_T
    ratio = kept / torch.cat([kept.new_ones(1), kept[:-1]])
    return {"beta_schedule": "linear", "trained_betas": (1 - ratio).tolist()}


def sample_from(scheduler: Mapping[str, Any]) -> dict[str, Any]:
    """The sampler that does what the scheduler does."""
    demand(scheduler, FIXED_SCHEDULER, "scheduler")
    names = {theirs: ours for ours, theirs in SAMPLERS.items()}
    name, spacing = scheduler.get("_class_name", "DDIMScheduler"), scheduler.get("timestep_spacing", "leading")
    if name not in names or spacing not in SPACINGS:
        raise GencliError(
            f"scheduler: {name} with timestep_spacing {spacing} has no counterpart", f"one of {', '.join(names)} has"
        )
    made = {"name": names[name], "spacing": spacing, "clip": bool(scheduler.get("clip_sample", True))}
    return made | ({"variance": _variance(scheduler)} if name == "DDPMScheduler" else {})


def _variance(scheduler: Mapping[str, Any]) -> str:
    kind = scheduler.get("variance_type", "fixed_small")
    if kind not in ("fixed_small", "fixed_large"):
        raise GencliError(
            f"scheduler: variance_type {kind} has no counterpart", "gencli has fixed_small and fixed_large"
        )
    return str(kind.removeprefix("fixed_"))


def chain_from(scheduler: Mapping[str, Any], spec: Spec) -> dict[str, Any]:
    """The settings of `ddpm` whose noise levels are the scheduler's."""
    meant = {theirs: ours for ours, theirs in PREDICTIONS.items()}
    prediction = scheduler.get("prediction_type", "epsilon")
    if prediction not in meant:
        raise GencliError(
            f"scheduler: prediction_type {prediction} has no counterpart", f"gencli has {', '.join(meant)}"
        )
    total = int(scheduler.get("num_train_timesteps", 1000))
    base = {"timesteps": total, "prediction": meant[prediction], "variance": _variance(scheduler)}
    wanted = (1 / _kept(scheduler, total) - 1).sqrt().flip(0)
    for schedule in ("linear", "cosine", "sigmoid"):
        for shift in (False, True):
            for zero in (False, True) if meant[prediction] != "eps" else (False,):
                table = {**base, "schedule": schedule, "shift": shift, "zero_terminal": zero}
                levels = levels_of(parse(Ddpm.Config, table), spec)
                first = 1 if wanted[0].isinf() and zero else 0  # an infinite level is capped
                if ((levels / wanted - 1).abs()[first:] < 1e-3).all():
                    return table
    kind = "trained_betas" if scheduler.get("trained_betas") else scheduler.get("beta_schedule", "linear")
    ends = f"from {scheduler.get('beta_start', 1e-4)} to {scheduler.get('beta_end', 0.02)}"
    raise GencliError(
        f"scheduler: beta_schedule {kind} {ends} over {total} steps has no counterpart",
        "gencli has DDPM's linear, cosine and sigmoid, shifted or not, ending without signal or not",
    )


def _kept(scheduler: Mapping[str, Any], total: int) -> Tensor:
    """ᾱ_1 … ᾱ_T in float64."""
    start, end = float(scheduler.get("beta_start", 1e-4)), float(scheduler.get("beta_end", 0.02))
    kind = scheduler.get("beta_schedule", "linear")
    if scheduler.get("trained_betas"):
        betas = torch.tensor(scheduler["trained_betas"], dtype=torch.float64)
    elif kind == "linear":
        betas = torch.linspace(start, end, total, dtype=torch.float64)
    elif kind == "scaled_linear":
        betas = torch.linspace(start**0.5, end**0.5, total, dtype=torch.float64).square()
    elif kind == "squaredcos_cap_v2":
        curve = ((torch.linspace(0, 1, total + 1, dtype=torch.float64) + 0.008) / 1.008 * (torch.pi / 2)).cos().square()
        betas = (1 - curve[1:] / curve[:-1]).clamp(max=0.999)
    else:
        raise GencliError(
            f"scheduler: beta_schedule {kind} has no counterpart", "gencli reads linear and squaredcos_cap_v2"
        )
    kept = (1 - betas).cumprod(0)
    if not scheduler.get("rescale_betas_zero_snr"):
        return kept
    root = kept.sqrt()
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])).square()
