"""A budget, and what it buys: the steps of training that fit into so many seconds on this machine, by a short probe,

    steps = ⌊(budget − start − saves × save − picture) / step⌋

with the times of `gencli train … --plan`; or into so many floating-point operations, which are the same on every machine:
budget over those of a step. The steps are found once and kept; whoever trains later takes as many.
"""

from __future__ import annotations

import math
import re
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gencli import files
from gencli import recipe as recipes
from gencli.bundle import Run
from gencli.config import merge
from gencli.data import table_of
from gencli.data._base import Data
from gencli.errors import GencliError
from gencli.training import plan
from gencli.training.plan import Plan, Progress
from gencli.training.session import resolve

LEAST = 10  # steps below which nothing is learned
SAVES = 10  # of a run within a budget: what a kill may cost
UNITS = {"s": 1, "m": 60, "h": 3600}
PREFIXES = {"": 1.0, "g": 1e9, "t": 1e12, "p": 1e15, "e": 1e18}
TAIL = 0.3  # of a run's log in which the loss is looked at


@dataclass(frozen=True)
class Budget:
    """What each model may spend on training.

    Args:
        amount: of seconds, or of floating-point operations.
        unit: of the amount.
    """

    amount: float
    unit: Literal["s", "FLOP"] = "s"

    def __str__(self) -> str:
        return f"{self.amount:g} {self.unit}"

    def __truediv__(self, parts: int) -> Budget:
        return replace(self, amount=self.amount / parts)


def budget_of(text: str) -> Budget:
    """`90s`, `10m`, `1.5h`, `1e15FLOP` or `20 TFLOP`.

    Raises:
        GencliError: it is none of these, or nothing.
    """
    counted = re.fullmatch(r"(\d+(?:\.\d+)?(?:e\+?\d+)?)\s*([gtpe]?)flops?", text.strip().lower())
    if counted is not None and float(counted[1]) > 0:
        return Budget(float(counted[1]) * PREFIXES[counted[2]], "FLOP")
    return Budget(seconds_of(text))


def seconds_of(text: str) -> float:
    """`90s`, `10m`, `1.5h` in seconds.

    Raises:
        GencliError: it is none of these, or nothing.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh])", text.strip().lower())
    if found is None or float(found[1]) <= 0:
        raise GencliError(f"--budget is '{text}'", "give a time for each model, such as 600s, 10m or 1h")
    return float(found[1]) * UNITS[found[2]]


def tables_for(name: str, data: str, over: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The resolved tables of `gencli train NAME --data DATA`, with other settings on top.

    Args:
        name: a model, a recipe, or the path of one.
        data: as on the command line.
        over: tables.
    """
    wanted = table_of(data)
    registered = wanted["name"] if "path" not in wanted else None
    base = recipes.load(name, data=registered)
    base["data"] = merge(base.get("data", {"name": "digits"}), wanted)
    return resolve(merge(base, over or {}))


def probe(
    recipe: Mapping[str, Any], data: Data, codec_run: Run | None, progress: Progress, before: float = 0.0
) -> Plan:
    """The plan of a run. Its start does not hold what this process did before: of several, each is planned as if alone.

    Args:
        recipe: resolved tables.
        data: opened.
        codec_run: whose latents are the data.
        progress: told what is being measured.
        before: seconds of this process that a command of its own would need as well, to import what is imported here.
    """
    busy = time.process_time()
    with tempfile.TemporaryDirectory(prefix="gencli-budget-") as place:
        made = plan.plan(recipe, data, Path(place), codec_run, progress=progress)
    start = max(0.0, made.time.start - busy) + before
    return replace(made, time=replace(made.time, start=start, total=made.time.total - made.time.start + start))


def steps_within(found: Plan, seconds: float, what: str, stages: int = 1) -> int:
    """How many steps of a planned run fit into the seconds, with `SAVES` saves and a picture at the end.

    Args:
        found: the plan.
        seconds: of this stage.
        what: its name, for the error.
        stages: between which the budget is divided.

    Raises:
        GencliError: fewer than `LEAST`.
    """
    rest = found.time.start + SAVES * found.time.save + found.time.picture
    steps = math.floor((seconds - rest) / found.time.step)
    if steps < LEAST:
        least = math.ceil(stages * (rest + LEAST * found.time.step) * 1.05)
        raise TooSmall(
            f"a budget of {seconds * stages:g}s holds {max(0, steps)} steps of {what}, {LEAST} are the least",
            f"give --budget {least}s or more",
        )
    return steps


def steps_of_work(flop: float, budget: float, what: str, stages: int = 1) -> int:
    """How many steps of so many floating-point operations a budget of them holds.

    Args:
        flop: of a step.
        budget: of this stage.
        what: its name, for the error.
        stages: between which the budget is divided.

    Raises:
        GencliError: fewer than `LEAST`.
    """
    steps = math.floor(budget / flop)
    if steps < LEAST:
        raise TooSmall(
            f"a budget of {budget * stages:g} FLOP holds {steps} steps of {what}, {LEAST} are the least",
            f"give --budget {math.ceil(stages * LEAST * flop):.3g}FLOP or more",
        )
    return steps


class TooSmall(GencliError):
    """A budget that holds nothing."""


def with_steps(recipe: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """A resolved recipe of so many steps: schedules follow, the warm-up is at most a tenth, one picture is drawn at the end."""
    warmup = min(recipe["train"]["warmup"], steps // 10)
    every = {"save_every": math.ceil(steps / SAVES), "sample_every": steps}
    return merge(recipe, {"train": {"steps": steps, "warmup": warmup, **every}})


def time_of(found: Plan, steps: int, save_every: int, sample_every: int = 0) -> float:
    """The seconds of a planned run with another number of steps, by the plan's own sum."""
    saves, pictures = (-(-steps // every) for every in (save_every, sample_every or save_every))
    times = found.time
    return times.start + steps * times.step + saves * times.save + pictures * times.picture


def most_steps(found: Plan, seconds: float, save_every: int, sample_every: int = 0) -> int:
    """The most steps of a planned run whose time by the plan's own sum is within the seconds."""
    low, high = 0, max(0, math.ceil(seconds / found.time.step))
    while low < high:
        middle = (low + high + 1) // 2
        fits = time_of(found, middle, save_every, sample_every) <= seconds
        low, high = (middle, high) if fits else (low, middle - 1)
    return low


# ------------------------------------------------------------------------------------------------------------- what it cost


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; none where it has no log."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return []
    with files.understood(path, "take the damaged line out"):
        return [dict(files.parsed(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def spent_by(rows: list[dict[str, Any]]) -> float | None:
    """Seconds of training by a log, over all sessions of a run that was resumed; None without a log."""
    clock = [float(row["seconds"]) for row in rows if "seconds" in row]
    if not clock:
        return None
    return clock[-1] + sum(now for now, following in pairwise(clock) if following < now)


def still_falling(rows: list[dict[str, Any]]) -> float | None:
    """How much of itself the loss still loses in a tenth of the run, by a line through the last three tenths of its log.

    0 where it does not fall by two standard errors of the line's slope. None for a run that says too little, and for models
    of several phases: the loss of a critic falls and rises with that of its generator.
    """
    seen = [(row["step"], row["loss"]) for row in rows if isinstance(row.get("loss"), (int, float))]
    tail = [pair for pair in seen if pair[0] > (1 - TAIL) * seen[-1][0]]
    if len(tail) < LEAST:
        return None
    steps, losses = np.array(tail, dtype=np.float64).T
    tenths = (steps - steps.mean()) / (seen[-1][0] / 10)
    slope = float(tenths @ losses / (tenths @ tenths))
    left = losses - losses.mean() - slope * tenths
    error = math.sqrt(float(left @ left) / (len(losses) - 2) / float(tenths @ tenths))
    level = abs(float(losses.mean())) or 1.0
    return max(0.0, -slope / level) if -slope > 2 * error else 0.0
