"""Divergences between distributions: of categorical ones exactly, of samples by their nearest neighbours.

Kullback and Leibler's of samples x_i ~ P (n of them) and y_j ~ Q (m), in d dimensions (Wang, Kulkarni & Verdú, 2009):

    KL(P ‖ Q) ≈ d/n Σ_i log(ν_k(x_i) / ρ_k(x_i)) + log(m / (n − 1))

with ρ_k the distance of x_i to its k-th neighbour among the other x and ν_k to its k-th among y: the k-th neighbour is as
far as a density is low, and what the two distances are biased by is the same and cancels. For Jensen and Shannon's
divergence Q is the mixture (P + Q)/2, whose sample of 2n is x and y together; there ν ≤ ρ, so that no estimate exceeds
log 2. All in nats.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

from gencli.errors import GencliError


def categorical_kl(log_p: np.ndarray, log_q: np.ndarray) -> np.ndarray:
    """KL(p ‖ q) along the last axis, from log-probabilities; what has no probability under p adds nothing."""
    p = np.exp(log_p)
    apart = np.subtract(log_p, log_q, out=np.zeros(np.broadcast(log_p, log_q).shape), where=p > 0)
    return np.maximum((p * apart).sum(-1), 0.0)


def kl(x: np.ndarray, y: np.ndarray, k: int) -> float:
    """KL(P ‖ Q) from samples `(N, d)` of P and `(M, d)` of Q; may come out a little below 0."""
    own, other = to_neighbour(x, x, k, itself=True), to_neighbour(x, y, k)
    return float(x.shape[1] * np.log(other / own).mean() + np.log(len(y) / (len(x) - 1)))


def js(x: np.ndarray, y: np.ndarray, k: int) -> float:
    """Jensen and Shannon's divergence, at most log 2, from as many samples of either."""
    assert len(x) == len(y), f"{len(x)} and {len(y)} samples are no equal mixture"
    both = np.concatenate([x, y])
    return (_to_mixture(x, both, k) + _to_mixture(y, both, k)) / 2


def _to_mixture(x: np.ndarray, both: np.ndarray, k: int) -> float:
    own, mixed = to_neighbour(x, x, k, itself=True), to_neighbour(x, both, k, itself=True)
    return float(x.shape[1] * np.log(mixed / own).mean() + np.log(2))


def to_neighbour(x: np.ndarray, among: np.ndarray, k: int, itself: bool = False) -> np.ndarray:
    """Distance `(N,)` to the k-th neighbour; `itself`: x is among them and is not counted.

    Raises:
        GencliError: so many are equal that there is no density.
    """
    found = cKDTree(among).query(x, k + itself)[0]
    far = found if k + itself == 1 else found[:, -1]
    if (far == 0).any():
        raise GencliError(
            f"{int((far == 0).sum())} of {len(x)} items coincide with {k} others: they have no density",
            "use `wasserstein` or `mmd`, which need none",
        )
    return np.asarray(far)
