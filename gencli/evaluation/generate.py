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

from gencli import crash
from gencli.bundle import Run
from gencli.config import as_dict
from gencli.core import Batch, Denoiser, Field, Rng, gather
from gencli.errors import GencliError
from gencli.evaluation.timesteps import visited
from gencli.guidance._base import Guidance
from gencli.launch import World
from gencli.samplers._base import without_guidance

MICRO = 64
MOST_FRAMES = 60


@dataclass(frozen=True)
class Request:
    """What to make.

    Args:
        seeds: one an image.
        cond: conditions, one row a seed.
        sampler: None = the run's own.
        guidance: a scale or all that guides; None = the recipe's scale.
        micro: images computed together.
        exact: pad every micro-batch to `micro` rows, so that an image is bit-equal whatever the number asked for.
        frames: keep pictures of the way there.
    """

    seeds: Sequence[int]
    cond: Batch = field(default_factory=dict)
    sampler: Any = None
    guidance: float | Guidance | None = None
    micro: int = MICRO
    exact: bool = False
    frames: bool = False


def resolved(run: Run, request: Request) -> Request:
    """The request with the run's own sampler and scale where it names none; without a condition no scale guides.

    Raises:
        GencliError: more than a scale for a sampler that knows no levels of noise, or any for one that it means nothing to.
    """
    sampler = request.sampler or run.sampler()
    own = run.guidance if _taken(run, request.cond) and not sampler.unguided else 1.0
    guidance = Guidance.of(own if request.guidance is None else request.guidance)
    if sampler.interface is not Denoiser or sampler.unguided:
        scale = guidance.only_scale(sampler.public_name())
        if scale != 1.0 and sampler.unguided:
            raise GencliError(
                f"guidance {scale:g} means nothing to sampler {sampler.public_name()}, which {sampler.unguided}",
                "leave --guidance out",
            )
    return dataclasses.replace(request, sampler=sampler, guidance=guidance)


def _guidance(request: Request) -> Guidance:
    assert request.guidance is not None, "the request is not resolved"
    return Guidance.of(request.guidance)


def _taken(run: Run, cond: Batch) -> Batch:
    """The conditions of the model itself that guidance drops; others are for a classifier, for a codec, or stay."""
    known = {key: value for key, value in cond.items() if key in run.model.spec.cond}
    kept = without_guidance(known, run.model.spec.cond)
    return {key: value for key, value in known.items() if key not in kept}


def divided(request: Request, processes: int) -> Request:
    """The request in micro-batches that give every process its part; exact ones keep their size, which decides rounding."""
    part = -(-len(request.seeds) // processes)
    return request if request.exact else dataclasses.replace(request, micro=min(request.micro, part))


def cost(run: Run, request: Request) -> tuple[int, int]:
    """Steps of a resolved request, and network evaluations, of which guidance takes two a step, a classifier one more."""
    batches = -(-len(request.seeds) // request.micro)
    each, calls = cost_of_one(run, request)
    return each * batches, calls * batches


def cost_of_one(run: Run, request: Request) -> tuple[int, int]:
    """The same for one micro-batch, which is what one image takes."""
    each = request.sampler.evaluations(run.model, run.spec)
    _, guidance = _guidance(request).left(run.model)
    taken = _taken(run, request.cond)
    if guidance.interval is None:
        return each, each * guidance.calls(taken)
    return each, guidance.calls_at((call.sigma for call in visited(run, request.sampler)), taken)


def steps_of(run: Run, sampler: Any) -> int:
    """Steps of a sampler with levels of noise; network evaluations of another."""
    levels = getattr(sampler, "levels", None)
    return sampler.evaluations(run.model, run.spec) if levels is None else len(levels(run.model)) - 1


def receipt(run: Run, request: Request) -> dict[str, Any]:
    """What made the samples of a resolved request."""
    return {
        **origin(run, request),
        "sampler": {"name": request.sampler.public_name(), **as_dict(request.sampler.config)},
        "network_evaluations": cost(run, request)[1],
    }


def origin(run: Run, request: Request) -> dict[str, Any]:
    """The part of the receipt that is the same for all samplers."""
    return {
        "run": run.name,
        "weights": run.weights_hash(),
        "averaged": run.averaged,
        "step": run.step,
        **_guidance(request).facts(),
        "exact": request.exact,
        "batch": request.micro,
        "precision": "fp32",
        "device": run.model.device.type,
    }


@dataclass(frozen=True)
class Progress:
    """Where generation stands after `step` of its steps; `chunk` holds samples that were just finished.

    `evaluations` `(N,)` is what each of them took of the denoiser, from samplers that choose their own steps.
    """

    step: int
    chunk: Tensor | None = None
    evaluations: Tensor | None = None
    frames: list[Tensor] = field(default_factory=list)
    info: list[dict[str, Tensor]] = field(default_factory=list)


def class_field(run: Run, guidance: float | Guidance | None = None) -> Field | None:
    """The classes that may be asked for: the model's own, or those of the classifier that guides it; None without."""
    own = run.model.spec.cond.get("label")  # the data may have labels that the model does not take
    return guidance.classes if own is None and isinstance(guidance, Guidance) else own


def labels_for(
    run: Run, seeds: Sequence[int], classes: Sequence[int] | None, guidance: float | Guidance | None = None
) -> Batch:
    """Class labels as a function of the seed: `classes` (all by default) in turn, so that a run of seeds is balanced."""
    field = class_field(run, guidance)
    if field is None:
        if classes:
            raise GencliError(
                f"run {run.name} was trained without classes",
                "leave --class out, train on labelled data, or guide by a --classifier",
            )
        return {}
    count = field.vocab or 0
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
    seeds = list(request.seeds[start : start + request.micro])
    cond = {key: value[start : start + len(seeds)] for key, value in request.cond.items()}
    real = len(seeds)
    if request.exact and real < request.micro:
        pad = request.micro - real
        seeds += [seeds[-1]] * pad
        cond = {key: torch.cat([value, value[-1:].expand(pad, *value.shape[1:])]) for key, value in cond.items()}
    kept: list[Tensor] = []
    spent: Tensor | None = None
    info: list[dict[str, Tensor]] = []
    rng = Rng.rows(seeds, run.model.device)
    for frame, picture in run.frames(rng, cond, request.sampler, _guidance(request), every=request.frames):
        crash.point("grid.frame")
        last = frame.index == frame.total - 1
        if picture is not None and (last or _shown(frame.index, frame.total)):
            kept.append(picture[:real])
            info.append({key: (value[:real] if value.ndim else value).cpu() for key, value in frame.info.items()})
            spent = info[-1].get("evaluations")
        yield Progress(done + steps * (frame.index + 1) // frame.total)
    assert kept, "a sampler must end in a frame"
    frames = (kept, info) if request.frames else ([], [])
    return Progress(done + steps, kept[-1], spent, *frames)


def _shown(index: int, total: int) -> bool:
    return total <= MOST_FRAMES or index * MOST_FRAMES // total != (index - 1) * MOST_FRAMES // total


def spent(done: Sequence[Progress]) -> dict[str, float]:
    """Evaluations of the denoiser that an image took, for the receipt of a sampler that chooses its own steps."""
    each = [progress.evaluations for progress in done if progress.evaluations is not None]
    if not each:
        return {}
    every = torch.cat(each).double()
    return {"mean": round(float(every.mean()), 1), "least": int(every.min()), "most": int(every.max())}


def samples(run: Run, request: Request) -> Tensor:
    """All samples of a request at once, in data space."""
    return torch.cat([step.chunk for step in generate(run, request) if step.chunk is not None])
