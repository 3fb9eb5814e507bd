"""The conditions of samples as a function of their seeds: classes in turn, and held-out images to paint from.

A model may be given an image (pix2pix, a denoiser that sees one beside x). Unless a user hands in images, or another run draws
them, sample i is painted from the item i of the run's own held-out data, counted round.

Raises GencliError where those data cannot be read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gencli.bundle import Run
from gencli.core import Batch, Field, Items
from gencli.data import open_table
from gencli.errors import GencliError
from gencli.evaluation.generate import labels_for
from gencli.guidance._base import Guidance


def pictures(run: Run, drawn: bool = False) -> Mapping[str, Field]:
    """Images of the data among the model's conditions; those that another run draws only if `drawn`."""
    given = {key: field for key, field in run.data_spec.cond.items() if field.kind == "image"}
    taken = {key: field for key, field in given.items() if key in run.model.spec.cond}
    return taken if drawn else {key: field for key, field in taken.items() if key not in run.sources}


def conditions_for(
    run: Run,
    seeds: Sequence[int],
    classes: Sequence[int] | None = None,
    guidance: float | Guidance | None = None,
    items: Items | None = None,
) -> Batch:
    """Labels and encoded images, a row a seed.

    Args:
        run: whose samples.
        seeds: of the samples.
        classes: to be taken in turn; all by default.
        guidance: may have classes of its own.
        items: where images come from; the run's held-out data by default.
    """
    labels = labels_for(run, seeds, classes, guidance)
    if not pictures(run):
        return labels
    return {**labels, **encoded(run, raw_pictures(run, seeds, items))}


def raw_pictures(run: Run, seeds: Sequence[int], items: Items | None = None) -> Batch:
    """The images as they lie in the data, uint8."""
    held = held_out(run) if items is None else items
    batch = held.batch(torch.tensor([seed % len(held) for seed in seeds]))
    return {key: batch[key] for key in pictures(run)}


def encoded(run: Run, raw: Mapping[str, Tensor]) -> Batch:
    """Images as the model is given them, on the CPU."""
    return {key: value.cpu() for key, value in run.pictures(raw).items()}


def held_out(run: Run) -> Items:
    """The held-out items of a run's own data, or its training items where no others are."""
    try:
        data = open_table(run.config["recipe"]["data"])
        test = data.split("test")
        return test if len(test) else data.split("train")
    except GencliError as error:
        raise GencliError(
            f"run {run.name} paints from images, and its data cannot be read: {error.message}", "add --input IMAGE"
        ) from error
