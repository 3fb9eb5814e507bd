"""What a run will cost, found by beginning it in a temporary folder: some steps, saves and pictures, timed; nothing is kept.

    time = start + steps × step + saves × save + pictures × picture
    disk = states kept × state + saves × profiles + pictures × picture + log

A step's time is the median over whole cycles of the phases. The peak of memory is this process's own: it has done all that
training will do. Before the probe takes a full step, two small ones say what a micro-batch will need: what cannot fit is
refused while there is still room to say so.
"""

from __future__ import annotations

import gc
import math
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from gencli import device as hardware
from gencli.bundle import Run
from gencli.core import world
from gencli.data._base import Data
from gencli.errors import GencliError
from gencli.files import as_size
from gencli.training import checkpoint, journal, memory, posthoc, track
from gencli.training.session import LOGGED, Session

WARM = 2  # cycles that are slower than the rest: kernels are chosen, memory is asked for
SECONDS = 8.0  # of probing, about
CYCLES = (3, 100)  # at least, at most
SMALLER = "make the network smaller, or the data (--image-size)"
SMALL = (2, 4)  # items of the micro-batches that tell how memory grows

ON_CPU = {  # attention kernels that torch's own table leaves out
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *rest, **more: sdpa_flop_count(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, q, k, v, *rest, **more: sdpa_backward_flop_count(grad, q, k, v)
    ),
}

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Memory:
    """Bytes: what is held throughout, what one micro-batch adds, and the measured peak."""

    weights: int
    gradients: int
    optimiser: int
    averages: int
    activations: int
    data: int
    peak: int | None  # of this process, all told
    peak_gpu: int | None
    left: int | None  # before the probe


@dataclass(frozen=True)
class Disk:
    """Bytes."""

    state: int
    states: int  # how many are kept
    profiles: int  # what each save leaves for `convert --ema`
    picture: int
    log: int
    total: int
    while_saving: int  # one more state, until the oldest is removed
    free: int


@dataclass(frozen=True)
class Time:
    """Seconds, and how often."""

    start: float
    step: float
    save: float
    saves: int
    picture: float
    pictures: int
    total: float


@dataclass(frozen=True)
class Plan:
    """All of it."""

    parameters: int
    training_only: int
    steps: int  # still to take
    batch: int
    micro: int
    device: str
    precision: str
    compiled: bool
    memory: Memory
    disk: Disk
    time: Time


def plan(
    recipe: Mapping[str, Any],
    data: Data,
    root: Path,
    codec_run: Run | None = None,
    done: int = 0,
    progress: Progress = lambda what, now, total: None,
    sources: Mapping[str, Run] | None = None,
    begun: Path | None = None,
) -> Plan:
    """Plan the run of a resolved recipe.

    Args:
        recipe: resolved tables.
        data: the data set, opened.
        root: where the run's folder would be made.
        codec_run: a saved run whose latents are the data.
        done: steps that were taken already, by a run to be resumed.
        progress: told what is being measured, how much of it, of how much.
        sources: saved runs that make conditions of the data.
        begun: the folder of a saved run whose weights it begins with.
    """
    if world().size > 1:
        raise GencliError("--plan measures one process", "leave the launcher out; each process needs that much memory")
    began = time.perf_counter() - time.process_time()  # until now the process was busy with imports
    track.check(recipe["train"]["track"])
    untracked = {**recipe, "train": {**recipe["train"], "track": "none"}}
    with tempfile.TemporaryDirectory(prefix="gencli-plan-") as folder:
        session = Session(untracked, data, Path(folder), codec_run=codec_run, sources=sources, begun=begun)
        return _measured(session, root, began, done, progress)


def work(recipe: Mapping[str, Any], data: Data, codec_run: Run | None = None) -> tuple[float, float]:
    """The floating-point operations of a step of training, forward and backward, and the seconds that it takes here.

    Counted are the multiplications and additions of matrix products, convolutions and attention, by torch's own formulas.

    Args:
        recipe: resolved tables.
        data: opened.
        codec_run: a saved run whose latents are the data.
    """
    untracked = {**recipe, "train": {**recipe["train"], "track": "none", "compile": False}}
    with tempfile.TemporaryDirectory(prefix="gencli-work-") as folder:
        probe = _Probe(Session(untracked, data, Path(folder), codec_run=codec_run))
        probe.cycle()
        with FlopCounterMode(display=False, custom_mapping=ON_CPU) as counter:
            probe.cycle()
        return counter.get_total_flops() / probe.steps, probe.cycle() / probe.steps


def _measured(session: Session, root: Path, began: float, done: int, progress: Progress) -> Plan:
    train, needs = session.train, memory.held(session.run.model, session.train)
    activations, left = _activations(session)
    probe = _Probe(session)
    for _ in range(WARM):
        probe.cycle()
    warm = time.perf_counter() - began
    once = [probe.save(), probe.draw()]
    count = max(CYCLES[0], min(CYCLES[1], math.ceil(SECONDS / probe.cycle())))
    cycles = []
    for number in range(count):
        progress("probing", number, count)
        cycles.append(probe.cycle())
    progress("probing", count, count)
    step = statistics.median(cycles) / probe.steps
    save, picture = probe.save(), probe.draw()

    first_times = [warm - WARM * probe.steps * step, once[0] - save, once[1] - picture]
    start = sum(max(0.0, seconds) for seconds in first_times)
    ahead = max(0, train.steps - done)
    saves = _occasions(done, train.steps, train.save_every)
    pictures = _occasions(done, train.steps, train.sample_every or train.save_every)
    total = start + ahead * step + saves * save + pictures * picture
    gpu = torch.cuda.max_memory_reserved() if probe.device.type == "cuda" else None
    data = _in_memory(session, probe.trainer.items)
    return Plan(
        parameters=needs.parameters,
        training_only=needs.training_only,
        steps=ahead,
        batch=train.batch_size,
        micro=probe.trainer.micro,
        device=probe.device.type,
        precision=session.config["precision"],
        compiled=train.compile,
        memory=Memory(
            needs.weights, needs.gradients, needs.optimiser, needs.averages, activations, data, peak(), gpu, left
        ),
        disk=_disk(session, root, saves, pictures, probe.line),
        time=Time(start, step, save, saves, picture, pictures, total),
    )


class _Probe:
    """A run that is begun, and the seconds that its parts take."""

    def __init__(self, session: Session) -> None:
        self.session, self.trainer = session, session.trainer(session.train)
        self.log: list[str] = []
        self.line = 0.0  # bytes of one in the log
        for _ in session.begin(self.trainer):
            pass
        self.steps = math.lcm(*(phase.every for phase in self.trainer.phases))
        self.device: torch.device = self.trainer.accelerator.device

    def cycle(self) -> float:
        """As many steps as it takes for every phase to have its turn."""
        began = time.perf_counter()
        for _ in range(self.steps):
            self.trainer.step %= self.session.train.steps  # a short run is gone through more than once
            step = self.trainer.take_step()
            self.log.append(journal.line(step, {key: float(value) for key, value in step.losses.items()}, began))
        return time.perf_counter() - began

    def save(self) -> float:
        """All that a save does."""
        began = time.perf_counter()
        self.line = sum(len(line) + 1 for line in self.log) / len(self.log)
        self.session.save(self.trainer, self.log)
        self.log = []
        return time.perf_counter() - began

    def draw(self) -> float:
        """The picture and the curve."""
        began = time.perf_counter()
        for _ in self.session.draw(self.trainer, self.trainer.step):
            pass
        return time.perf_counter() - began


def _occasions(done: int, last: int, every: int) -> int:
    """How many of the steps after `done` are multiples of `every`, or the last."""
    return last // every - done // every + (last % every > 0) if last > done else 0


# -------------------------------------------------------------------------------------------------------------- memory


def _activations(session: Session) -> tuple[int, int | None]:
    """What a micro-batch keeps for the backward pass, from two small ones; and what memory the device has left for it.

    Raises:
        GencliError: it has not that much left.
    """
    train = session.train
    micro = train.batch_size // train.grad_accum
    sizes = sorted({min(size, micro) for size in SMALL})
    left = memory.available(hardware.default())
    room = math.inf if left is None else left - _not_there_yet(session)
    try:
        found = [_kept(session, size, room) for size in sizes]
    except memory.TooMuch:
        assert left is not None
        raise GencliError(
            f"a micro-batch of {sizes[-1]} needs more than {as_size(round(max(room, 0)))} for the backward pass, which is what "
            f"gradients, optimiser and averages leave of the {as_size(left)} of memory",
            SMALLER,
        ) from None
    each = (found[-1] - found[0]) / max(1, sizes[-1] - sizes[0])

    def at(size: int) -> int:
        return round(found[-1] + each * (size - sizes[-1]))

    if left is not None and at(micro) > left:
        splits = [n for n in range(1, train.batch_size + 1) if train.batch_size % n == 0]
        enough = next((n for n in splits if at(train.batch_size // n) < left / 2), None)
        raise GencliError(
            f"a micro-batch of {micro} needs {as_size(at(micro))} for the backward pass; "
            f"{as_size(left)} of memory are left",
            f"give --grad-accum {enough} (the same result in less memory), or a smaller --batch-size"
            if enough
            else SMALLER,
        )
    return at(micro), left


def _not_there_yet(session: Session) -> int:
    """What the first step adds to what is there: gradients, the optimiser's moments, the averages."""
    needs = memory.held(session.run.model, session.train)
    return needs.total - needs.weights


def _kept(session: Session, size: int, room: float = math.inf) -> int:
    """What one step with `size` items keeps at most, where that is not more than `room`."""
    model = session.run.model
    trained = {parameter: parameter.requires_grad for parameter in model.parameters()}
    small = session.trainer(replace(session.train, batch_size=size, grad_accum=1, compile=False))
    small.prepare()
    with memory.kept_for_backward(model, room) as found:
        small.take_step()
    del small
    gc.collect()  # a trainer and its wrapped model refer to each other
    for parameter, wanted in trained.items():
        parameter.requires_grad_(wanted).grad = None
    return found.most


def peak() -> int | None:
    """The most bytes that this process has had so far, or None where the system does not tell."""
    if sys.platform == "win32":
        return None
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _in_memory(session: Session, items: Any) -> int:
    """Bytes of the data that are not mapped from a file."""
    parts = [session.data.split(name) for name in ("train", "test")]
    arrays = [part.x for part in parts if not isinstance(part.x, np.memmap)]
    tensors = [*(value for part in parts for value in part.cond.values()), *getattr(items, "tensors", {}).values()]
    return sum(each.nbytes for each in [*arrays, *tensors])


# ---------------------------------------------------------------------------------------------------------------- disk


def _disk(session: Session, root: Path, saves: int, pictures: int, line: float) -> Disk:
    folder, train = session.folder, session.train
    state = _size(checkpoint.states(folder)[0].rglob("*"))
    profiles = _size(posthoc.snapshots(folder)[-1:])
    drawn = sorted((folder / "samples").glob("*.png"))
    picture = _size(drawn[-1:])
    once = [folder / "config.json", folder / "loss.png", *(folder / "train").glob("*.json")]
    log = round(line * (train.steps // max(1, train.steps // LOGGED)))
    kept = min(train.keep, saves)
    total = (
        kept * state + saves * profiles + pictures * picture + log + _size(once)
    )  # model.safetensors is a link into the newest state
    place = next(parent for parent in [root.absolute(), *root.absolute().parents] if parent.exists())
    extra = state if saves > kept else 0
    return Disk(state, kept, profiles, picture, log, total, total + extra, shutil.disk_usage(place).free)


def _size(paths: Iterable[Path]) -> int:
    return sum(path.stat().st_size for path in paths if path.is_file())
