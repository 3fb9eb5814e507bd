"""The Fréchet distance between Gaussians, in float64, through symmetric eigenvalues only.

d² = |μ₁ − μ₂|² + Tr(S₁ + S₂ − 2 (S₁S₂)^½); with S₁ = L Lᵀ the last trace is the sum of the square roots of the eigenvalues
of Lᵀ S₂ L, which is symmetric: no complex numbers, no general matrix square root. L is a Cholesky factor, or
V√λ from an eigendecomposition where S₁ is singular (fewer items than features). Negative eigenvalues are rounding errors
and count as zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from gencli.errors import GencliError
from gencli.files import atomic_path


@dataclass(frozen=True)
class Statistics:
    """Mean `(D,)` and covariance `(D, D)` (divided by N − 1) of N feature vectors."""

    mean: np.ndarray
    cov: np.ndarray
    n: int

    @classmethod
    def of(cls, x: np.ndarray) -> Statistics:
        """From features `(N, D)`, N ≥ 2."""
        assert len(x) >= 2, f"a covariance needs two items, not {len(x)}"
        x = np.asarray(x, dtype=np.float64)
        mean = x.mean(0)
        centred = x - mean
        return cls(mean, centred.T @ centred / (len(x) - 1), len(x))

    def save(self, path: Path) -> None:
        """Write an `.npz` that other tools read too (`mu`, `sigma`), atomically."""
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez(file, mu=self.mean, sigma=self.cov, n=self.n)

    @classmethod
    def load(cls, path: Path) -> Statistics:
        """Read what `save` wrote; nothing in the file is executed."""
        try:
            with np.load(path, allow_pickle=False) as held:
                return cls(held["mu"], held["sigma"], int(held["n"]) if "n" in held else 0)
        except (OSError, ValueError, KeyError) as error:
            raise GencliError(f"{path} is not a file of feature statistics: {error}", "make it again") from error


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """The squared distance; 0 for equal statistics, never negative."""
    assert a.mean.shape == b.mean.shape, f"{a.mean.shape} features against {b.mean.shape}"
    between = a.mean - b.mean
    left = _factor(a.cov)
    inner = torch.from_numpy(left.T @ b.cov @ left)
    eigenvalues = torch.linalg.eigvalsh(inner).numpy()  # half of NumPy's time
    cross = np.sqrt(np.clip(eigenvalues, 0, None)).sum()
    return max(float(between @ between + np.trace(a.cov) + np.trace(b.cov) - 2 * cross), 0.0)


def _factor(cov: np.ndarray) -> np.ndarray:
    """L with L Lᵀ = cov."""
    try:
        return np.linalg.cholesky(cov)
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(cov)
        return vectors * np.sqrt(np.clip(values, 0, None))
