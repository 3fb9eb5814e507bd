"""DreamBooth: Fine Tuning Text-to-Image Diffusion Models for Subject-Driven Generation (Ruiz et al., 2022). arXiv:2208.12242

Few images teach a model what they show, and to forget the rest. So the rest is taught too, by what the model made before:

    loss = E ℓ(x, c) + λ E ℓ(x_pr, c_pr),   x_pr drawn from the run that was begun from, given c_pr

with ℓ the model's own loss, and as many x_pr as x in every step. λ is `preserve`, the paper's is 1; 0 leaves them out, and the
run is a plain fine-tune, bit for bit. `preserve_items` samples are drawn once, by the run's own sampler without guidance, since
they stand for the model's own law, and kept in `train/preserved.safetensors`.

Ours: for every model that can be sampled. The paper's c is "a [V] dog" and c_pr "a dog"; here c is the class that the images
lie in, and c_pr the classes that they show none of, in turn (all, if they show some of each).

Raises GencliError for a run that began from nothing, or whose weights do not all fit; for images among the conditions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from gencli import files
from gencli.bundle import Run, read_tensors
from gencli.core import Batch, main_first, world
from gencli.data._base import Split
from gencli.errors import GencliError
from gencli.training import memory
from gencli.training.settings import TrainConfig

FILE = "preserved.safetensors"


@dataclass(frozen=True)
class Preserved:
    """What is to be remembered.

    Args:
        raw: samples and their conditions, in data space.
        weight: λ.
    """

    raw: Batch
    weight: float

    def __len__(self) -> int:
        return len(self.raw["x"])

    def batch(self, indices: torch.Tensor) -> Batch:
        """Some of them."""
        return {key: value[indices] for key, value in self.raw.items()}


def ready(run: Run, items: Split, folder: Path, train: TrainConfig, fresh: bool) -> Preserved | None:
    """What a run of these settings remembers; None for nothing.

    Args:
        run: that is trained; at its first start it has the weights that it began with.
        items: that it is trained on.
        folder: the run's.
        train: its settings.
        fresh: whether this is the first start, when samples are drawn.
    """
    if not train.preserve:
        return None
    path = folder / "train" / FILE
    with main_first():
        if fresh and world().main:
            files.atomic_write(path, save(_drawn(run, items, train.preserve_items)))
    tensors, _ = read_tensors(path)
    return Preserved(tensors, train.preserve)


def _drawn(run: Run, items: Split, count: int) -> Batch:
    from gencli.evaluation.conditions import conditions_for
    from gencli.evaluation.generate import Request, samples

    seeds, label = range(count), run.model.spec.cond.get("label")
    shown = set(items.cond["label"].tolist()) if label else set()
    cond = conditions_for(
        run, seeds, [each for each in range(label.vocab or 0) if each not in shown] if label else None
    )
    run.model.eval()
    made = samples(run, Request(seeds, cond, guidance=1.0))
    run.model.train()
    return {**cond, "x": made}


def check(run: Run, began: Mapping[str, Any] | None, train: TrainConfig) -> None:
    """Refuse to preserve where there is nothing to be preserved, from what is known of the run that this one begins with."""
    if not train.preserve:
        return
    if began is None:
        raise GencliError("--preserve keeps what another run makes, and this one begins from nothing", "add --from RUN")
    recipe = {key: value for key, value in run.config["recipe"].items() if key != "adapters"}
    codec = next((codec.run for codec in run.codecs if hasattr(codec, "run")), None)
    plain = memory.blueprint(recipe, run.data_spec, codec).state_dict()
    odd = [*(key for key in began["anew"] if key in plain), *began["left"]]
    if odd:
        raise GencliError(
            f"--preserve: what run {began['run']} makes is not what this one begins with, as {odd[0]} does not fit",
            "train with its settings, on data of its classes, or leave --preserve out",
        )
    if images := [key for key, field in run.data_spec.cond.items() if field.kind == "image"]:
        raise GencliError(f"--preserve: samples need the condition {images[0]}, an image", "leave --preserve out")
