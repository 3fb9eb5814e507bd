"""Walks through a latent: from one image or seed to another, and along each of its numbers.

    linear      z(t) = (1 − t) a + t b
    spherical   z(t) = (sin((1 − t) ω) a + sin(t ω) b) / sin ω,   ω the angle between a and b

The ends of a walk are what `gencli sample` draws with these seeds, or the reconstructions of these images. In many dimensions
draws of N(0, I) lie near a sphere, from which the straight line leads away. A traversal moves one number of a flat latent at
a time, from 2.5 deviations below the prior's mean to 2.5 above, the others staying as they are: the first rows are the
numbers that carry most (`training/latents.py`), or where the model has no posterior those that change the picture most.
Resampling keeps the coarse levels of a multi-scale flow's latent and draws the finer ones anew.

Raises GencliError for models without a latent of real numbers, and for what can be neither an image nor a seed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from gencli.bundle import Run
from gencli.core import Batch, Invertible, Items, LatentVariable, Posterior, Rng
from gencli.errors import GencliError
from gencli.evaluation.conditions import conditions_for
from gencli.evaluation.inputs import read_inputs
from gencli.training.latents import carried

REACH = 2.5  # deviations of the prior
ROWS = 16  # numbers of a latent that a traversal shows, at most
_DRAWS = 256  # of the prior, whose deviation they tell
_BATCH = 64


@dataclass(frozen=True)
class Ends:
    """Where walks begin or end.

    Args:
        z: latents, `(K, …)`, a tensor or a dict of them.
        names: seeds, or images' names.
        cond: conditions of one row, which the whole walk has.
        notes: what a user should be told.
    """

    z: Any
    names: tuple[str, ...]
    cond: Batch
    notes: tuple[str, ...] = ()


class Traversal(NamedTuple):
    """Images `(rows, steps, C, H, W)`; which number of the latent a row moves, and what it carries, where that is known."""

    x: Tensor
    numbers: list[int]
    nats: list[float] | None


def check(run: Run) -> None:
    """Refuse a run without a latent to walk in, or without pictures to show."""
    if not isinstance(run.model, LatentVariable):
        raise GencliError(
            f"run {run.name} has no latent to walk in: model {run.model.public_name()} decodes none",
            "use a model with one, such as vae",
        )
    if run.data_spec.x.kind != "image":
        raise GencliError(f"walks show images, run {run.name} makes {run.data_spec.x.kind}", "use a run of images")


@torch.no_grad()
def ends(
    run: Run, text: str, count: int, flag: str, classes: Sequence[int] | None = None, temperature: float = 1.0
) -> Ends:
    """The latents of `3,7` (seeds, drawn at a temperature), `test:3,7` (items of the run's data) or `a.png,b.png`."""
    check(run)
    parts = [part.strip() for part in text.split(",")]
    by_seed = all(part.isdigit() for part in parts)
    inputs = None if by_seed else read_inputs(run, [text] if re.match("(train|test):", text) else parts)
    names = tuple(parts) if inputs is None else inputs.names
    if len(names) != count:
        raise GencliError(
            f"{flag} is '{text}', {len(names)} of the {count} that it takes",
            f"give {'two seeds or images: 3,7 or test:3,7' if count == 2 else 'one seed or image: 3 or test:3'}",
        )
    model: Any = run.model
    given = conditions_for(run, [int(parts[0])] * count if by_seed else [0] * count, classes)
    if inputs is not None and not classes:
        given |= inputs.cond
    known = {key: value.to(model.device) for key, value in given.items() if key in model.spec.cond}
    if absent := [key for key in model.spec.cond if key not in known]:
        raise GencliError(
            f"run {run.name} needs the condition '{absent[0]}', which walks do not give", "use another run"
        )
    if inputs is None:
        z = model.prior(count, Rng.rows([int(part) for part in parts], model.device).at("prior"), **known)
        z = z if temperature == 1 else tree_map(lambda part: part * temperature, z)
    else:
        z = _encoded(run, inputs.x, known)
    return Ends(z, names, {key: value[:1] for key, value in known.items()}, () if inputs is None else inputs.notes)


def _encoded(run: Run, x: Tensor, known: Batch) -> Any:
    model: Any = run.model
    flow = isinstance(model, Invertible)
    if not flow and not hasattr(model, "encode"):
        raise GencliError(
            f"model {model.public_name()} of run {run.name} finds no latent of an image", "give seeds, such as 3,7"
        )
    batch = run.encode({"x": x, **known}, Rng.rows(range(len(x)), model.device))
    z = model.forward_flow(batch["x"], **known)[0] if flow else model.encode(batch["x"], **known)
    if not all(leaf.is_floating_point() for leaf in tree_leaves(z)):
        raise GencliError(f"the latents of run {run.name} are codes, between which nothing lies", "use a run of vae")
    return z


def between(run: Run, two: Ends, steps: int) -> Tensor:
    """`(2, steps, C, H, W)`: the straight way, and the one around."""
    times = torch.linspace(0, 1, steps).tolist()
    ways = [tree_map(lambda z, t=t, way=way: way(z[:1], z[1:2], t), two.z) for way in (straight, around) for t in times]
    return _pictures(run, tree_map(lambda *parts: torch.cat(parts), *ways), two.cond).unflatten(0, (2, steps))


def straight(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Linear interpolation."""
    return (1 - t) * a + t * b


def around(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Spherical interpolation (Shoemake, 1985) of `(N, …)`; linear where the two have one direction, or opposite ones."""
    one, other = (part.flatten(1).double() for part in (a, b))
    cosine = torch.nn.functional.cosine_similarity(one, other, dim=1).clamp(-1, 1)
    angle = cosine.acos().reshape(-1, *[1] * (a.ndim - 1))
    bend = angle.sin()
    curved = (((1 - t) * angle).sin() * a + (t * angle).sin() * b) / bend.clamp(min=1e-9)
    return torch.where(bend > 1e-6, curved, straight(a.double(), b.double(), t)).to(a)


@torch.no_grad()
def resampled(run: Run, one: Ends, count: int, temperature: float = 1.0) -> Tensor:
    """`(levels, count, C, H, W)`: a row a level; its first image is the whole, in the others this level and all finer are new.

    So a row shows what the coarser levels decide (Dinh et al., arXiv:1605.08803, appendix D); all draws share their seeds.
    """
    model: Any = run.model
    level = model.levels_of_latent() if hasattr(model, "levels_of_latent") else None
    if level is None or not level.any():
        raise GencliError(
            f"--resample draws levels anew, the latent of run {run.name} has one level",
            "use a flow of several, such as realnvp or glow",
        )
    seeds = Rng.rows(range(count - 1), model.device).at("resample")
    rows = {key: value.expand(count - 1, *value.shape[1:]) for key, value in one.cond.items()}
    new = model.prior(count - 1, seeds, **rows) * temperature
    made = [torch.where(level <= k, new, one.z) for k in range(int(level.max()) + 1)]
    z = torch.cat([part for row in made for part in (one.z, row)])
    return _pictures(run, z, one.cond).unflatten(0, (len(made), count))


@torch.no_grad()
def traverse(run: Run, one: Ends, steps: int, items: Items | None) -> Traversal:
    """Rows of a latent's numbers, those that carry most first.

    Args:
        run: what to walk in.
        one: where the latent stands.
        steps: images of a row.
        items: held-out items, by which the numbers are sorted; None where they are not here.
    """
    z, model = one.z, run.model
    if not isinstance(z, Tensor) or z.ndim != 2:
        shape = tuple(z.shape[1:]) if isinstance(z, Tensor) else "several parts"
        raise GencliError(
            f"--traverse moves the numbers of a flat latent, that of run {run.name} is {shape}", "use --between"
        )
    rows = {key: value.expand(_DRAWS, *value.shape[1:]) for key, value in one.cond.items()}
    drawn = model.prior(_DRAWS, Rng.rows(range(_DRAWS), model.device).at("prior"), **rows)  # type: ignore[operator]
    low, high = (drawn.mean(0) + sign * REACH * drawn.std(0) for sign in (-1, 1))
    dims = z.shape[1]
    nats = carried(run, items) if items is not None and isinstance(model, Posterior) else None
    tried = range(dims) if nats is None else nats.argsort(descending=True)[:ROWS].tolist()
    made = z.expand(len(tried), steps, dims).clone()
    for row, number in enumerate(tried):
        made[row, :, number] = torch.lerp(low[number], high[number], torch.linspace(0, 1, steps).to(low))
    x = _pictures(run, made.flatten(0, 1), one.cond).unflatten(0, (len(tried), steps))
    if nats is not None:
        return Traversal(x, list(tried), [float(nats[number]) for number in tried])
    moved = x.double().std(1).flatten(1).mean(1).argsort(descending=True, stable=True)[:ROWS]
    return Traversal(x[moved], moved.tolist(), None)


def _pictures(run: Run, z: Any, cond: Batch) -> Tensor:
    """What a person sees of latents `(N, …)`."""
    model: Any = run.model
    count, made = len(tree_leaves(z)[0]), []
    with torch.no_grad():
        for start in range(0, count, _BATCH):
            part = tree_map(lambda leaf, at=start: leaf[at : at + _BATCH], z)
            n = len(tree_leaves(part)[0])
            given = {key: value.expand(n, *value.shape[1:]) for key, value in cond.items()}
            made.append(run.decode({"x": model.decode(part, **given), **given})["x"].cpu())
    return torch.cat(made)
