"""Class accuracy: the share of samples that a classifier sees as what was asked for.

Offers: image, samples, labels

    class-accuracy = share of samples with  argmax over y of p(y | x) = the class asked for

`classifier` is a run that tells classes (`classifier`, or `noisy-classifier` asked about clean images); without one, the
head of the bundled feature network, which knows digits and the clothes of Fashion-MNIST. Classes are matched by name
where both sides have names, else by number.

The same classifier's accuracy on held-out items stands beside it: samples are judged no better than that. A classifier that
guided the sampling is no judge of it. High accuracy says nothing of diversity: one good image of each class scores 1.

Errors: samples without labels; a classifier that does not know all the classes; images of another size than it takes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gencli import runs
from gencli.bundle import Run
from gencli.config import opt
from gencli.core import Classifier, Field, Items, Rng
from gencli.errors import GencliError
from gencli.metrics._base import Evidence, ItemMetric, Value
from gencli.metrics._features import BUNDLED, load_network
from gencli.metrics._shares import share

Judge = Callable[[Tensor], Tensor]  # of raw images `(N, …)`: the classes that are seen `(N,)`, or logits


class ClassAccuracy(ItemMetric):
    """Whether samples are of the class that was asked for."""

    @dataclass(frozen=True)
    class Config:
        classifier: str = opt("", "a run that tells classes; empty = the bundled feature network's head")

    def __call__(self, evidence: Evidence) -> Value:
        if evidence.classes is None:
            raise GencliError(
                "class-accuracy needs samples that were asked for by class", "use a model of labelled data"
            )
        name, judge = judge_of(self.config.classifier, evidence.classes, self.device(evidence))
        samples = evidence.drawn()
        hits, per_class = judged(judge, samples.items, evidence.classes, evidence.batch_size)
        held, _ = judged(judge, evidence.test.items, evidence.classes, evidence.batch_size)
        value, around = share(hits)
        return Value(
            name=f"class-accuracy[{name}]",
            value=value,
            interval=around,
            n=len(hits),
            better="higher",
            note=f"{held.mean():.3f} on {len(held)} held-out items",
            facts={"held_out": float(held.mean()), "n_held_out": len(held), "per_class": per_class},
        )

    @staticmethod
    def device(evidence: Evidence) -> torch.device:
        """Where the classifier works: beside the model."""
        return torch.device("cpu") if evidence.run is None else evidence.run.model.device


def judged(judge: Judge, items: Items, classes: Field, batch_size: int) -> tuple[np.ndarray, dict[str, float]]:
    """Which items are seen as what they are labelled `(N,)`, and the share of each class."""
    hits, labels = [], []
    for indices in torch.arange(len(items)).split(batch_size):
        raw = items.batch(indices)
        if "label" not in raw:
            raise GencliError("class-accuracy needs labels, these items have none", "use labelled data")
        labels.append(raw["label"])
        hits.append(judge(raw["x"]).cpu() == raw["label"])
    hit, label = torch.cat(hits).numpy(), torch.cat(labels).numpy()
    names = classes.names or tuple(map(str, range(classes.vocab or 0)))
    return hit, {names[k]: float(hit[label == k].mean()) for k in np.unique(label)}


def judge_of(name: str, classes: Field, device: torch.device) -> tuple[str, Judge]:
    """The classifier called `name` as a judge of `classes`, and what it is called."""
    if not name:
        return BUNDLED.stem, _bundled(classes, device)
    run = Run.load(runs.named(name).path, device)
    told, columns = classifier(run, classes)
    return run.name, lambda x: told(x)[:, columns].argmax(1)


def classifier(run: Run, classes: Field) -> tuple[Judge, list[int]]:
    """A run as a judge of classes: raw images to logits `(N, K)` over its own, and where those asked for stand among them.

    Raises:
        GencliError: the run tells no classes, or does not know all that are asked for.
    """
    model: Any = run.model
    known = run.model.spec.cond.get("label")
    if not isinstance(run.model, Classifier) or known is None:
        raise GencliError(
            f"run {run.name} is no classifier: {run.model.public_name()} tells no classes",
            "train one: gencli train classifier",
        )
    named = bool(known.names and classes.names)
    names, asked = ([_called(field, k, named) for k in range(field.vocab or 0)] for field in (known, classes))

    def told(x: Tensor) -> Tensor:
        check_size(run, tuple(x.shape[1:]))
        batch = run.encode({"x": x}, Rng.rows([0] * len(x)))
        with torch.no_grad():
            return model.class_logits(batch["x"])

    return told, _columns(asked, names, f"classifier {run.name}")


def check_size(run: Run, shape: tuple[int, ...]) -> None:
    """Refuse images of another size than a classifier takes."""
    if shape != run.data_spec.x.shape:
        raise GencliError(
            f"classifier {run.name} takes {run.data_spec.x.shape}, the samples are {shape}",
            "train one on the samples' data at their size: gencli train classifier",
        )


def _called(field: Field, place: int, named: bool) -> str:
    return field.names[place].lower() if named else str(place)


def _bundled(classes: Field, device: torch.device) -> Judge:
    net: Any = load_network(BUNDLED).eval().to(device)
    known = [_plain(name) for name in json.loads(BUNDLED.with_suffix(".json").read_text("utf-8"))["classes"]]
    asked = classes.names or tuple(map(str, range(classes.vocab or 0)))
    columns = _columns([_plain(name) for name in asked], known, "the bundled classifier")

    def see(x: Tensor) -> Tensor:
        with torch.no_grad():
            return net.class_logits(x.to(device).float() / 255)[:, columns].argmax(1)

    return see


def _columns(asked: Sequence[str], known: Sequence[str], who: str) -> list[int]:
    """Where the classes asked for stand among those that are known."""
    strange = [name for name in asked if name not in known]
    if strange:
        raise GencliError(
            f"{who} does not know class '{strange[0]}'",
            "train a classifier on these data (gencli train classifier --data …) and name it with "
            "--class-accuracy.classifier",
        )
    return [list(known).index(name) for name in asked]


def _plain(name: str) -> str:
    """One spelling: `t-shirt/top` and `t-shirt`, `ankle boot` and `ankle-boot`."""
    return name.split("/")[0].replace(" ", "-").lower()
