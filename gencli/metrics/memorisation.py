"""Memorisation: whether samples are nearer to the training set than held-out items are.

Offers: image, samples, training items

Held-out items are drawn like the training items, and the model has not seen them. A sample that knows nothing of who was
trained on is as likely nearer to n training items as to n others, however good or bad it is:

    memorisation        with k = min(n, held-out items) and p the share of samples nearer to the training set than to k
                        held-out items, on average over all choices of k:
                        (p − n/(n + k)) / (1 − n/(n + k)),   0 = by chance, 1 = all samples stem from training items
    memorisation-share  the share of samples nearer to the training set than the nearest 5 % of held-out items are

A sample at a distance v from a training item that it was made from, v being the probability of the ball that reaches to it,
adds exp(−(n + k) v) to the first: the probability that no other item is as near. So it falls with everything between a
copy and a new item, and with the size of the training set, and does not saturate as long as samples are nearer to what was
trained on than to what was not. (A ratio of distances to those of held-out items does: bad samples are far from both, and
at some hundred items that outweighs the copying.) The second sees a few copies among many new samples. Both spaces are
needed: features that notice artefacts, as the bundled ones do, take a slightly noisy copy for another image, and pixels
take a shifted copy for one.

The first interval is Wilson's with as many independent samples as have the variance of p, n + k at most. The variance is the
greater of two: with samples of the same nearest training item, or held-out item, as clusters (Cameron et al., 2011); and of
exchanged items, the share of samples that each is nearest to staying with it. With far fewer held-out than training items
the interval is wide: draw more samples and hold more items out. The second is Wilson's joined with that of the
threshold.

`alarm` stands in the facts where the share is beyond chance in one of the spaces. That is exact: of samples that cannot be
told from held-out items, the number below the j-th of m held-out distances is beta-binomial (n, j, m + 1 − j); each space
has half of `level`, so there is at most 1 false alarm in 20.

The worst samples are in the facts with their training items. The held-out items decide how fine this is; 60 are needed.

Errors: fewer than 60 held-out items; samples of another size than the data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from gencli.config import opt
from gencli.errors import GencliError
from gencli.metrics._base import Evidence, ItemMetric, Value, spread
from gencli.metrics._neighbours import in_blocks, nearer, nearest, pixels
from gencli.metrics._shares import Share, wilson

Blocks = Iterator[np.ndarray] | list[np.ndarray]


class Memorisation(ItemMetric):
    """Nearest training items of samples, against those of held-out items."""

    @dataclass(frozen=True)
    class Config:
        quantile: float = opt(0.05, "of the held-out items' distances: a sample below it counts", low=0.001, high=0.5)
        level: float = opt(0.05, "chance of a false alarm, at most", low=0.0001, high=0.5)
        held: int = opt(10_000, "held-out items that are compared, at most", low=1)
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
            value, interval = excess(space)
            facts = {
                "n_training": space.trained,
                "n_held_out": len(space.held),
                "median_of_samples": float(np.median(space.made)),
                "median_of_held_out": float(np.median(space.held)),
                "chance": space.chance(c.quantile),
                "alarm": chance <= c.level,
            }
            note = "0 = no nearer to training items than to as many new ones"
            if chance <= c.level:
                note = f"ALARM: nearer to the training set than new items are (chance {chance:.1g})"
            shown = {"worst": named} if i == 0 else {}
            made.append(
                Value(f"memorisation[{name}]", value, interval, len(samples), "lower", note=note, facts=facts | shown)
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
    """Distances of samples and of held-out items in one space.

    Args:
        made: `(N,)` of samples to their nearest training items.
        index: `(N,)` which these are.
        held: `(m,)` of held-out items to their nearest training items.
        beaten: `(N,)` held-out items that are nearer to a sample than its training item; those as near count half.
        other: `(N,)` the nearest held-out items.
        trained: training items.
    """

    made: np.ndarray
    index: np.ndarray
    held: np.ndarray
    beaten: np.ndarray
    other: np.ndarray
    trained: int

    def chance(self, quantile: float) -> float:
        """How likely at least as many samples below the held-out items' quantile are, were they held-out items too."""
        from scipy.stats import betabinom

        m, j = len(self.held), rank(len(self.held), quantile)
        below = int((self.made < np.sort(self.held)[j - 1]).sum())
        return float(betabinom.sf(below - 1, len(self.made), j, m + 1 - j))


def in_features(evidence: Evidence, some: Tensor) -> Space:
    """Distances between features, and of some held-out items'."""
    made, held, train = (seen.features.x for seen in (evidence.drawn(), evidence.test, evidence.train))
    return between(made, held[some.numpy()], lambda: in_blocks(train), len(train))


def in_pixels(evidence: Evidence, some: Tensor) -> Space:
    """Root mean squared differences of grey levels, and of some held-out items'."""
    made = np.concatenate(list(pixels(evidence.drawn().items)))
    held = np.concatenate(list(pixels(evidence.test.items, some)))
    if made.shape[1] != held.shape[1]:
        raise GencliError(
            f"a sample has {made.shape[1]} values, an item of the data {held.shape[1]}",
            "compare with the data at the samples' size",
        )
    found = between(made, held, lambda: pixels(evidence.train.items), len(evidence.train))
    size = np.sqrt(made.shape[1])
    return replace(found, made=found.made / size, held=found.held / size)


def between(made: np.ndarray, held: np.ndarray, train: Callable[[], Blocks], trained: int) -> Space:
    """The distances of samples `(N, D)` and held-out items `(m, D)`; `train` gives the training items' blocks anew."""
    distance, index = nearest(made, train())
    beaten, (_, other) = nearer(made, in_blocks(held), distance), nearest(made, in_blocks(held))
    return Space(distance, index, nearest(held, train())[0], beaten, other, trained)


def excess(space: Space) -> Share:
    """How much more often than by chance samples are nearer to the training set than to as many held-out items."""
    n, m, samples = space.trained, len(space.held), len(space.made)
    k = min(n, m)
    first = unbeaten(space.beaten, m, k)
    p = float(first.mean())
    rest = (first - p) / samples
    clusters = sum(float(np.square(np.bincount(whose, rest)).sum()) for whose in (space.index, space.other))
    items = zip((space.index, space.other), (first, 1 - first), strict=True)
    weight = sum(float(np.square(np.bincount(whose, part / samples)).sum()) for whose, part in items)
    spread = max(p * (1 - p), (samples - 1) / samples**2)
    variance = max(clusters - float(np.square(rest).sum()), spread * (weight - 1 / (n + k)))
    most = min(samples, n + k)
    worth = most if variance * most <= spread else spread / variance
    low, high = wilson(p * worth, worth)[1]
    chance = n / (n + k)
    value, low, high = ((x - chance) / (1 - chance) for x in (p, low, high))
    return value, (low, high)


def unbeaten(beaten: np.ndarray, m: int, k: int) -> np.ndarray:
    """The probability `(N,)` that none of the items which beat a sample's training item is among k of m chosen at random."""
    from scipy.special import gammaln

    def chosen(left: np.ndarray) -> np.ndarray:  # log of the ways to choose k of those left, less what all share
        few = left < k
        ways = gammaln(left + 1) - gammaln(np.where(few, 0, left - k) + 1)
        return np.where(few, -np.inf, ways)

    def free(count: np.ndarray) -> np.ndarray:
        return np.exp(chosen(m - count) - chosen(np.array(m)))

    return np.asarray((free(np.floor(beaten)) + free(np.ceil(beaten))) / 2)


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
