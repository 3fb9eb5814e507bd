"""The small picture that training shows of itself: samples where the model has a sampler, else what it makes of data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gencli.bundle import DEFAULT_SAMPLERS, Run
from gencli.core import Autoencoder, Classifier, Items, Model, Rng
from gencli.evaluation.conditions import conditions_for, encoded, pictures, raw_pictures
from gencli.evaluation.generate import Request, labels_for, samples

COUNT = 16
STEPS = 20


def preview(run: Run, items: Items, seeds: Sequence[int] = range(COUNT)) -> Tensor | None:
    """`(16, …)` in data space; where images are painted from images eight of those, each followed by what was painted;
    for an autoencoder eight items, each followed by its reconstruction; for a classifier items in the order of the classes
    it takes them for; None if neither."""
    if any(isinstance(run.model, interface) for interface, _ in DEFAULT_SAMPLERS):
        name = run.config["recipe"].get("sample", {}).get("name") or run.default_sampler()
        sampler = run.sampler(name)
        if not 0 < getattr(sampler.config, "steps", 1) <= STEPS:
            sampler = run.sampler(name, quick(run.model, name))
        if pictures(run):
            return painted(run, items, seeds[: COUNT // 2], sampler)
        return samples(run, Request(seeds, conditions_for(run, seeds), sampler))
    if isinstance(run.model, Autoencoder):
        return reconstructions(run, items, COUNT // 2)
    if isinstance(run.model, Classifier):
        return by_class(run, items, COUNT)
    return None


def quick(model: Model, name: str) -> dict[str, int]:
    """Fewer steps, where a sampler has them and the model has levels enough."""
    from gencli import registry

    fields = getattr(registry.load("samplers", name).Config, "__dataclass_fields__", {})
    table = getattr(model, "levels", None)
    return {"steps": STEPS} if "steps" in fields and (table is None or len(table) >= STEPS) else {}


def painted(run: Run, items: Items, seeds: Sequence[int], sampler: Any) -> Tensor:
    """Images to paint from and what is made of them, interleaved."""
    raw = raw_pictures(run, seeds, items)
    made = samples(run, Request(seeds, {**labels_for(run, seeds, None), **encoded(run, raw)}, sampler))
    return beside(next(iter(raw.values())), made)


def beside(given: Tensor, made: Tensor) -> Tensor:
    """`(N, C, H, W)` and as many or a multiple of them, interleaved, in colours if either has any.

    Those given that are smaller are shown by larger pixels.
    """
    channels = max(given.shape[1], made.shape[1])
    if given.shape[2:] != made.shape[2:]:
        given = F.interpolate(given.float(), size=made.shape[2:], mode="nearest").to(given.dtype)
    rows = made.expand(-1, channels, -1, -1).unflatten(0, (len(given), -1))
    return torch.cat([given.expand(-1, channels, -1, -1)[:, None], rows], 1).flatten(0, 1)


@torch.no_grad()
def reconstructions(run: Run, items: Items, count: int) -> Tensor:
    """Items and their reconstructions, interleaved."""
    raw = items.batch(torch.arange(min(count, len(items))))
    encoded = run.encode(raw, Rng.batch("preview", total=len(raw["x"])))
    back = run.decode({"x": run.model.decode(run.model.encode(encoded["x"]))})["x"]  # type: ignore[operator]
    return torch.stack([raw["x"], back.cpu()], dim=1).flatten(0, 1)


@torch.no_grad()
def by_class(run: Run, items: Items, count: int) -> Tensor:
    """Items in the order of the classes that the model takes them for."""
    raw = items.batch(torch.arange(min(count, len(items))))
    encoded = run.encode(raw, Rng.batch("preview", total=len(raw["x"])))
    logits = run.model.class_logits(encoded["x"])  # type: ignore[operator]
    return raw["x"][logits.argmax(1).cpu().argsort(stable=True)]
