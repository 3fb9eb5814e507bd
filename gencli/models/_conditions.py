"""What models that are told conditions share: networks that take labels, labels that must be given, null labels.

A label field of `vocab` classes has one more value, `vocab`, the null label: what a model trained with dropped labels takes
for "any class" (Ho & Salimans, arXiv:2207.12598).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gencli.config import Part
from gencli.core import Batch, Field, Model, Rng, Spec
from gencli.errors import GencliError


def told(chosen: Part, x: Field, out: Field, cond: Mapping[str, Field]) -> Any:
    """A network of role `map` that takes the label among the conditions, if there is one; refused if it cannot."""
    label = {key: field for key, field in cond.items() if key == "label"}
    net = chosen.build(x, out, label)
    if label and getattr(net, "label", None) is None:
        raise GencliError(
            f"network {chosen.name} takes no class label", "use mlp, conv-encoder and conv-decoder, or no classes"
        )
    return net


def label_of(spec: Spec, model: str, setting: str = "classes") -> Mapping[str, Field]:
    """The label among the data's conditions, for a model whose `setting` asks for it."""
    if "label" not in spec.cond:
        raise GencliError(
            f"{model} is to be told classes, but the data have no labels",
            f"leave --{setting} out, or train on labelled data",
        )
    return {"label": spec.cond["label"]}


def given(model: Model, cond: Mapping[str, Tensor]) -> Batch:
    """Of the conditions those that the model is told; none may be absent."""
    for key in model.spec.cond:
        if key not in cond:
            raise GencliError(
                f"{model.public_name()} was trained with the condition '{key}', which was not given",
                "give the condition with the data, or train without conditions",
            )
    return {key: cond[key] for key in model.spec.cond}


def with_null(cond: Mapping[str, Tensor], fields: Mapping[str, Field], x: Tensor) -> Batch:
    """The conditions, every absent label filled with its null (the index after the last class)."""
    made = dict(cond)
    for key, field in fields.items():
        if is_label(field) and key not in made:
            made[key] = torch.full((len(x),), field.vocab or 0, device=x.device, dtype=torch.long)
    return made


def drop_labels(cond: Mapping[str, Tensor], fields: Mapping[str, Field], share: float, rng: Rng) -> Batch:
    """The conditions, each item's labels replaced by their nulls with probability `share` (all of an item's or none)."""
    labels = [key for key in cond if is_label(fields[key])]
    if not labels or not share:
        return dict(cond)
    made, n = dict(cond), len(cond[labels[0]])
    drop = rng.uniform((n,)) < share
    for key in labels:
        made[key] = torch.where(drop.to(cond[key].device), fields[key].vocab or 0, cond[key])
    return made


def is_label(field: Field) -> bool:
    """One class an item."""
    return field.vocab is not None and field.shape == ()
