"""What a run of an autoencoder does to held-out items: its reconstructions, and how often it uses each of its codes.

A page is made of files alone (`page.py`): these are drawn before it, from the weights and the data where both are here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gencli import registry
from gencli.bundle import Run, read_config
from gencli.core import Autoencoder, Rng
from gencli.data import open_table
from gencli.errors import GencliError
from gencli.evaluation.preview import reconstructions
from gencli.metrics._base import spread
from gencli.metrics.reconstruction import codebook_use
from gencli.report.drawn import GIVEN, colours
from gencli.report.kinds.image import grid

if TYPE_CHECKING:
    from PIL.Image import Image

ITEMS, PIXELS = 1024, 2_000_000  # encoded at most, to be quick
PAIRS = 16
_ROWS = 128
_WIDE = 384  # pixels of a map of codes, about


@dataclass(frozen=True)
class Seen:
    """What is to be seen of an autoencoder.

    Args:
        items: held-out ones, from which all of this is.
        pairs: pictures of originals, each followed by its reconstruction; None for data that are no images.
        map: a picture with a cell for each code; None for latents that are no codes.
        counts: how often each code occurs `(K,)`.
        problem: why there is nothing to see, if there is not.
    """

    items: int = 0
    pairs: Image | None = None
    map: Image | None = None
    counts: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    problem: str = ""

    @property
    def words(self) -> str:
        """The map's caption."""
        total, most = int(self.counts.sum()), int(self.counts.max())
        used, perplexity = codebook_use(self.counts)
        return (
            f"{round(used * len(self.counts))} of {len(self.counts)} codes are used, perplexity {perplexity:.1f}, over "
            f"{total:,} codes of {self.items:,} held-out items. Cells are codes in order, row by row; the brighter, the more "
            f"often (on a scale of logarithms, up to {most / total:.1%}), grey ones never."
        )


def of_run(path: Path) -> Seen | None:
    """Of the run in a folder; None where the model is no autoencoder or has no weights."""
    config = read_config(path)
    kind = registry.attempt("models", registry.public_name(config["recipe"]["model"]["name"]))
    if kind is None or not (hasattr(kind, "encode") and hasattr(kind, "decode")):
        return None
    if not (path / "model.safetensors").is_file():
        return None
    try:
        data = open_table(config["recipe"]["data"])
        if not data.here():
            return Seen(problem=f"data set '{data.name}' is not on this machine, so its codes are not shown")
        run, items = Run.load(path), data.split("test")
    except GencliError as error:
        return Seen(problem=f"codes are not shown: {error.message}")
    return of_items(run, items) if isinstance(run.model, Autoencoder) and len(items) else None


def of_items(run: Run, items: Any) -> Seen:
    """Of items spread evenly over a split."""
    most = min(ITEMS, max(PAIRS, PIXELS // run.data_spec.x.size))
    chosen = spread(len(items), most)
    counts = counted(run, items, chosen)
    image = run.data_spec.x.kind == "image"
    pairs = grid(reconstructions(run, items, PAIRS), columns=8) if image else None
    return Seen(len(chosen), pairs, usage_map(counts) if len(counts) else None, counts)


@torch.no_grad()
def counted(run: Run, items: Any, chosen: Tensor) -> Tensor:
    """How often each code occurs in the chosen items `(K,)`; empty for latents that are no codes."""
    model: Any = run.model
    counts = torch.zeros(model.latent.vocab or 0, dtype=torch.long)
    for indices in chosen.split(_ROWS) if len(counts) else ():
        batch = run.encode({"x": items.batch(indices)["x"]}, Rng.rows(indices.tolist()))
        counts += torch.bincount(model.encode(batch["x"]).cpu().flatten(), minlength=len(counts))
    return counts


def usage_map(counts: Tensor) -> Image:
    """A cell for each code in order, row by row: from dark (once) to bright (the most used) by logarithms, grey where never."""
    columns = max(1, round(len(counts) ** 0.5))
    levels = counts.double().clamp(min=1).log()
    shown = colours(levels, float(levels.max())).movedim(0, 1)  # (K, 3)
    shown = torch.where(counts[:, None] == 0, torch.tensor(GIVEN, dtype=torch.uint8), shown)
    return grid(shown[:, :, None, None], columns=columns, scale=min(24, max(4, _WIDE // columns)))
