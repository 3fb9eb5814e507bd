"""The small picture that training shows of itself: samples where the model has a sampler, reconstructions where not."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gencli.bundle import DEFAULT_SAMPLERS, Run
from gencli.core import Autoencoder, Items, Rng
from gencli.evaluation.generate import Request, labels_for, samples

COUNT = 16
STEPS = 20


def preview(run: Run, items: Items, seeds: Sequence[int] = range(COUNT)) -> Tensor | None:
    """`(16, …)` in data space; for an autoencoder eight items, each followed by its reconstruction; None if neither."""
    if any(isinstance(run.model, interface) for interface, _ in DEFAULT_SAMPLERS):
        name = run.config["recipe"].get("sample", {}).get("name") or run.default_sampler()
        sampler = run.sampler(name, quick(name))
        return samples(run, Request(seeds, labels_for(run, seeds, None), sampler))
    if isinstance(run.model, Autoencoder):
        return reconstructions(run, items, COUNT // 2)
    return None


def quick(name: str) -> dict[str, int]:
    """Fewer steps, where a sampler has them."""
    from gencli import registry

    fields = getattr(registry.load("samplers", name).Config, "__dataclass_fields__", {})
    return {"steps": STEPS} if "steps" in fields else {}


@torch.no_grad()
def reconstructions(run: Run, items: Items, count: int) -> Tensor:
    """Items and their reconstructions, interleaved."""
    raw = items.batch(torch.arange(min(count, len(items))))
    encoded = run.encode(raw, Rng.batch("preview", total=len(raw["x"])))
    back = run.decode({"x": run.model.decode(run.model.encode(encoded["x"]))})["x"]  # type: ignore[operator]
    return torch.stack([raw["x"], back.cpu()], dim=1).flatten(0, 1)
