"""What a generator makes while it is trained against a critic, and a warning where the game is lost.

At every save the averaged generator draws a fixed batch, always of the same seeds. `adversary.jsonl` gets a line: the step, and

    diversity   the mean distance of a sample from the one nearest to it, over the same of as many training items
    modes       of labelled points: the classes of which samples are made, a tenth of their share at least being good
    good        of labelled points: the share of samples within three deviations of the nearest class
    entropy     of labelled images: of the classes that a linear classifier of pixels takes samples for, in nats; `histogram`
                has them all, `entropy_of_data` and `accuracy` are of training items that it was not fitted to
    real, fake  since the save before: how often the discriminator took data and samples for what they are, where that is logged

Three things are told, each once, with what to do: that the discriminator has won (both `real` and `fake` above 0.98, so that
there is hardly anything left that a generator could learn from it); that samples are alike (diversity below a quarter, or
half as many classes as the data have, by exp of the entropy); and that modes are missing. It must be so at two saves in a
row or at the end, and is not told in the first 100 steps: early in training it is usual and passes.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gencli import files
from gencli.bundle import Run
from gencli.core import Items, LatentVariable
from gencli.data._base import Data
from gencli.training.ema import Average

FILE = "adversary.jsonl"
POINTS, IMAGES, FEW, LARGE = 2500, 256, 64, 64 * 64 * 3  # samples; as many of images larger than that
KNOWN, SIDE, RIDGE = 5000, 16, 1e-2  # of judges: items; of the classifier: side of the images, penalty
LEAST = 5  # items that are looked at of every class, without which samples are not judged by classes
WON, ALIKE, CLASSES, SHARE, REACH = 0.98, 0.25, 0.5, 0.1, 3.0
EARLY = 100  # steps


@runtime_checkable
class Generator(LatentVariable, Protocol):
    """A model that learns to make x by a critic's word."""

    generator: nn.Module


class Watch:
    """Looks at what a run's generator makes at every save."""

    def __init__(self, run: Run, folder: Path, data: Data) -> None:
        self.run, self.path, self.data = run, folder / FILE, data
        self._seen: dict[str, list[float]] = {"real": [], "fake": []}
        self._before: set[str] = set()
        self._said: set[str] = set()

    def see(self, values: Mapping[str, float]) -> None:
        """What a step logged."""
        for key, value in values.items():
            if (name := key.rpartition("/")[2]) in self._seen:
                self._seen[name].append(value)

    def look(self, average: Average, step: int, last: bool) -> tuple[dict[str, float], list[str]]:
        """Write the line of a step; its numbers, and what a user must be told."""
        if not isinstance(self.run.model, Generator):
            return {}, []
        with average.worn_by(self.run.model):
            row = self.row()
        rows = [row for row in read(self.path) if row["step"] < step]  # a resumed run does not repeat a step
        rows.append({"step": step, **{key: rounded(value) for key, value in row.items()}})
        files.atomic_write(self.path, "".join(json.dumps(row) + "\n" for row in rows).encode())
        troubles = found(row)
        now, before = set(troubles), self._before
        self._before = now
        said = [] if step < EARLY else [key for key in troubles if key not in self._said and (key in before or last)]
        self._said |= set(said)
        told = [f"{troubles[key]}; {', '.join(remedies(key, self.run.model.config))}" for key in said]
        return {
            f"samples/{key}": value for key, value in row.items() if key in ("diversity", "modes", "good", "entropy")
        }, told

    def row(self) -> dict[str, Any]:
        """All that is known of the samples at hand, and of the game since the last time this was asked."""
        made = self.made()
        row: dict[str, Any] = {"diversity": apart(made[: len(self.some)]) / max(apart(self.some), 1e-12)}
        row |= self.judge(made) if self.judge is not None else {}
        row |= {key: sum(values) / len(values) for key, values in self._seen.items() if values}
        self._seen = {key: [] for key in self._seen}
        return row

    def made(self) -> Tensor:
        """The fixed batch, as data are, in floating point."""
        from gencli.evaluation.conditions import conditions_for
        from gencli.evaluation.generate import Request, samples

        seeds = range(POINTS if self.data.kind == "points" else len(self.some))
        request = Request(seeds, conditions_for(self.run, seeds, items=self.data.split("train")))
        return samples(self.run, request).float()

    @cached_property
    def some(self) -> Tensor:
        """Training items to compare with."""
        count = FEW if self.run.data_spec.x.size > LARGE else IMAGES
        return spread(self.data.split("train"), count)["x"].float()

    @cached_property
    def judge(self) -> Modes | Classes | None:
        """Who knows the classes of samples, if items have any."""
        label = self.run.data_spec.cond.get("label")
        if label is None or not label.vocab:
            return None
        batch = spread(self.data.split("train"), KNOWN)
        if int(torch.bincount(batch["label"], minlength=label.vocab).min()) < LEAST:
            return None
        kind = Modes if self.data.kind == "points" else Classes
        return kind.of(batch["x"].float(), batch["label"], label.vocab)


@dataclass(frozen=True)
class Modes:
    """Labelled points by their classes' middles and deviations."""

    middles: Tensor  # (K, d)
    deviations: Tensor  # (K,)

    @classmethod
    def of(cls, x: Tensor, label: Tensor, count: int) -> Modes:
        """From points `(N, d)` of all classes."""
        parts = [x[label == k] for k in range(count)]
        middles = torch.stack([part.mean(0) for part in parts])
        away = [(part - middle).square().mean().sqrt() for part, middle in zip(parts, middles, strict=True)]
        return cls(middles, torch.stack(away))

    def __call__(self, x: Tensor) -> dict[str, Any]:
        """Of how many classes there are samples, how many there are, and which share is good."""
        away = torch.cdist(x, self.middles) / self.deviations
        least, nearest = away.min(1)
        good = least <= REACH
        count = len(self.middles)
        each = torch.bincount(nearest[good], minlength=count)
        made = int((each >= SHARE * len(x) / count).sum())
        return {"modes": made, "of": count, "good": float(good.float().mean()), "histogram": each.tolist()}


@dataclass(frozen=True)
class Classes:
    """Labelled images by a ridge regression of their classes on small pixels."""

    weight: Tensor  # (pixels + 1, K)
    entropy: float
    accuracy: float

    @classmethod
    def of(cls, x: Tensor, label: Tensor, count: int) -> Classes:
        """Fitted to four of five images `(N, C, H, W)`, tried on the others."""
        rows = small(x)
        held = torch.arange(len(rows)) % 5 == 4
        known, wanted = rows[~held], F.one_hot(label[~held], count).double()
        gram = known.T @ known + RIDGE * len(known) * torch.eye(known.shape[1], dtype=torch.float64)
        weight = torch.linalg.solve(gram, known.T @ wanted)
        guess = (rows[held] @ weight).argmax(1)
        share = torch.bincount(guess, minlength=count) / len(guess)
        return cls(weight, entropy_of(share), float((guess == label[held]).double().mean()))

    def __call__(self, x: Tensor) -> dict[str, Any]:
        """What samples are taken for."""
        each = torch.bincount((small(x) @ self.weight).argmax(1), minlength=self.weight.shape[1])
        facts = {"entropy_of_data": self.entropy, "accuracy": self.accuracy, "histogram": each.tolist()}
        return {"entropy": entropy_of(each / len(x)), **facts}


def small(x: Tensor) -> Tensor:
    """Pixels `(N, …)` of grey levels, each image at most 16×16, from −1 to 1, and a one."""
    height, width = (min(SIDE, side) for side in x.shape[2:])
    rows = F.adaptive_avg_pool2d(x, (height, width)).flatten(1).double() / 127.5 - 1
    return torch.cat([rows, torch.ones_like(rows[:, :1])], 1)


def entropy_of(share: Tensor) -> float:
    """In nats."""
    some = share[share > 0].double()
    return float(-(some * some.log()).sum())


def apart(x: Tensor) -> float:
    """The mean distance of an item from the one nearest to it."""
    rows = x.flatten(1).double()
    away = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")  # copies are at a distance of 0
    away.fill_diagonal_(math.inf)
    return float(away.min(1).values.mean())


def spread(items: Items, count: int) -> dict[str, Tensor]:
    """Raw items evenly over a split, all if there are fewer."""
    n = min(count, len(items))
    return items.batch(torch.arange(n) * len(items) // n)


def rounded(value: Any) -> Any:
    """A number as it is written."""
    return round(value, 4) if isinstance(value, float) else value


def found(row: Mapping[str, Any]) -> dict[str, str]:
    """What is wrong, in words, by what it is."""
    troubles: dict[str, str] = {}
    if min(row.get("real", 0.0), row.get("fake", 0.0)) > WON:
        troubles["won"] = (
            f"the discriminator has won: it knows {row['real']:.1%} of data and {row['fake']:.1%} of samples"
        )
    classes, most = (math.exp(row.get(key, 0.0)) for key in ("entropy", "entropy_of_data"))
    if row["diversity"] < ALIKE:
        troubles["alike"] = f"samples have collapsed: they lie {row['diversity']:.2f} times as far apart as data"
    elif classes < CLASSES * most:
        troubles["alike"] = f"samples have collapsed: they look like {classes:.1f} classes, data like {most:.1f}"
    if row.get("modes", 0) < row.get("of", 0):
        troubles["missing"] = f"samples miss modes of the data: {row['modes']} of {row['of']} are made"
    return troubles


def remedies(trouble: str, config: Any) -> list[str]:
    """What to do, of the model's own settings."""
    smooth = getattr(config, "smooth", None)
    made = ["add --smooth r1"] if smooth == "none" else []
    if trouble == "won":
        made += [f"raise --smooth-weight {config.smooth_weight:g}"] if smooth in ("r1", "r2") else []
        made += ["lower --critic-turns"] if getattr(config, "critic_turns", 1) > 1 else []
        made += ["lower --critic-lr"] if hasattr(config, "critic_lr") else []
        return [*made, "give the discriminator less width"]
    made += ["use --objective non-saturating"] if getattr(config, "objective", "") == "minimax" else []
    made += ["raise --critic-turns"] if getattr(config, "critic_turns", 5) < 5 else []
    return [*made, "lower --lr, or raise --batch-size"]


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of `adversary.jsonl`; those that are damaged are left out, for they are drawn and no more."""
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            row = json.loads(line)
            rows.append({**row, "step": int(row["step"]), "diversity": float(row["diversity"])})
    return rows
