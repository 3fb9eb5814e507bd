"""Metrics with receipts: one pass of features shared by all, every number with what made it."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gencli import __version__, files, registry
from gencli.bundle import Run
from gencli.config import Part, as_dict
from gencli.core import Likelihood, Rng, world
from gencli.data._base import Data
from gencli.errors import GencliError
from gencli.evaluation.generate import Request, generate, labels_for, receipt, resolved
from gencli.guidance._base import Guidance
from gencli.metrics._base import FeatureSet, ModelMetric, SampleMetric, Value
from gencli.metrics._features import Extractor, reference

DEFAULT_N = 2048


@dataclass(frozen=True)
class Plan:
    """What an evaluation will do, known before it starts.

    Args:
        n: samples.
        split: of the data, the reference.
        seed: of the first sample.
        sampler: a sampler component, None = the run's own.
        guidance: a scale or all that guides; None = the recipe's scale.
        batch: samples computed together.
    """

    n: int
    split: str = "test"
    seed: int = 0
    sampler: Any = None
    guidance: float | Guidance | None = None
    batch: int = 64


@dataclass
class Result:
    """One value and its receipt."""

    value: Value
    receipt: dict[str, Any] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """As stored in evaluations.jsonl and printed by --json."""
        facts = asdict(self.value)
        return {"schema": 1, "metric": facts.pop("name"), **facts, "receipt": self.receipt}


def default_n(data: Data, split: str) -> int:
    """min(reference, 2,048)."""
    return min(len(data.split(split)), DEFAULT_N)


def split_metrics(parts: Sequence[Part]) -> tuple[list[tuple[str, SampleMetric]], list[tuple[str, ModelMetric]]]:
    """Metrics of samples, and metrics of models."""
    built = [(part.name, part.build()) for part in parts]
    of_samples = [(name, metric) for name, metric in built if isinstance(metric, SampleMetric)]
    of_models = [(name, metric) for name, metric in built if isinstance(metric, ModelMetric)]
    return of_samples, of_models


def check_kinds(metrics: Sequence[tuple[str, SampleMetric]], data: Data) -> None:
    """Refuse a metric of samples that says nothing about data of this kind, before anything is sampled."""
    for name, metric in metrics:
        if data.kind not in metric.kinds:
            fitting = [
                other
                for other in registry.entries("metrics")
                if data.kind in getattr(registry.attempt("metrics", other), "kinds", ())
            ]
            raise GencliError(
                f"metric '{name}' measures {' or '.join(metric.kinds)}, data set '{data.name}' is of kind '{data.kind}'",
                f"use {', '.join(fitting)}",
            )


def request_of(run: Run, plan: Plan) -> Request:
    """The samples that a plan asks of a run: class-balanced, always in exact micro-batches."""
    seeds = range(plan.seed, plan.seed + plan.n)
    cond = labels_for(run, seeds, None, plan.guidance)
    return resolved(run, Request(seeds, cond, plan.sampler, plan.guidance, min(plan.batch, plan.n), exact=True))


def features_of_run(
    run: Run, by: Extractor, request: Request, watch: Callable[[int], None] | None = None
) -> tuple[FeatureSet, dict[str, Any]]:
    """Features of freshly drawn samples, and the receipt of the drawing; `watch` is told the steps that are done.

    For the first process; the others `assist`.
    """

    def chunks() -> Iterator[Tensor]:
        for progress in generate(run, request, world()):
            if watch is not None:
                watch(progress.step)
            if progress.chunk is not None:
                yield progress.chunk

    made = by.extract(chunks())
    return made, {**receipt(run, request), **asked(request)}


def asked(request: Request) -> dict[str, str]:
    """For receipts: which samples."""
    return {"seeds": f"{request.seeds[0]}-{request.seeds[-1]}", "labels": "balanced" if request.cond else "none"}


def assist(run: Run, request: Request) -> None:
    """Draw this process's part of the samples for the first one."""
    for _ in generate(run, request, world()):
        pass


def features_of_folder(folder: Path, by: Extractor) -> tuple[FeatureSet, dict[str, Any]]:
    """Features of the images in a folder of samples, each at its own size (all the same)."""
    from PIL import Image

    paths = sorted(p for p in folder.glob("*.png") if p.stem not in ("grid", "entropy", "trajectory"))
    if not paths:
        raise GencliError(f"no PNG images in {folder}", "make some: gencli sample ddim --out DIR")

    def load(path: Path) -> Tensor:
        with Image.open(path) as image:
            array = np.asarray(image.convert("L" if image.mode in ("L", "1") else "RGB"))
        return torch.from_numpy(array.copy()).reshape(*array.shape[:2], -1).permute(2, 0, 1)

    shapes = {tuple(load(path).shape) for path in paths}
    if len(shapes) > 1:
        raise GencliError(f"the images in {folder} have {len(shapes)} sizes", "give samples of one size")
    made = by.extract(torch.stack([load(p) for p in paths[i : i + 256]]) for i in range(0, len(paths), 256))
    return made, {"samples": str(folder), "images": len(paths)}


def compare(
    metrics: Sequence[tuple[str, SampleMetric]], real: FeatureSet, fake: FeatureSet, receipt: dict[str, Any]
) -> list[Result]:
    """Every metric of samples on one pair of feature sets."""
    made: list[Result] = []
    for name, metric in metrics:
        values = metric(real, fake)
        settings = {"settings": as_dict(metric.config)}
        made += [
            Result(v, {"metric": name, **settings, **receipt})
            for v in (values if isinstance(values, list) else [values])
        ]
    return made


def reference_of(data: Data, plan: Plan, by: Extractor) -> tuple[FeatureSet, dict[str, Any]]:
    """The reference's features (cached) and its receipt."""
    real = reference(data, plan.split, by, None if len(data.split(plan.split)) <= DEFAULT_N else max(plan.n, DEFAULT_N))
    facts = {
        "data": data.name,
        "data_hash": data.hash,
        "split": plan.split,
        "reference_items": len(real),
        "features": by.name,
        "features_fingerprint": by.fingerprint,
    }
    return real, facts


def measure(metrics: Sequence[tuple[str, ModelMetric]], run: Run, data: Data, plan: Plan) -> list[Result]:
    """Every metric of models on the held-out items."""
    items = data.split(plan.split)
    if data.resampled and any(metric.needs is Likelihood for _, metric in metrics):
        raise GencliError(
            f"bits/dim of enlarged {data.name} would measure the enlarging, not the model",
            "train on their native size: --image-size 8",
        )
    facts = {
        "run": run.name,
        "weights": run.weights_hash(),
        "step": run.step,
        "data": data.name,
        "data_hash": data.hash,
    }
    made: list[Result] = []
    for name, metric in metrics:
        with torch.no_grad():
            values = metric(
                run, items, Rng.batch("evaluate", plan.seed, name, total=1), min(plan.n, len(items)), plan.batch
            )
        receipt = {"metric": name, "settings": as_dict(metric.config), **facts, "split": plan.split, "seed": plan.seed}
        made += [Result(v, receipt) for v in (values if isinstance(values, list) else [values])]
    return made


def store(results: Sequence[Result], run: Run | None, writable: bool) -> Path | None:
    """Append the results to the run (or beside its samples when the run is read-only)."""
    if run is None or run.path is None:
        return None
    path = run.path / "evaluations.jsonl" if writable else Path("samples") / run.name / "evaluations.jsonl"
    now = datetime.datetime.now(datetime.UTC).isoformat()
    lines = [json.dumps({**result.row(), "gencli": __version__, "at": now}, default=str) + "\n" for result in results]
    with files.explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as handle:
            handle.write("".join(lines))
    return path
