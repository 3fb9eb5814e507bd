"""Metrics of single items: what they are given, and samples beside the training items that are nearest to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gencli.bundle import Run
from gencli.config import Part, as_dict
from gencli.core import Field
from gencli.data._base import Data, Split
from gencli.errors import GencliError
from gencli.evaluation import evaluate
from gencli.evaluation.evaluate import Result
from gencli.evaluation.generate import Request, class_field
from gencli.metrics._base import Evidence, ItemMetric, Seen
from gencli.metrics._features import BATCH, Extractor, in_batches, reference, reference_part

if TYPE_CHECKING:
    from PIL.Image import Image


class Raw(Extractor):
    """The items as they are, so that samples are kept like their features and drawn once."""

    name, fingerprint, note = "items", "items-v1", ""

    def features(self, images: Tensor) -> Tensor:
        return images.flatten(1)


def metrics_of(parts: Sequence[Part]) -> list[tuple[str, ItemMetric]]:
    """The metrics of items among those that were asked for."""
    built = [(part.name, part.build()) for part in parts if issubclass(part.load(), ItemMetric)]
    return [(name, metric) for name, metric in built if isinstance(metric, ItemMetric)]


def fits(metrics: Sequence[tuple[str, ItemMetric]], model: type[Any]) -> bool:
    """Whether runs of a model have what the metrics ask for, but for samples."""

    def has(ability: type[Any]) -> bool:
        return all(hasattr(model, key) for key, v in vars(ability).items() if callable(v) and not key.startswith("_"))

    return all(not metric.needs or any(has(ability) for ability in metric.needs) for _, metric in metrics)


def draws(metrics: Sequence[tuple[str, ItemMetric]]) -> bool:
    """Whether any of the metrics looks at samples."""
    return any(metric.draws for _, metric in metrics)


def measure(
    metrics: Sequence[tuple[str, ItemMetric]],
    run: Run,
    data: Data,
    by: Extractor,
    plan: evaluate.Plan,
    watch: Callable[[int], None] | None = None,
) -> tuple[list[Result], Evidence]:
    """Every metric of items on a run and the data that it was trained on, and what they saw.

    For the first process; where samples are drawn the others `evaluate.assist`.
    """
    classes = class_field(run, plan.guidance)
    for _, metric in metrics:
        metric.foresee(classes)
    samples, receipt = None, {**origin_of(run), "seed": plan.seed}
    if draws(metrics):
        samples, receipt = samples_of_run(run, evaluate.request_of(run, plan), watch)
    given = evidence(data, by, samples, run, classes, plan.seed, plan.batch)
    facts = {"data": data.name, "data_hash": data.hash, "split": "train and test"}
    features = {"features": by.name, "features_fingerprint": by.fingerprint}
    return weigh(metrics, given, {**receipt, **facts, **features}), given


def origin_of(run: Run) -> dict[str, Any]:
    """Which run and which weights, for receipts of metrics that draw nothing."""
    return {"run": run.name, "weights": run.weights_hash(), "averaged": run.averaged, "step": run.step}


def samples_of_run(
    run: Run, request: Request, watch: Callable[[int], None] | None = None
) -> tuple[Split, dict[str, Any]]:
    """A request's samples with the labels that were asked for, drawn where they are not kept, and their receipt.

    For the first process; the others `evaluate.assist`.
    """
    made, receipt = evaluate.features_of_run(run, Raw(), request, watch)
    field = run.data_spec.x
    rows = made.x.reshape(-1, *field.shape)
    facts = {key: value for key, value in receipt.items() if not key.startswith("features")}
    return Split(rows.astype(np.uint8 if field.kind == "image" else np.float32), request.cond), facts


def evidence(
    data: Data,
    by: Extractor,
    samples: Split | None = None,
    run: Run | None = None,
    classes: Field | None = None,
    seed: int = 0,
    batch_size: int = 64,
) -> Evidence:
    """What metrics of items are given: both splits of the data with cached features, and samples.

    Args:
        data: what the run was trained on.
        by: what turns items into features.
        samples: what it made; None for metrics that need none.
        run: None for samples from files.
        classes: of the samples' labels.
        seed: of whatever a metric draws.
        batch_size: items computed together.
    """

    def part(name: str) -> Seen:
        if not len(data.split(name)):
            raise GencliError(
                f"data set '{data.name}' has no {name} items, which metrics of items compare with",
                "use data with both splits",
            )
        return Seen(
            data.split(name),
            lambda: reference(data, name, by),
            lambda some: reference_part(data, name, by, some.numpy()),
        )

    def drawn(items: Split) -> Seen:
        return Seen(items, lambda: by.extract(in_batches(items, np.arange(len(items)), BATCH)))

    made = None if samples is None else drawn(samples)
    return Evidence(part("train"), part("test"), made, run, classes, seed, batch_size)


def weigh(metrics: Sequence[tuple[str, ItemMetric]], given: Evidence, receipt: dict[str, Any]) -> list[Result]:
    """Every metric of items on the same evidence."""
    made: list[Result] = []
    for name, metric in metrics:
        values = metric(given)
        facts = {"metric": name, "settings": as_dict(metric.config), **receipt}
        made += [Result(value, facts) for value in (values if isinstance(values, list) else [values])]
    return made


def pictured(results: Sequence[Result], given: Evidence) -> Image | None:
    """The worst samples that a metric names, each beside its nearest training item; None where none is named."""
    from gencli.report.kinds.image import contact_sheet

    pairs = next((found for r in results if (found := r.value.facts.get("worst"))), None)
    if not pairs or given.samples is None:
        return None
    ours, theirs = (torch.tensor([pair[key] for pair in pairs]) for key in ("sample", "training"))
    both = torch.stack([given.samples.items.batch(ours)["x"], given.train.items.batch(theirs)["x"]], 1).flatten(0, 1)
    captions = [str(pair[key]) for pair in pairs for key in ("sample", "training")]
    return contact_sheet(both, captions, columns=8)
