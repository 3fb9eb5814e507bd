"""Metrics with receipts: one pass of features shared by all, every number with what made it."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from gencli import __version__, files, registry
from gencli.bundle import Run
from gencli.codecs.learned import Learned
from gencli.config import Part, as_dict
from gencli.core import Likelihood, Rng, broadcast, world
from gencli.data._base import Data
from gencli.errors import GencliError
from gencli.evaluation.cache import Kept, part_of
from gencli.evaluation.conditions import conditions_for
from gencli.evaluation.generate import Request, generate, receipt, resolved
from gencli.evaluation.receipts import halves, of_making, versions
from gencli.evaluation.references import reference_codecs
from gencli.evaluation.sources import Samples, words_of
from gencli.guidance._base import Guidance
from gencli.metrics._base import FeatureSet, ModelMetric, SampleMetric, Value
from gencli.metrics._features import Extractor, reference

DEFAULT_N = 2048
NO_FILE = "none, never in a file"


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
        whole: the reference is the whole split however many samples there are.
    """

    n: int
    split: str = "test"
    seed: int = 0
    sampler: Any = None
    guidance: float | Guidance | None = None
    batch: int = 64
    whole: bool = False


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


def foresee(metrics: Sequence[tuple[str, SampleMetric]], real: FeatureSet, n: int) -> None:
    """Refuse what would be refused once n samples are there, before they are drawn."""
    for _, metric in metrics:
        metric.foresee(real, n)


def request_of(run: Run, plan: Plan) -> Request:
    """The samples that a plan asks of a run: class-balanced, always in exact micro-batches."""
    seeds = range(plan.seed, plan.seed + plan.n)
    cond = conditions_for(run, seeds, None, plan.guidance)
    return resolved(run, Request(seeds, cond, plan.sampler, plan.guidance, min(plan.batch, plan.n), exact=True))


def features_of_run(
    run: Run, by: Extractor, request: Request, watch: Callable[[int], None] | None = None
) -> tuple[FeatureSet, dict[str, Any]]:
    """Features of a request's samples, drawn where they are not kept, and the receipt; `watch` is told the steps done.

    For the first process; the others `assist`.
    """
    kept = Kept(run, by, request)
    missing = broadcast(kept.missing())
    todo = iter(missing)
    for progress in generate(run, part_of(request, missing), world()) if missing else ():
        if watch is not None:
            watch(progress.step)
        if progress.chunk is not None:
            kept.write(next(todo), by.rows(progress.chunk))
    return by.together(kept.read()), drawn(run, by, request)


def drawn(run: Run, by: Extractor, request: Request) -> dict[str, Any]:
    """The receipt of samples that were drawn and never in a file, and of what turned them into features."""
    return {**receipt(run, request), **asked(request), **of_making(run), "file_codec": NO_FILE, **by.facts()}


def outstanding(run: Run, by: Extractor, request: Request) -> Request | None:
    """The part of a request that is not kept and would have to be drawn; None where there is none."""
    missing = Kept(run, by, request).missing()
    return part_of(request, missing) if missing else None


def asked(request: Request) -> dict[str, str]:
    """For receipts: which samples."""
    return {
        "seeds": f"{request.seeds[0]}-{request.seeds[-1]}",
        "labels": "balanced" if "label" in request.cond else "none",
    }


def assist(run: Run, request: Request) -> None:
    """Draw this process's part of what the first one misses."""
    nothing: list[int] = []
    missing = broadcast(nothing)
    for _ in generate(run, part_of(request, missing), world()) if missing else ():
        pass


def features_of_files(samples: Samples, by: Extractor) -> tuple[FeatureSet, dict[str, Any]]:
    """Features of samples in files, and what is known of them."""
    made = samples.features(by)
    return made, {**samples.receipt(), **by.facts()}


def check_number(by: Extractor, n: int, reference: int, force: bool = False) -> None:
    """Refuse so few items that the extractor's distances mean nothing.

    Raises:
        GencliError: fewer samples or items of the reference than the extractor's least.
    """
    few, what = min((n, "samples"), (reference, "items of the reference"))
    if few < by.least and not force:
        raise GencliError(
            f"{few:,} {what} are too few for {by.name}: below {by.least:,} its distances mean little",
            "raise -n, or add --force",
        )


def few(n: int, real: FeatureSet) -> str:
    """A line where the numbers are small for the features; else empty."""
    least, count = 4 * real.size, min(n, len(real))
    if count >= least:
        return ""
    return f"{count:,} items for {real.size:,} features; at least {least:,}, 4 × the features, are asked for"


def floor(metrics: Sequence[tuple[str, SampleMetric]], real: FeatureSet, receipt: dict[str, Any]) -> list[Result]:
    """The metrics between two halves of the reference: what samples as good as the data would have, at that N."""
    first, second = halves(real)
    made = compare(metrics, first, second, {**receipt, "samples": "the other half of the reference"})
    note = "two halves of the reference"
    return [
        Result(
            replace(r.value, name=f"{r.value.name} floor", note="; ".join(filter(None, (note, r.value.note)))),
            r.receipt,
        )
        for r in made
    ]


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
    total = len(data.split(plan.split))
    real = reference(data, plan.split, by, None if plan.whole or total <= DEFAULT_N else max(plan.n, DEFAULT_N))
    facts = {
        "data": data.name,
        "data_hash": data.hash,
        "split": plan.split,
        "reference_items": len(real),
        "features": by.name,
        "features_fingerprint": by.fingerprint,
    }
    return real, facts


def codec_of(data: Data, plan: Plan) -> dict[str, str]:
    """For receipts: the formats of the reference's files."""
    return {"reference_codec": words_of(reference_codecs(data, plan.split))}


def measure(metrics: Sequence[tuple[str, ModelMetric]], run: Run, data: Data, plan: Plan) -> list[Result]:
    """Every metric of models on the held-out items."""
    items = data.split(plan.split)
    of_pixels = not any(isinstance(codec, Learned) for codec in run.codecs)  # bits of codes are of the codes
    if data.resampled and of_pixels and any(metric.needs is Likelihood for _, metric in metrics):
        raise GencliError(
            f"bits/dim of enlarged {data.name} would measure the enlarging, not the model",
            "train on their native size: --image-size 8",
        )
    facts = {
        "run": run.name,
        "weights": run.weights_hash(),
        "averaged": run.averaged,
        "step": run.step,
        "versions": versions(),
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
        with files.appended(path) as handle:
            handle.write("".join(lines))
    return path
