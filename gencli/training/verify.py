"""Whether training resumes exactly on this machine: a run of a few steps, killed and resumed, against one left alone.

    whole    steps 1 … 6, saved at 2, 4, 6
    broken   killed before step 4, resumed at 2, killed in the middle of writing the state of step 4, resumed at 2, finished

Each part is a process of its own; what they make is compared file by file: weights, optimiser, averages.
"""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from gencli import crash
from gencli.bundle import Run
from gencli.errors import GencliError
from gencli.training import checkpoint

STEPS, EVERY = 6, 2
KILLS = {"killed before step 4": "step.begun:4", "resumed, killed while writing the state of step 4": "file.half:2"}
NEVER = 10**9
METHOD = "spawn"  # a process that shares nothing, as the next command of a user would be

Say = Callable[[str], None]


@dataclass(frozen=True)
class Start:
    """What a process needs to begin or resume a run; runs are given by their folders."""

    recipe: Mapping[str, Any]
    root: Path
    codec: Path | None = None
    sources: Mapping[str, Path] = field(default_factory=dict)
    begun: Path | None = None


@dataclass(frozen=True)
class Verdict:
    """What came of it.

    Args:
        kills: how often the run was killed.
        resumed: the steps that it was resumed at.
        files: how many files were compared.
        differ: those that are not the same.
    """

    kills: int
    resumed: tuple[int, ...]
    files: int
    differ: tuple[str, ...]


def shortened(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A resolved recipe in a few steps, with saves and without pictures."""
    train = {"steps": STEPS, "save_every": EVERY, "sample_every": NEVER, "keep": 2, "track": "none"}
    return {**recipe, "train": {**recipe["train"], **train}}


def verify(
    recipe: Mapping[str, Any],
    say: Say,
    codec: Run | None = None,
    sources: Mapping[str, Run] | None = None,
    begun: Path | None = None,
) -> Verdict:
    """Train a mini-run twice, once with two kills, in a temporary folder that is removed.

    Raises:
        GencliError: a process ended before it was killed, or with an error, which it has said.
    """
    paths = {key: _path(run) for key, run in (sources or {}).items()}
    with tempfile.TemporaryDirectory(prefix="gencli-verify-") as folder:
        whole, broken = (
            Start(shortened(recipe), Path(folder) / name, _path(codec) if codec else None, paths, begun)
            for name in ("whole", "broken")
        )
        say("left alone")
        _run(whole, None)
        began = []
        for what, fault in KILLS.items():
            say(what)
            began.append(_run(broken, fault))
        say("resumed to the end")
        began.append(_run(broken, None))
        one, other = _digests(whole.root), _digests(broken.root)
        differ = tuple(name for name in sorted({*one, *other}) if one.get(name) != other.get(name))
        return Verdict(len(KILLS), tuple(began[1:]), len(one), differ)


def _path(run: Run) -> Path:
    assert run.path is not None, "a codec or source is a saved run"
    return run.path.absolute()


# ------------------------------------------------------------------------------------------------------------ the processes


def work(start: Start, fault: str | None, told: Connection) -> None:
    """Train to the end in a process of its own, telling the step it began at, each step saved, and what went wrong."""
    try:
        _train(start, fault, told)
    except GencliError as error:
        told.send((error.message, 0))


def _train(start: Start, fault: str | None, told: Connection) -> None:
    from gencli.data import open_table
    from gencli.training.session import Session

    crash.arm(fault)
    found = next(start.root.glob("*/config.json"), None)
    folder = found.parent if found else None
    codec = Run.load(start.codec) if start.codec and folder is None else None
    sources = {key: Run.load(path) for key, path in start.sources.items()}
    data = open_table(start.recipe["data"])
    session = Session(dict(start.recipe), data, start.root, None, codec, folder, sources, start.begun)
    for event in session.events():
        if event.kind in ("start", "saved"):
            told.send((event.kind, event.step))
        if event.kind == "saved" and event.step == STEPS:
            return  # the picture at the end takes long, and is not compared


def _run(start: Start, fault: str | None) -> int:
    """A part of a run in its own process, up to its end or its fault; the step it began at."""
    context: Any = multiprocessing.get_context(METHOD)
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(start, fault, there), daemon=True)
    process.start()
    there.close()  # so that the process's death ends the pipe
    told: list[tuple[str, int]] = []
    with contextlib.suppress(EOFError, OSError):
        while True:
            told.append(here.recv())
    process.join()
    here.close()
    kind, last = told[-1] if told else ("", 0)
    if kind not in ("start", "saved"):
        raise GencliError(
            f"the mini-run failed: {kind or f'code {process.exitcode}'}", "train without --verify-resume", 1
        )
    if (last == STEPS) == (fault is not None):
        raise GencliError(
            f"the mini-run ended at step {last} with code {process.exitcode}, to be {'killed' if fault else 'finished'}",
            "run it again",
            code=1,
        )
    return told[0][1]


def _digests(root: Path) -> dict[str, str]:
    folder = next(root.glob("*/config.json")).parent
    paths = [folder / "model.safetensors", *checkpoint.states(folder)[0].glob("*.safetensors")]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
