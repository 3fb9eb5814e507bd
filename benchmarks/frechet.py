"""The Fréchet distance between Gaussians of 2,048 dimensions, against the function of clean-fid."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from benchmarks._frame import Case, Outcome, Side

DIMENSIONS, ITEMS = 2048, 5000


def cases(folder: Path, mini: bool) -> list[Case]:
    """One: means and covariances of correlated features, made once."""
    dimensions, items = (64, 500) if mini else (DIMENSIONS, ITEMS)
    path = folder / "gaussians.npz"
    if not path.exists():
        np.savez(path, **gaussians(dimensions, items))
    name = f"Fréchet distance, {dimensions:,} dimensions"
    return [Case(name, "clean-fid", partial(distance, path), 1 if mini else 2, apart, aim=10.0)]


def gaussians(dimensions: int, items: int) -> dict[str, np.ndarray]:
    """Two sets of features whose spectrum falls as that of Inception features does, roughly."""
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((dimensions, dimensions)) * np.arange(1, dimensions + 1)[:, None] ** -0.5
    made = {}
    for name, shift in (("1", 0.0), ("2", 0.1)):
        x = rng.standard_normal((items, dimensions)) @ mixing / dimensions**0.5 + shift
        made |= {f"mu{name}": x.mean(0), f"sigma{name}": np.cov(x, rowvar=False)}
    return made


def distance(path: Path, side: str) -> Side:
    """The distance by one side's function."""
    held = dict(np.load(path))
    if side == "gencli":
        from gencli.metrics._frechet import Statistics, frechet_distance

        a, b = (Statistics(held[f"mu{i}"], held[f"sigma{i}"], ITEMS) for i in "12")
        return lambda: frechet_distance(a, b)
    from gencli.metrics._torchvision import import_torchvision

    import_torchvision()  # which clean-fid imports too
    from cleanfid.fid import frechet_distance as theirs

    return lambda: theirs(held["mu1"], held["sigma1"], held["mu2"], held["sigma2"])


def apart(ours: float, theirs: float) -> Outcome:
    """How far the two distances differ, relative to theirs."""
    return {"relative difference of the distances": (abs(ours - theirs) / theirs, 1e-6)}
