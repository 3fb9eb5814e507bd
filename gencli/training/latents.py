"""What a latent carries while a variational autoencoder is trained, and a warning where it carries next to nothing.

At every save the posteriors of some held-out items are looked at, by the averaged weights. `latents.jsonl` gets a line: the
step, and of every number of the latent its share of KL(q(z|x) ‖ p(z)) in nats; under a prior other than N(0, I), or for a
posterior that is no Gaussian, its divergence from a Gaussian with the mean and variance of all items' draws, which is 0 as
well where a number is the same whatever the item. A hierarchy of latents says by itself (`carried`) what each number carries
given a draw of those above it.

A posterior counts as collapsed if no more than a quarter of the numbers carry 0.1 nats, or if all together carry less than
10 and less than one each in the mean. That is said once, when it is so at two saves in a row or at the end, and never in the
first 100 steps: early in training it is usual and passes.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gencli import files
from gencli.bundle import Run
from gencli.core import Items, Posterior, Rng
from gencli.errors import GencliError
from gencli.metrics._base import base_seed, item_rows, spread
from gencli.metrics._posterior import Inferred, inferred
from gencli.training.ema import Average

FILE = "latents.jsonl"
ITEMS, BATCH = 256, 64
CARRIES, FEW = 0.1, 10.0  # nats
EARLY = 100  # steps


class Watch:
    """Looks at a run's latent at every save."""

    def __init__(self, run: Run, folder: Path) -> None:
        self.run, self.path = run, folder / FILE
        self._before = self._said = False

    def look(self, average: Average, items: Items, step: int, last: bool) -> str:
        """Write the line of a step; what a user must be told, or nothing."""
        model = self.run.model
        if not (isinstance(model, Posterior) or hasattr(model, "carried")) or not len(items):
            return ""
        try:
            with average.worn_by(model):
                nats = carried(self.run, items).tolist()
        except GencliError as error:  # numbers that are not finite end no training
            said, self._said = self._said, True
            return "" if said else f"what the latent carries is not known at step {step}: {error.message}"
        rows = [row for row in read(self.path) if row["step"] < step]  # a resumed run does not repeat a step
        rows.append({"step": step, "kl": [round(each, 4) for each in nats]})
        files.atomic_write(self.path, "".join(json.dumps(row) + "\n" for row in rows).encode())
        now, before = collapsed(nats), self._before
        self._before = now
        if not now or self._said or step < EARLY or not (before or last):
            return ""
        self._said = True
        return warning(nats, model.config)


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of `latents.jsonl`; those that are damaged are left out, for they are drawn and no more."""
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            row = json.loads(line)
            rows.append({"step": int(row["step"]), "kl": [float(each) for each in row["kl"]]})
    return rows


@torch.no_grad()
def carried(run: Run, items: Items, count: int = ITEMS) -> Tensor:
    """What every number of the latent carries `(dim,)`, in nats, the mean over items."""
    model: Any = run.model
    rng = Rng.batch("latents", total=1)
    if isinstance(model, Posterior):
        return nats_of(inferred(run, items, rng, count, BATCH, bounds=False))
    seed, parts = base_seed(rng, "posterior"), []
    for indices in spread(len(items), count).split(BATCH):
        noise = item_rows(seed, indices, model)
        parts.append(model.carried(run.encode(items.batch(indices), noise.at("encode"))["x"], noise.at("draw")).cpu())
    return torch.cat(parts).double().mean(0)


def nats_of(made: Inferred) -> Tensor:
    """The same, of items whose posteriors are known."""
    each = made.dimensions()
    if each is not None:
        return each
    q = made.q
    whole = q.log_var.exp().mean(0) + q.mean.var(0, unbiased=False)  # of one draw of every item
    return 0.5 * (whole.log() - q.log_var.mean(0))


def collapsed(nats: Sequence[float]) -> bool:
    """Whether a latent carries next to nothing."""
    carrying = sum(each > CARRIES for each in nats)
    return carrying <= len(nats) / 4 or sum(nats) < min(FEW, len(nats))


def warning(nats: Sequence[float], config: Any) -> str:
    """One line with what to do."""
    carrying = sum(each > CARRIES for each in nats)
    remedies = [f"lower --beta {config.beta:g}"] if getattr(config, "beta", 1) > 1 else []
    remedies += ["raise --kl-warmup"] if hasattr(config, "kl_warmup") else []
    remedies.append("make the decoder weaker, or --dim smaller")
    return (
        f"posterior collapse: {carrying} of {len(nats)} numbers of the latent carry more than {CARRIES} nats, "
        f"{sum(nats):.1f} together; {', '.join(remedies)}"
    )
