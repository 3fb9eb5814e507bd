"""A latent as a picture: items by class, the codes of all items beside the prior, and what each number carries."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gencli.bundle import Run
from gencli.core import Autoencoder, Items, Posterior, Rng
from gencli.errors import GencliError
from gencli.metrics._base import spread
from gencli.metrics._factors import encoded
from gencli.metrics._posterior import inferred
from gencli.report.drawn import colours
from gencli.report.kinds.image import grid
from gencli.training.latents import nats_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL.Image import Image

ITEMS, BATCH = 1024, 64
_BARS = 64
_NAMED = 20  # classes whose names are written
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito
_MARKS = ("o", "^", "s", "D")


@dataclass(frozen=True)
class Latents:
    """Codes of items and draws of the prior.

    Args:
        means: of the items' posteriors `(N, D)`.
        draws: one of each item's posterior `(N, D)`.
        prior: as many of the prior.
        carries: what each number of the latent carries `(D,)`: nats, or its variance over items.
        unit: which of the two.
        labels: classes of the items `(N,)`.
        names: of the classes.
    """

    means: Tensor
    draws: Tensor
    prior: Tensor
    carries: Tensor
    unit: str
    labels: Tensor | None = None
    names: tuple[str, ...] = ()


@torch.no_grad()
def of_items(run: Run, items: Items, count: int = ITEMS) -> Latents:
    """Of items spread evenly over a split.

    Raises:
        GencliError: the model has no flat latent of real numbers with a prior.
    """
    model: Any = run.model
    chosen = spread(len(items), count)
    if isinstance(model, Posterior):
        made = inferred(run, items, Rng.batch("latents", total=1), count, BATCH, bounds=False)
        means, draws, carries, unit = made.q.mean, made.z, nats_of(made), "nats"
    elif isinstance(model, Autoencoder) and hasattr(model, "prior") and not model.latent.vocab:
        means = draws = encoded(run, items, chosen, 0, BATCH)
        carries, unit = means.var(0), "variance over items"
    else:
        raise GencliError(
            f"model {model.public_name()} of run {run.name} has no latents of items beside a prior", "use a run of vae"
        )
    raw = items.batch(chosen)
    known = {key: raw[key].to(model.device) for key in model.spec.cond}
    prior = model.prior(len(chosen), Rng.rows(range(len(chosen)), model.device).at("prior"), **known)
    field = run.data_spec.cond.get("label")
    labels = raw.get("label") if field is not None else None
    return Latents(
        means, draws, prior.flatten(1).double().cpu(), carries, unit, labels, field.names if field is not None else ()
    )


def picture(seen: Latents) -> bytes:
    """A PNG of three panels; of more than two numbers the two that carry most are the axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    order = seen.carries.argsort(descending=True).tolist()
    axes_of = sorted(order[:2]) if len(order) > 1 else [0, 0]
    figure = Figure(figsize=(15, 5), dpi=80, facecolor="white", layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    view = _view(torch.cat([seen.means, seen.draws, seen.prior])[:, axes_of].numpy())
    _by_class(left, seen, axes_of)
    _against_prior(middle, seen, axes_of)
    for axes in (left, middle):
        axes.set(xlim=view, ylim=view, xlabel=f"z{axes_of[0]}", ylabel=f"z{axes_of[1]}", aspect="equal")
    bars = order[:_BARS]
    right.bar(range(len(bars)), seen.carries[bars].numpy(), color=_COLOURS[0])
    right.set(ylabel=seen.unit, title=f"what each of {len(order)} numbers carries")
    few = len(bars) <= 24
    right.set_xticks(range(len(bars)) if few else [], [f"z{i}" for i in bars] if few else [], fontsize=8)
    out = io.BytesIO()
    FigureCanvasAgg(figure).print_png(out)
    return out.getvalue()


def _view(points: np.ndarray) -> tuple[float, float]:
    reach = float(np.quantile(np.abs(points), 0.995)) * 1.1 or 1.0
    return (-reach, reach)


def _by_class(axes: Axes, seen: Latents, pair: Sequence[int]) -> None:
    x, y = seen.means[:, pair].numpy().T
    if seen.labels is None:
        axes.scatter(x, y, s=9, color=_COLOURS[0], alpha=0.6)
        axes.set_title(f"means of {len(x):,} held-out items")
        return
    for label in range(int(seen.labels.max()) + 1):
        mine = (seen.labels == label).numpy()
        if not mine.any():
            continue
        mark = _MARKS[label // len(_COLOURS) % len(_MARKS)]
        colour = _COLOURS[label % len(_COLOURS)]
        axes.scatter(x[mine], y[mine], s=9, color=colour, marker=mark, alpha=0.55)
        if label < _NAMED:
            name = seen.names[label] if label < len(seen.names) else str(label)
            box = {"boxstyle": "round,pad=0.15", "fc": "white", "ec": colour, "alpha": 0.85}
            axes.text(float(np.median(x[mine])), float(np.median(y[mine])), name, ha="center", va="center", bbox=box)
    axes.set_title(f"means of {len(x):,} held-out items by class")


def _against_prior(axes: Axes, seen: Latents, pair: Sequence[int]) -> None:
    for points, colour, mark, name in (
        (seen.prior, _COLOURS[1], "x", "draws of the prior"),
        (seen.draws, _COLOURS[0], "o", "draws of the items' posteriors"),
    ):
        x, y = points[:, pair].numpy().T
        axes.scatter(x, y, s=9, color=colour, marker=mark, alpha=0.45, label=name, linewidths=0.7)
    axes.legend(loc="upper right", fontsize=8)
    axes.set_title("prior and aggregated posterior")


def over_training(rows: Sequence[Mapping[str, Any]]) -> tuple[Image, str] | None:
    """What each number carried at every save, as a map, and its caption; None where nothing was looked at.

    Rows are numbers, those that carry most at the end on top, columns are saves.
    """
    last = len(rows[-1]["kl"]) if rows else 0
    kept = [row for row in rows if len(row["kl"]) == last]
    if not last:
        return None
    table = torch.tensor([row["kl"] for row in kept], dtype=torch.float64).T  # (dim, saves)
    table = table[table[:, -1].argsort(descending=True)][:_BARS].clamp(min=0)
    most = float(table.max())
    shown = colours(table, most).movedim(0, -1).reshape(-1, 3)[:, :, None, None]
    side = max(6, min(24, 480 // max(table.shape)))
    words = (
        f"Nats that each of {last} numbers of the latent carries, row by row, at {len(kept)} saves from step "
        f"{kept[0]['step']:,} to {kept[-1]['step']:,}: from dark (0) to bright ({most:.2f}). "
        f"{int((table[:, -1] > 0.1).sum())} carry more than 0.1 at the end, {sum(kept[-1]['kl']):.1f} together."
    )
    return grid(shown, columns=table.shape[1], scale=side), words
