"""The autoencoder whose latents a model of another program is of."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gencli import runs
from gencli.bundle import Run
from gencli.converters._official import images
from gencli.core import Spec
from gencli.errors import GencliError
from gencli.models.vae.kl_autoencoder import KLAutoencoder


@dataclass(frozen=True)
class Scaling:
    """Latents of mean 0 and a deviation: a number for each channel, or one for all of them."""

    mean: tuple[float, ...]
    deviation: tuple[float, ...]


Latents = tuple[Run, dict[str, Tensor], Spec]


def latents_of(name: str, shape: tuple[int, ...], classes: int, scaling: Scaling, where: Path) -> Latents:
    """The run called `name`, its tensors that become others, and its data with so many classes.

    Args:
        name: of a run; empty = none was given.
        shape: of the latents that the model is of.
        classes: that it is told.
        scaling: what latents were freed of.
        where: the model's file.
    """
    what = "×".join(map(str, shape))
    if not name:
        raise GencliError(
            f"{where} holds a model of {what} latents and not the autoencoder that they are of",
            "make a run of the autoencoder (gencli convert FILE --from ldm) and give it with --codec RUN",
        )
    run = Run.load(runs.named(name, as_codec=True).path)
    if not isinstance(run.model, KLAutoencoder) or run.model.latent.shape != shape:
        latent = getattr(run.model, "latent", None)
        has = f"has latents of {'×'.join(map(str, latent.shape))}" if latent is not None else "has none"
        raise GencliError(
            f"{where} is of {what} latents, run {run.name} {has}",
            "give the run of a kl-autoencoder of that size: convert it again with another --image-size",
        )
    inner = _scaled(run.model, scaling)
    run.model.load_state_dict(inner, strict=False)
    label = images(1, classes=classes).cond
    return run, inner, dataclasses.replace(run.data_spec, cond=label)


def _scaled(model: KLAutoencoder, scaling: Scaling) -> dict[str, Tensor]:
    """The tensors of an autoencoder whose means are freed of a mean and a deviation."""
    state = model.state_dict()
    if not scaling.mean:
        return {"spread.deviation": torch.full_like(state["spread.deviation"], scaling.deviation[0])}
    last = f"encoder.body.{len(model.encoder.body) - 1}"
    mean, deviation = (torch.tensor(values) for values in (scaling.mean, scaling.deviation))
    shift = torch.cat([mean, torch.zeros_like(mean)])
    bias = (state[f"{last}.bias"] - shift) / torch.cat([deviation, torch.ones_like(deviation)])
    bias[len(mean) :] -= 2 * deviation.log()
    weight = state[f"{last}.weight"].clone()
    weight[: len(mean)] /= deviation[:, None, None, None]
    into = state["decoder.body.0.weight"]
    return {
        "spread.deviation": torch.ones_like(state["spread.deviation"]),
        f"{last}.weight": weight,
        f"{last}.bias": bias,
        "decoder.body.0.weight": into * deviation[:, None, None],
        "decoder.body.0.bias": state["decoder.body.0.bias"] + (into.flatten(1) * mean).sum(1),
    }
