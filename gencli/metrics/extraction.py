"""Extracting Training Data from Diffusion Models (Carlini et al., 2023). arXiv:2301.13188

Offers: image, samples, training items

Generate and filter: among many samples those are suspected that the model makes again and again, and what is suspected
counts as extracted where a training image is the same to within δ.

    d(a, b) = max over tiles of the root mean square of a − b in the tile, grey levels in [0, 1]

The image is cut into 4 × 4 tiles, as the paper cuts 512 pixels into tiles of 128, since a common background makes whole
images alike. Samples within δ of each other are joined; every clique of at least `clique` of them is a suspect, and its
middle is compared with the training set.

    extraction        training images that were extracted, each counted once
    extraction-share  the share of all samples within δ of a training image, suspected or not
    membership-auc    (of a denoiser) the share of pairs of a training and a held-out item in which the training item has the
                      lesser loss |D(x + σ n) − x|²: 0.5 = nobody can tell what the model was trained on

The paper takes δ = 0.15 for photographs and cliques of 10 among 500 images of one prompt. Ours: δ is half of the median
distance of held-out items to their nearest training item, and at most 0.15, so that it fits images that are more alike
(`delta` sets it); cliques are grown greedily from the sample with most neighbours and share no sample. The membership attack
thresholds the loss at one σ (the paper's best, step 100 of 1,000), averaged over `draws` of the noise; the paper's stronger
attack trains shadow models.

Intervals: Wilson's for the share, DeLong's for the area; none for the count, which grows with the number of samples.

Errors: samples of another size than the data; no held-out item to find δ from.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gencli.config import opt
from gencli.core import Denoiser, Items, mix
from gencli.errors import GencliError
from gencli.metrics._base import Evidence, ItemMetric, Run, Value, conditions, item_rows, spread
from gencli.metrics._neighbours import READ
from gencli.metrics._shares import auc, share

PAPER = 0.15
SHOWN = 64
HELD = 1000


class Extraction(ItemMetric):
    """Training images that a model gives away, and whether its loss gives away what it was trained on."""

    @dataclass(frozen=True)
    class Config:
        delta: float = opt(0.0, "distance within which two images are the same; 0 = half of a new item's", low=0.0)
        clique: int = opt(4, "samples that must agree to be suspected", low=1)
        tiles: int = opt(4, "tiles a side", low=1)
        members: int = opt(512, "items on either side of the membership attack; 0 = leave it out", low=0)
        sigma: float = opt(0.35, "noise of the membership attack", low=1e-3)
        draws: int = opt(4, "draws of that noise", low=1)

    def __call__(self, evidence: Evidence) -> list[Value]:
        c, samples = self.config, evidence.drawn()
        x = everything(samples.items)
        if x.shape[1:] != evidence.train.items.batch(torch.arange(1))["x"].shape[1:]:
            raise GencliError(
                f"the samples are {tuple(x.shape[1:])}, the data are of another size", "compare at the samples' size"
            )
        delta = c.delta or own_delta(evidence, c.tiles)
        near, index = matched(x, evidence, c.tiles)
        found, suspects = extracted(tiled(x, x, c.tiles), near, index, delta, c.clique)
        facts = {
            "delta": delta,
            "n_training": len(evidence.train),
            "suspects": suspects,
            "unmatched": suspects - len(found),
            "extracted": found[:SHOWN],
        }
        count = len({row["training"] for row in found})
        value, around = share(near <= delta)
        note = f"of {len(evidence.train)} training images, to within {delta:.3g}"
        made = [
            Value("extraction", float(count), None, len(samples), "lower", "images", note=note, facts=facts),
            Value("extraction-share", value, around, len(samples), "lower", facts=facts),
        ]
        return [*made, self.membership(evidence)] if c.members and _attackable(evidence) else made

    def membership(self, evidence: Evidence) -> Value:
        """How well the loss tells training from held-out items."""
        c = self.config
        assert evidence.run is not None
        known, new = (
            losses(evidence.run, seen.items, mix(evidence.seed, name), c.members, c.sigma, c.draws, evidence.batch_size)
            for name, seen in (("train", evidence.train), ("test", evidence.test))
        )
        value, around = auc(known, new)
        facts = {
            "n_training": len(known),
            "n_held_out": len(new),
            "sigma": level(evidence.run, c.sigma),
            "draws": c.draws,
        }
        return Value(
            "membership-auc", value, around, len(known) + len(new), "lower", note="0.5 = cannot tell", facts=facts
        )


# -------------------------------------------------------------------------------------------------------------- near-duplicates


def tiled(a: Tensor, b: Tensor, tiles: int = 4) -> np.ndarray:
    """`(N, M)` distances of uint8 images: the greatest over tiles of the root mean square, in [0, 1].

    Products of grey levels are whole numbers, which float64 holds exactly: equal images are at exactly 0.
    """
    rows, columns = (_edges(side, tiles) for side in a.shape[-2:])
    made = np.zeros((len(a), len(b)))
    for top, bottom in itertools.pairwise(rows):
        for left, right in itertools.pairwise(columns):
            x, y = (part[:, :, top:bottom, left:right].flatten(1).double().numpy() for part in (a, b))
            square = (x * x).sum(1)[:, None] + (y * y).sum(1) - 2 * x @ y.T
            np.maximum(made, square / x.shape[1], out=made)
    return np.sqrt(made) / 255


def matched(x: Tensor, evidence: Evidence, tiles: int) -> tuple[np.ndarray, np.ndarray]:
    """The tiled distance of each image to the nearest training image, and which that is."""
    best, index = np.full(len(x), np.inf), np.full(len(x), -1)
    for part in torch.arange(len(evidence.train)).split(READ):
        apart = tiled(x, evidence.train.items.batch(part)["x"], tiles)
        found = apart.argmin(1)
        reach = apart[np.arange(len(x)), found]
        nearer = reach < best
        best[nearer], index[nearer] = reach[nearer], int(part[0]) + found[nearer]
    return best, index


def own_delta(evidence: Evidence, tiles: int) -> float:
    """Half of a new image's distance to the nearest training image, at most the paper's; over held-out items, a median."""
    held = evidence.test.items.batch(spread(len(evidence.test), HELD))["x"]
    return min(PAPER, 0.5 * float(np.median(matched(held, evidence, tiles)[0])))


def cliques(near: np.ndarray, least: int) -> list[np.ndarray]:
    """Disjoint sets of at least `least` items that are all `near` `(N, N)` each other, grown from the best connected."""
    near, made = near.copy(), []
    np.fill_diagonal(near, True)
    free = np.ones(len(near), dtype=bool)
    for centre in np.argsort(-near.sum(1), kind="stable"):
        if not free[centre]:
            continue
        allowed = near[centre] & free
        members = [int(centre)]
        order = np.argsort(-near[:, allowed].sum(1), kind="stable")  # who shares most neighbours with the centre
        for other in order[allowed[order]]:
            if other != centre and near[other, members].all():
                members.append(int(other))
        if len(members) >= least:
            free[members] = False
            made.append(np.array(sorted(members)))
    return made


def extracted(
    apart: np.ndarray, to_training: np.ndarray, index: np.ndarray, delta: float, least: int
) -> tuple[list[dict[str, Any]], int]:
    """Cliques whose middle is a training image, the largest first, and how many cliques there are in all.

    Args:
        apart: `(N, N)` distances of samples.
        to_training: `(N,)` distance of each to its nearest training image.
        index: `(N,)` which that is.
        delta: distance within which two images are the same.
        least: members of a clique.
    """
    found = []
    suspects = cliques(apart <= delta, least)
    for members in suspects:
        middle = members[apart[np.ix_(members, members)].sum(1).argmin()]
        if to_training[middle] <= delta:
            found.append(
                {
                    "training": int(index[middle]),
                    "sample": int(middle),
                    "samples": len(members),
                    "distance": round(float(to_training[middle]), 5),
                }
            )
    return sorted(found, key=lambda row: -row["samples"]), len(suspects)


def everything(items: Items) -> Tensor:
    """All items' images."""
    return torch.cat([items.batch(part)["x"] for part in torch.arange(len(items)).split(READ)])


def _edges(side: int, tiles: int) -> list[int]:
    return sorted({round(i * side / tiles) for i in range(tiles + 1)})


# ------------------------------------------------------------------------------------------------------------------- membership


def losses(run: Run, items: Items, seed: int, n: int, sigma: float, draws: int, batch_size: int) -> np.ndarray:
    """The denoising loss `(n,)` of items spread evenly; the same at any batch size."""
    model: Any = run.model
    at = torch.tensor(level(run, sigma), dtype=torch.float64, device=model.device)
    made = []
    for indices in spread(len(items), n).split(batch_size):
        rng = item_rows(seed, indices, model)
        batch = run.encode(items.batch(indices), rng.at("encode"))
        x, total = batch["x"], torch.zeros(len(indices), dtype=torch.float64)
        for i in range(draws):
            noisy = x + at.to(x) * rng.at("noise", i).normal(x.shape).to(x)
            with torch.no_grad():
                off = model.denoise(noisy, at.to(x), **conditions(run, batch)) - x
            total += off.double().square().flatten(1).mean(1).cpu()
        made.append(total / draws)
    return torch.cat(made).numpy()


def level(run: Run, sigma: float) -> float:
    """The level that the model was trained at nearest to `sigma`."""
    model: Any = run.model
    if model.levels is not None:
        return float(model.levels[(model.levels.double().log() - np.log(sigma)).abs().argmin()])
    return float(np.clip(sigma, model.sigma_min, model.sigma_max))


def _attackable(evidence: Evidence) -> bool:
    return evidence.run is not None and isinstance(evidence.run.model, Denoiser)
