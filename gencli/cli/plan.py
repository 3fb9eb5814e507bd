"""What `gencli train … --plan` prints: a table for people, tab-separated for a pipe, one document with --json."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gencli.cli import console
from gencli.files import as_size

if TYPE_CHECKING:
    from gencli.training.plan import Plan

COMPILING = 600.0  # compiling takes minutes: a run must be longer than this to earn them back


def show(
    recipe: dict[str, Any],
    data: Any,
    root: Path,
    codec_run: Any,
    done: int,
    sources: Any = None,
    begun: Path | None = None,
) -> None:
    """Probe, then print; nothing is trained."""
    from gencli.training.plan import plan

    console.say(f"probing {recipe['recipe']} on {data.name}: nothing is kept")
    with console.hook() as data.progress:
        made = plan(recipe, data, root, codec_run, done, data.progress, sources, begun)
    for note in data.notes:
        console.say(note)
    console.document(plan=dataclasses.asdict(made))
    console.table(rows(made), ["part", "what", "value"])
    console.say(about_compiling(made))
    console.following("gencli " + shlex.join(["train", *(arg for arg in console.state.args if arg != "--plan")]))


def rows(plan: Plan) -> list[tuple[str, str, str]]:
    """The plan in words; what the system does not tell is left out."""
    memory, disk, time = plan.memory, plan.disk, plan.time
    training_only = f", {plan.training_only:,} of them for training only" if plan.training_only else ""
    found: list[tuple[str, str, str | None]] = [
        ("model", "parameters", f"{plan.parameters:,}{training_only}"),
        ("memory", "weights", as_size(memory.weights)),
        ("memory", "gradients", as_size(memory.gradients)),
        ("memory", "optimiser", as_size(memory.optimiser)),
        ("memory", "averages", as_size(memory.averages)),
        ("memory", f"kept for the backward pass of {plan.micro} items", as_size(memory.activations)),
        ("memory", "data", as_size(memory.data)),
        ("memory", "peak of the process, all told", _size(memory.peak)),
        ("memory", "peak of the GPU", _size(memory.peak_gpu)),
        ("memory", f"left on this {plan.device}", _size(memory.left)),
        ("disk", "one saved state", as_size(disk.state)),
        ("disk", f"averages kept at a save × {time.saves:,}", as_size(disk.profiles) if disk.profiles else None),
        ("disk", f"the run with {disk.states} of them", as_size(disk.total)),
        ("disk", "the same while saving", as_size(disk.while_saving)),
        ("disk", "free", as_size(disk.free)),
        ("time", "start", _seconds(time.start)),
        ("time", f"step of {plan.batch} items × {plan.steps:,}", f"{_seconds(time.step)}, {plan.precision}"),
        ("time", f"save × {time.saves:,}", _seconds(time.save)),
        ("time", f"picture × {time.pictures:,}", _seconds(time.picture)),
        ("time", "in all", console.clock(time.total)),
    ]
    return [(part, what, value) for part, what, value in found if value is not None]


def about_compiling(plan: Plan) -> str:
    """Whether --compile would pay, as far as it can be known without compiling."""
    if plan.compiled:
        return "compiled: the start includes the compiler's time; compare with a plan without --compile"
    if plan.time.total < COMPILING:
        return "--compile would not pay: compiling takes minutes, as long as the run"
    return "--compile may pay; it takes minutes at the start: add it to --plan to measure it"


def _size(count: int | None) -> str | None:
    return None if count is None else as_size(count)


def _seconds(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
