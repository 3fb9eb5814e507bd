"""Samples in any number: each image owns its seed and its condition, so it is the same whatever the batch it is made in.

Several processes take micro-batches in turn; after each round the first process has them all, in order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gencli.bundle import Run
from gencli.config import as_dict
from gencli.core import Batch, Rng, gather
from gencli.errors import GencliError
from gencli.launch import World

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


def resolved(run: Run, request: Request) -> Request:
    """The request with the run's own sampler and guidance where it names none; without a condition nothing guides."""
    own = run.guidance if request.cond else 1.0
    guidance = own if request.guidance is None else request.guidance
    return dataclasses.replace(request, sampler=request.sampler or run.sampler(), guidance=guidance)


def divided(request: Request, processes: int) -> Request:
    """The request in micro-batches that give every process its part; exact ones keep their size, which decides rounding."""
    part = -(-len(request.seeds) // processes)
    return request if request.exact else dataclasses.replace(request, micro=min(request.micro, part))


def cost(run: Run, request: Request) -> tuple[int, int]:
    """Steps of a resolved request, and network evaluations, of which guidance takes two a step."""
    steps = request.sampler.evaluations(run.model, run.spec) * -(-len(request.seeds) // request.micro)
    return steps, steps * (2 if request.cond and request.guidance not in (0.0, 1.0) else 1)


def receipt(run: Run, request: Request) -> dict[str, Any]:
    """What made the samples of a resolved request."""
    return {
        "run": run.name,
        "weights": run.weights_hash(),
        "averaged": run.averaged,
        "step": run.step,
        "sampler": {"name": request.sampler.public_name(), **as_dict(request.sampler.config)},
        "guidance": request.guidance,
        "exact": request.exact,
        "batch": request.micro,
        "precision": "fp32",
        "device": run.model.device.type,
        "network_evaluations": cost(run, request)[1],
    }


@dataclass(frozen=True)
class Progress:
    """Where generation stands after `step` of its steps; `chunk` holds samples that were just finished."""

    step: int
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


def generate(run: Run, request: Request, here: World = World()) -> Iterator[Progress]:
    """Make the samples, micro-batch by micro-batch; yields after every frame and every finished chunk.

    Args:
        run: what to draw from.
        request: the same on every process.
        here: this process among those that work on the request; the first alone gets chunks, those of all.
    """
    request = resolved(run, request)
    each = request.sampler.evaluations(run.model, run.spec)
    starts = range(0, len(request.seeds), request.micro)
    for first in range(0, len(starts), here.size):
        working = min(here.size, len(starts) - first)
        mine: Progress | None = None
        if here.rank < working:
            mine = yield from _micro_batch(run, request, starts[first + here.rank], first * each, working * each)
        for made in gather(mine) if here.size > 1 else [mine]:
            if made is not None:
                yield made


def _micro_batch(run: Run, request: Request, start: int, done: int, steps: int) -> Generator[Progress, None, Progress]:
    """The samples from seed number `start` on; while they are made, `steps` more steps than `done` are made everywhere."""
    assert request.guidance is not None  # resolved
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
    for frame, picture in run.frames(rng, cond, request.sampler, request.guidance, every=request.frames):
        last = frame.index == frame.total - 1
        if picture is not None and (last or _shown(frame.index, frame.total)):
            kept.append(picture[:real])
            info.append({key: (value[:real] if value.ndim else value).cpu() for key, value in frame.info.items()})
        yield Progress(done + steps * (frame.index + 1) // frame.total)
    assert kept, "a sampler must end in a frame"
    frames = (kept, info) if request.frames else ([], [])
    return Progress(done + steps, kept[-1], *frames)


def _shown(index: int, total: int) -> bool:
    return total <= MOST_FRAMES or index * MOST_FRAMES // total != (index - 1) * MOST_FRAMES // total


def samples(run: Run, request: Request) -> Tensor:
    """All samples of a request at once, in data space."""
    return torch.cat([step.chunk for step in generate(run, request) if step.chunk is not None])
