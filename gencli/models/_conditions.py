"""What models with a null condition share: labels dropped in training, absent labels filled in.

A label field of `vocab` classes has one more value, `vocab`, the null label: what a model trained with dropped labels takes
for "any class" (Ho & Salimans, arXiv:2207.12598).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from gencli.core import Batch, Field, Rng


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
