"""Rejection: more samples are drawn than wanted, and those kept that a judge scores highest.

    S = the k of N samples with the greatest score,   score = log p(y | x) of a classifier, y the class that was asked for

As VQ-VAE-2 rejects by a classifier (Razavi et al., arXiv:1906.00446) and DALL-E re-ranks by CLIP (arXiv:2102.12092;
Radford et al., arXiv:2103.00020): `best` is the rule, a `Score` is any function of samples and conditions. Quality is bought
with diversity: what the judge finds odd is never seen.

Ours: the rule holds within each class, so that the classes that were asked for stay as often as they were; equal scores fall to
the earlier sample. Candidates have the seeds that follow one another, so that those of a smaller share contain those of
a greater one, and what is kept is a function of the seeds.

Raises GencliError for a run that does not classify, one of other classes or images, and for a share that is none.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gencli.bundle import Run
from gencli.core import Batch, Field
from gencli.errors import GencliError
from gencli.evaluation.generate import Progress
from gencli.metrics.class_accuracy import check_size, classifier

Score = Callable[
    [Tensor, Batch], Tensor
]  # samples in data space `(N, …)` and their conditions to `(N,)`, greater is better
ROWS = 256  # judged at a time


def best(scores: Tensor, count: int) -> Tensor:
    """Places `(count,)`, ascending, of the greatest of `scores` `(N,)`; of equal ones the earlier."""
    assert 0 < count <= len(scores), f"asked for {count} of {len(scores)}"
    return scores.argsort(descending=True, stable=True)[:count].sort().values


def best_of_each(scores: Tensor, labels: Tensor, count: int) -> Tensor:
    """`best` within every class: of each, as many as the first `count` samples hold, `count` in all."""
    kept = []
    for label in labels.unique():
        places = (labels == label).nonzero().flatten()
        wanted = int((places < count).sum())
        if wanted:
            kept.append(places[best(scores[places], wanted)])
    return torch.cat(kept).sort().values


def candidates(count: int, share: float) -> int:
    """How many are drawn so that `count` are the share that is kept."""
    if not 0 < share <= 1:
        raise GencliError(f"--rejection-share is {share:g}", "give the share that is kept, such as 0.5")
    return math.ceil(count / share - 1e-9)


def classifier_score(run: Run, classes: Field, shape: tuple[int, ...]) -> Score:
    """log p(y | x) of a run that tells classes.

    Args:
        run: the classifier.
        classes: those that may be asked for; matched by name where both sides have names, else by number.
        shape: of what will be drawn, which is checked before it is.
    """
    told, columns = classifier(run, classes)
    check_size(run, shape)
    places = torch.tensor(columns)

    def score(x: Tensor, cond: Batch) -> Tensor:
        made = torch.cat([told(rows).double().log_softmax(1).cpu() for rows in x.split(ROWS)])
        return made.gather(1, places[cond["label"]][:, None]).squeeze(1)

    return score


def facts(run: Run, scores: Tensor, kept: Tensor, share: float) -> dict[str, Any]:
    """For the receipt: who judged, and what the judge thinks of all candidates and of those kept, as probabilities."""
    p = scores.exp()
    return {
        "classifier": run.name,
        "weights": run.weights_hash(),
        "share": share,
        "candidates": len(scores),
        "mean_probability": {"candidates": round(float(p.mean()), 6), "kept": round(float(p[kept].mean()), 6)},
    }


def only(done: Sequence[Progress], kept: Tensor) -> list[Progress]:
    """The finished micro-batches without the samples that are not among `kept`; empty ones are left out."""
    made, first = [], 0
    for progress in done:
        assert progress.chunk is not None, "only finished micro-batches have samples"
        size = len(progress.chunk)
        rows = kept[(kept >= first) & (kept < first + size)] - first
        first += size
        if len(rows):
            frames = [frame[rows] for frame in progress.frames]
            info = [{key: v[rows] if v.ndim else v for key, v in each.items()} for each in progress.info]
            spent = None if progress.evaluations is None else progress.evaluations[rows]
            made.append(
                dataclasses.replace(progress, chunk=progress.chunk[rows], frames=frames, info=info, evaluations=spent)
            )
    return made
