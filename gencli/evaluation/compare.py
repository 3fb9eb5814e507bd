"""Samplers on one run, side by side: what each costs and what it makes from the same seeds, measured against the same data.

A `Bench` is a run with its reference; it plans cells (a sampler with a number of steps, or the reason why not) and measures
them. A `Ledger` is the folder where they are kept, so that none is computed twice.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from gencli import __version__, files, registry
from gencli.bundle import Run
from gencli.config import as_dict
from gencli.core import Denoiser, Rng
from gencli.data._base import Data
from gencli.errors import GencliError
from gencli.evaluation import evaluate
from gencli.evaluation.generate import Request, cost, cost_of_one, generate, origin, spent
from gencli.guidance._base import Guidance
from gencli.metrics._base import SampleMetric
from gencli.metrics._features import Extractor
from gencli.samplers._levels import is_noise

MOST = 256  # samples of a cell by default
DOES_NOT_APPLY = "does not apply"
OFF_DISTRIBUTION = "off-distribution start"
FAILED = "failed"


@dataclass(frozen=True)
class Cell:
    """One sampler with one number of steps on one run.

    Args:
        run: its name.
        sampler: its name.
        steps: as set; None for a sampler whose work they do not change.
        settings: all of the sampler's.
        reason: why there are no numbers: `does not apply`, `off-distribution start`, or `failed`; empty where there are.
        why: the reason in words.
        evaluations: of networks, for one image; an estimate until it is measured.
        seconds: for all images, without measuring them.
        values: the metric's, with their receipts.
    """

    run: str
    sampler: str
    steps: int | None
    settings: Mapping[str, Any]
    reason: str = ""
    why: str = ""
    evaluations: float = 0.0
    seconds: float = 0.0
    values: tuple[Mapping[str, Any], ...] = ()

    @property
    def label(self) -> str:
        """A name for files."""
        return self.sampler if self.steps is None else f"{self.sampler}-{self.steps}"

    @property
    def value(self) -> float | None:
        """The first number measured."""
        return self.values[0]["value"] if self.values else None


@dataclass(frozen=True)
class Planned:
    """A cell before it is measured; `sampler` is None where there is a reason against it."""

    cell: Cell
    sampler: Any = None


class Bench:
    """A run, the data that its samples are compared with, and what all of its cells have in common.

    Args:
        run: to draw from.
        data: whose test split is the reference.
        metrics: of samples, with their names.
        by: what turns samples into features.
        n: samples of every cell; None = as many as the reference has, 256 at most.
        seed: of the first.
        guidance: None = the recipe's scale.
        batch: samples computed together.
    """

    def __init__(
        self,
        run: Run,
        data: Data,
        metrics: Sequence[tuple[str, SampleMetric]],
        by: Extractor,
        n: int | None = None,
        seed: int = 0,
        guidance: float | Guidance | None = None,
        batch: int = 64,
    ) -> None:
        evaluate.check_kinds(metrics, data)
        self.run, self.data, self.metrics, self.by = run, data, metrics, by
        self.plan = evaluate.Plan(n or min(len(data.split("test")), MOST), "test", seed, None, guidance, batch)
        self.real, self._reference = evaluate.reference_of(data, self.plan, by)
        self._warm = False

    def facts(self) -> dict[str, Any]:
        """What decides the numbers of all cells, as a receipt."""
        request = self.request(self.run.sampler())
        metrics = [{"name": name, **as_dict(metric.config)} for name, metric in self.metrics]
        drawing = {**origin(self.run, request), "n": self.plan.n, **evaluate.asked(request)}
        return {**drawing, **self._reference, "metrics": metrics}

    def request(self, sampler: Any) -> Request:
        """The samples of a cell."""
        return evaluate.request_of(self.run, replace(self.plan, sampler=sampler))

    # ------------------------------------------------------------------------------------------------------------- planning

    def planned(
        self, samplers: Sequence[str], steps: Sequence[int], settings: Mapping[str, Mapping[str, Any]] | None = None
    ) -> list[Planned]:
        """Every sampler with every number of steps; one cell for a sampler that does not apply, or needs no steps.

        Args:
            samplers: their names.
            steps: the numbers.
            settings: of a sampler by its name, over the run's own.
        """
        made: list[Planned] = []
        for name in samplers:
            given = (settings or {}).get(name, {})
            cells = [self.cell(name, count, given) for count in (steps if self._stepped(name, given) else [None])]
            reasons = {planned.cell.reason for planned in cells}
            if len(reasons) == 1 and "" not in reasons:
                cells = [replace(cells[0], cell=replace(cells[0].cell, steps=None))]
            made += cells
        return made

    def cell(self, name: str, steps: int | None, settings: Mapping[str, Any] | None = None) -> Planned:
        """One cell, or why there is none."""
        key = registry.entry("samplers", name).name
        empty = Cell(self.run.name, key, steps, dict(settings or {}))
        try:
            sampler = self.run.sampler(key, {**(settings or {}), **({} if steps is None else {"steps": steps})})
            request = self.request(sampler)
            _, calls = cost_of_one(self.run, request)
        except GencliError as error:
            return Planned(replace(empty, reason=DOES_NOT_APPLY, why=error.message))
        cell = replace(empty, settings=as_dict(sampler.config), evaluations=calls)
        why = self._starts_off(sampler)
        if why:
            return Planned(replace(cell, reason=OFF_DISTRIBUTION, why=why))
        return Planned(cell, sampler)

    def most_steps(self, name: str, evaluations: int, settings: Mapping[str, Any] | None = None) -> int | None:
        """The most steps whose cell takes at most so many evaluations of the denoiser; None if a single one takes more."""
        low, high = 0, evaluations
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self._takes(name, middle, settings) <= evaluations else (low, middle - 1)
        return low or None

    def _takes(self, name: str, steps: int, settings: Mapping[str, Any] | None = None) -> float:
        try:
            sampler = self.run.sampler(name, {**(settings or {}), "steps": steps})
            return int(sampler.evaluations(self.run.model, self.run.spec))
        except GencliError:
            return float("inf")

    def _stepped(self, name: str, settings: Mapping[str, Any]) -> bool:
        """Whether the number of steps changes what a sampler does; one that chooses its own has it for show."""
        fields = registry.load("samplers", name).Config.__dataclass_fields__
        if "steps" not in fields:
            return False
        few, many = (self._takes(name, count, settings) for count in (2, 3))
        return few != many or few == float("inf")

    def _starts_off(self, sampler: Any) -> str:
        """Why pure noise is no fair start, if it is none; a run's own sampler is never asked."""
        own = self.run.sampler().public_name()
        if sampler.interface is not Denoiser or sampler.chain or sampler.public_name() == own:
            return ""
        levels = sampler.levels(self.run.model)
        if is_noise(SimpleNamespace(levels=levels)):
            return ""
        return f"it starts at σ = {float(levels[0]):.3g}, where the data still show"

    # ------------------------------------------------------------------------------------------------------------ measuring

    def steps_of(self, planned: Planned) -> int:
        """What `measured` counts up to."""
        return 0 if planned.sampler is None else cost(self.run, self.request(planned.sampler))[0]

    def measured(self, planned: Planned, watch: Callable[[int], None] | None = None) -> tuple[Cell, Tensor | None]:
        """The cell with its numbers, and its samples; a sampler that fails says why. `watch` is told the steps done."""
        assert planned.sampler is not None, "the plan says why it is not measured"
        request = self.request(planned.sampler)
        self._warm_up(request)
        try:
            items, seconds, taken = _timed(self.run, request, watch)
            fake = self.by.extract(items.split(request.micro))
        except GencliError as error:
            return replace(planned.cell, reason=FAILED, why=error.message), None
        facts = {**evaluate.drawn(self.run, self.by, request), **self._reference}
        facts |= evaluate.codec_of(self.data, self.plan)
        results = evaluate.compare(self.metrics, self.real, fake, facts)
        calls = planned.cell.evaluations
        if taken:
            calls = taken["mean"] * calls / planned.sampler.evaluations(self.run.model, self.run.spec)
        done = replace(
            planned.cell,
            evaluations=round(calls, 1),
            seconds=round(seconds, 3),
            values=tuple(result.row() for result in results),
        )
        return done, items

    def _warm_up(self, request: Request) -> None:
        """A first call is slower than the rest, and would be counted against the first sampler."""
        if not self._warm:
            seeds, cond = request.seeds[: request.micro], {k: v[: request.micro] for k, v in request.cond.items()}
            rng = Rng.rows(seeds, self.run.model.device)
            next(iter(self.run.frames(rng, cond, request.sampler, request.guidance or 1.0)))
            self._warm = True


def _timed(
    run: Run, request: Request, watch: Callable[[int], None] | None
) -> tuple[Tensor, float, Mapping[str, float]]:
    """All samples, the seconds they took, and what the sampler says of its evaluations."""
    began, away, done = time.perf_counter(), 0.0, []
    for progress in generate(run, request):
        done += [progress] if progress.chunk is not None else []
        if watch is not None:
            left = time.perf_counter()
            watch(progress.step)
            away += time.perf_counter() - left
    seconds = time.perf_counter() - began - away
    return torch.cat([progress.chunk for progress in done if progress.chunk is not None]), seconds, spent(done)


class Ledger:
    """A folder with `compare.json` and a picture of every cell, written after each.

    Args:
        folder: made if it is not there.
        facts: of the bench.

    Raises:
        GencliError: what is in the folder was compared otherwise, with the first fact that differs, or is something else.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        self.folder, self.facts = folder, json.loads(json.dumps(facts))
        self.cells: list[Cell] = []
        path = folder / "compare.json"
        if path.is_file():
            self._read(path)
        elif folder.is_dir() and any(folder.iterdir()):
            raise GencliError(f"{folder} is not empty and holds no comparison", "give another --out")
        elif folder.exists() and not folder.is_dir():
            raise GencliError(f"{folder} is a file, not a folder", "give another --out")

    def _read(self, path: Path) -> None:
        try:
            document = files.read_json(path)
            self.cells = [Cell(**{**cell, "values": tuple(cell["values"])}) for cell in document.pop("cells")]
        except (ValueError, KeyError, TypeError) as error:
            raise GencliError(f"{path} is damaged: {error}", "give another --out") from None
        for key, value in self.facts.items():
            if document.get(key) != value:
                raise GencliError(
                    f"{path.parent} compares with {key} {document.get(key)}, this asks for {value}",
                    "give another --out, or the same settings",
                )

    def find(self, cell: Cell) -> Cell | None:
        """The same cell, if it is measured already."""
        alike = (cell.run, cell.sampler, cell.steps, json.loads(json.dumps(cell.settings)))
        return next((c for c in self.cells if (c.run, c.sampler, c.steps, c.settings) == alike and c.values), None)

    def add(self, cell: Cell, picture: Any = None) -> None:
        """Keep a cell, in the place of one of the same name."""
        from gencli.report.kinds._pictures import save_picture

        labels = [known.label for known in self.cells]
        if cell.label in labels:
            self.cells[labels.index(cell.label)] = cell
        else:
            self.cells.append(cell)
        if picture is not None:
            save_picture(self.folder / f"{cell.label}.png", picture)
        document = {"schema": 1, "gencli": __version__, **self.facts, "cells": [asdict(c) for c in self.cells]}
        files.atomic_write(self.folder / "compare.json", (json.dumps(document, indent=1) + "\n").encode())

    def picture(self, cell: Cell) -> Any:
        """The cell's picture; None without."""
        from PIL import Image

        path = self.folder / f"{cell.label}.png"
        if not cell.values or not path.is_file():
            return None
        with Image.open(path, formats=["PNG"]) as image:
            return image.convert("RGB")


def compare(
    bench: Bench, plan: Sequence[Planned], ledger: Ledger, watch: Callable[[Cell, int], None] | None = None
) -> Iterator[Cell]:
    """The cells of a plan in order, measured where the ledger does not have them; `watch` is told a cell and its steps."""
    from gencli.report.kinds import writer

    kind = writer(bench.run.data_spec.x.kind)
    like = bench.data.split("test")
    real = like.batch(torch.arange(min(len(like), MOST)))["x"]
    for planned in plan:
        cell = planned.cell
        known = ledger.find(cell)
        if known is not None:
            yield known
            continue
        items = None
        if planned.sampler is not None:
            tell = None if watch is None else _telling(watch, cell)
            cell, items = bench.measured(planned, tell)
        ledger.add(cell, None if items is None else kind.panel(items, real))
        yield cell


def _telling(watch: Callable[[Cell, int], None], cell: Cell) -> Callable[[int], None]:
    return lambda done: watch(cell, done)


def sheet(ledger: Ledger, title: str = "") -> Any:
    """All measured cells of a ledger as one picture: a row a sampler, a column a number of steps; None without a cell."""
    from gencli.report.kinds._pictures import matrix

    done = [cell for cell in ledger.cells if cell.values]
    rows = list(dict.fromkeys(cell.sampler for cell in done))
    columns: list[int | None] = [*sorted({cell.steps for cell in done if cell.steps is not None})] or [None]
    at = {(cell.sampler, columns[0] if cell.steps is None else cell.steps): cell for cell in done}
    cells = [[_shown(ledger, at.get((row, column))) for column in columns] for row in rows]
    heads = ["" if column is None else f"{column} steps" for column in columns]
    return matrix(cells, rows, heads, title) if done else None


def _shown(ledger: Ledger, cell: Cell | None) -> tuple[Any, str]:
    return (None, "") if cell is None else (ledger.picture(cell), caption(cell))


def caption(cell: Cell) -> str:
    """Two short lines: cost, and the numbers measured."""
    numbers = [f"{value['metric'].split('[')[0]} {value['value']:.3g}" for value in cell.values]
    return f"{cell.evaluations:g} calls · {cell.seconds:.2g} s\n{', '.join(numbers)}"
