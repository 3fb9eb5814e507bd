"""Samples in any number: each image owns its seed and its condition, so it is the same whatever the batch it is made in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gencli.bundle import Run
from gencli.core import Batch, Rng
from gencli.errors import GencliError

MICRO = 64
MOST_FRAMES = 60


@dataclass(frozen=True)
class Request:
    """What to make.

    Args:
        seeds: one an image.
        cond: conditions, one row a seed.
        sampler: None = the run's own.
        guidance: None = the recipe's.
        micro: images computed together.
        exact: pad every micro-batch to `micro` rows, so that an image is bit-equal whatever the number asked for.
        frames: keep pictures of the way there.
    """

    seeds: Sequence[int]
    cond: Batch = field(default_factory=dict)
    sampler: Any = None
    guidance: float | None = None
    micro: int = MICRO
    exact: bool = False
    frames: bool = False


@dataclass(frozen=True)
class Progress:
    """Where generation stands: `chunk` holds finished samples, else this is one network step on the way."""

    done: int
    total: int
    chunk: Tensor | None = None
    frames: list[Tensor] = field(default_factory=list)
    info: list[dict[str, Tensor]] = field(default_factory=list)


def labels_for(run: Run, seeds: Sequence[int], classes: Sequence[int] | None) -> Batch:
    """Class labels as a function of the seed: `classes` (all by default) in turn, so that a run of seeds is balanced."""
    if "label" not in run.model.spec.cond:  # the data may have labels that the model does not take
        if classes:
            raise GencliError(
                f"run {run.name} was trained without classes", "leave --class out, or train on labelled data"
            )
        return {}
    count = run.model.spec.cond["label"].vocab or 0
    for chosen in classes or []:
        if not 0 <= chosen < count:
            raise GencliError(
                f"class {chosen} is out of range: run {run.name} has classes 0 to {count - 1}", "see `gencli info`"
            )
    pool = list(classes or range(count))
    return {"label": torch.tensor([pool[seed % len(pool)] for seed in seeds])}


def generate(run: Run, request: Request) -> Iterator[Progress]:
    """Make the samples, micro-batch by micro-batch; yields after every network step and every finished chunk."""
    sampler = request.sampler or run.sampler()
    own = run.guidance if request.cond else 1.0  # without a condition there is nothing to guide by
    guidance = own if request.guidance is None else request.guidance
    total = len(request.seeds)
    for start in range(0, total, request.micro):
        seeds = list(request.seeds[start : start + request.micro])
        cond = {key: value[start : start + len(seeds)] for key, value in request.cond.items()}
        real = len(seeds)
        if request.exact and real < request.micro:
            pad = request.micro - real
            seeds += [seeds[-1]] * pad
            cond = {key: torch.cat([value, value[-1:].expand(pad, *value.shape[1:])]) for key, value in cond.items()}
        kept: list[Tensor] = []
        info: list[dict[str, Tensor]] = []
        rng = Rng.rows(seeds, run.model.device)
        for frame, picture in run.frames(rng, cond, sampler, guidance, every=request.frames):
            last = frame.index == frame.total - 1
            if picture is not None and (last or _shown(frame.index, frame.total)):
                kept.append(picture[:real])
                info.append({key: value[:real] if value.ndim else value for key, value in frame.info.items()})
            yield Progress(start, total)
        assert kept, "a sampler must end in a frame"
        yield Progress(start + real, total, kept[-1], kept if request.frames else [], info if request.frames else [])


def _shown(index: int, total: int) -> bool:
    return total <= MOST_FRAMES or index * MOST_FRAMES // total != (index - 1) * MOST_FRAMES // total


def samples(run: Run, request: Request) -> Tensor:
    """All samples of a request at once, in data space."""
    return torch.cat([step.chunk for step in generate(run, request) if step.chunk is not None])
