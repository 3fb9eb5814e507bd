"""Memorisation: whether samples are nearer to the training set than held-out items are.

Offers: image, samples, training items

Every sample and every held-out item has a distance to its nearest training item, in the features and between grey levels.
Held-out items were not seen in training, so their distances are what new items have:

    memorisation        the median, over all pairs, of a sample's distance over a held-out item's: 1 = as new as real items,
                        0 = most samples are copies
    memorisation-share  the share of samples nearer to the training set than the nearest 5 % of held-out items are

The first is a scale that goes on falling as a model learns its training set by heart, since it has no threshold; the second
sees a few copies among many new samples, which move no median. Both spaces are needed: features that notice artefacts, as
the bundled ones do, take a slightly noisy copy for another image, and pixels take a shifted copy for one.

Intervals need no distribution. The ratio's are the quantiles of the pairs at ½ ± 1.96 standard errors of the share of pairs
below (DeLong); the share's is Wilson's joined with that of the threshold. `alarm` stands in the facts where the share is
beyond chance in one of the spaces. That is exact: of samples that cannot be told from held-out items, the number below the
j-th of m held-out distances is beta-binomial (n, j, m + 1 − j); each space has half of `level`, so there is at most 1 false
alarm in 20.

The worst samples are in the facts with their training items. The held-out items decide how fine this is; 60 are needed.

Errors: fewer than 60 held-out items; samples of another size than the data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from gencli.config import opt
from gencli.errors import GencliError
from gencli.metrics._base import Evidence, ItemMetric, Value, spread
from gencli.metrics._neighbours import in_blocks, nearest, pixels
from gencli.metrics._shares import Z_975, error_of_pairs, wilson

MOST_PAIRED = 2000  # distances of either side that are paired; of more, as many quantiles


class Memorisation(ItemMetric):
    """Nearest training items of samples, against those of held-out items."""

    @dataclass(frozen=True)
    class Config:
        quantile: float = opt(0.05, "of the held-out items' distances: a sample below it counts", low=0.001, high=0.5)
        level: float = opt(0.05, "chance of a false alarm, at most", low=0.0001, high=0.5)
        held: int = opt(2048, "held-out items that are compared, at most", low=1)
        worst: int = opt(16, "samples that are named, nearest first", low=0)

    def __call__(self, evidence: Evidence) -> list[Value]:
        c, samples = self.config, evidence.drawn()
        least = int(np.ceil(3 / c.quantile))
        count = min(len(evidence.test), c.held)
        if count < least:
            raise GencliError(
                f"memorisation compares with held-out items, there are {count}, at least {least} are needed",
                "raise --memorisation.quantile, or hold more items out",
            )
        held = spread(len(evidence.test), c.held)
        spaces = {samples.features.extractor: in_features(evidence, held), "pixels": in_pixels(evidence, held)}
        chance = min(1.0, len(spaces) * min(space.chance(c.quantile) for space in spaces.values()))
        named = worst(spaces, c.worst)
        made: list[Value] = []
        for i, (name, space) in enumerate(spaces.items()):
            facts = {
                "n_training": len(evidence.train),
                "n_held_out": len(space.held),
                "median_of_samples": float(np.median(space.made)),
                "median_of_held_out": float(np.median(space.held)),
                "chance": space.chance(c.quantile),
                "alarm": chance <= c.level,
            }
            ratio, interval = ratio_of(space.made, space.held)
            note = "1 = as new as held-out items"
            if chance <= c.level:
                note = f"ALARM: nearer to the training set than new items are (chance {chance:.1g})"
            shown = {"worst": named} if i == 0 else {}
            made.append(
                Value(f"memorisation[{name}]", ratio, interval, len(samples), "higher", note=note, facts=facts | shown)
            )
            part, around = share_below(space.made, space.held, c.quantile)
            expected = rank(len(space.held), c.quantile) / (len(space.held) + 1)
            note = f"new items would have {expected:.3f}"
            made.append(
                Value(f"memorisation-share[{name}]", part, around, len(samples), "lower", note=note, facts=facts)
            )
        return made


@dataclass(frozen=True)
class Space:
    """Distances of samples and of held-out items to their nearest training items, and which those are of the samples."""

    made: np.ndarray
    held: np.ndarray
    index: np.ndarray

    def chance(self, quantile: float) -> float:
        """How likely at least as many samples below the held-out items' quantile are, were they held-out items too."""
        from scipy.stats import betabinom

        m, j = len(self.held), rank(len(self.held), quantile)
        below = int((self.made < np.sort(self.held)[j - 1]).sum())
        return float(betabinom.sf(below - 1, len(self.made), j, m + 1 - j))


def in_features(evidence: Evidence, some: Tensor) -> Space:
    """Distances between features, and of some held-out items'."""
    made, held, train = (seen.features for seen in (evidence.drawn(), evidence.test, evidence.train))
    distance, index = nearest(made.x, in_blocks(train.x))
    return Space(distance, nearest(held.x[some.numpy()], in_blocks(train.x))[0], index)


def in_pixels(evidence: Evidence, some: Tensor) -> Space:
    """Root mean squared differences of grey levels, and of some held-out items'."""
    made = np.concatenate(list(pixels(evidence.drawn().items)))
    held = np.concatenate(list(pixels(evidence.test.items, some)))
    if made.shape[1] != held.shape[1]:
        raise GencliError(
            f"a sample has {made.shape[1]} values, an item of the data {held.shape[1]}",
            "compare with the data at the samples' size",
        )
    size = np.sqrt(made.shape[1])
    distance, index = nearest(made, pixels(evidence.train.items))
    return Space(distance / size, nearest(held, pixels(evidence.train.items))[0] / size, index)


def ratio_of(made: np.ndarray, held: np.ndarray) -> tuple[float, tuple[float, float]]:
    """The median of made/held over all pairs, and its 95 % interval."""
    a, b = _thinned(made), _thinned(held)
    with np.errstate(divide="ignore", invalid="ignore"):
        pairs = a[:, None] / b[None, :]
    pairs[np.isnan(pairs)] = 1.0  # copies on both sides
    ratio = float(np.median(pairs))
    below = (pairs < ratio) + 0.5 * (pairs == ratio)
    half = min(0.5, Z_975 * error_of_pairs(below))
    ends = np.quantile(pairs, [0.5 - half, 0.5 + half])
    return ratio, (min(ratio, float(ends[0])), max(ratio, float(ends[1])))


def share_below(made: np.ndarray, held: np.ndarray, quantile: float) -> tuple[float, tuple[float, float]]:
    """The share of `made` below a quantile of `held`, and its interval: Wilson's and the quantile's, in quadrature."""
    from scipy.stats import binom

    order, j = np.sort(held), rank(len(held), quantile)
    lowest, highest = (int(binom.ppf(p, len(held), j / (len(held) + 1))) for p in (0.025, 0.975))
    part, around = wilson(int((made < order[j - 1]).sum()), len(made))
    low, high = (float((made < order[max(k, 1) - 1]).mean()) if k else 0.0 for k in (lowest, highest))
    lower = part - np.hypot(part - around[0], part - low)
    upper = part + np.hypot(around[1] - part, high - part)
    return part, (float(max(0.0, lower)), float(min(1.0, upper)))


def rank(m: int, quantile: float) -> int:
    """Which of `m` held-out distances in ascending order is the threshold, from 1."""
    return max(1, int(quantile * (m + 1)))


def worst(spaces: dict[str, Space], count: int) -> list[dict[str, Any]]:
    """The samples nearest to a training item in any space, with that item and the distances over the held-out median."""
    relative = np.stack([space.made / np.median(space.held) for space in spaces.values()])
    index = np.stack([space.index for space in spaces.values()])
    nearest_in = relative.argmin(0)
    return [
        {
            "sample": int(i),
            "training": int(index[nearest_in[i], i]),
            **{name: round(float(near), 4) for name, near in zip(spaces, relative[:, i], strict=True)},
        }
        for i in np.argsort(relative.min(0), kind="stable")[:count]
    ]


def _thinned(x: np.ndarray) -> np.ndarray:
    if len(x) <= MOST_PAIRED:
        return x
    return np.quantile(x, (np.arange(MOST_PAIRED) + 0.5) / MOST_PAIRED)
