"""A codebook: each vector becomes its nearest code; the codes follow the vectors by moving averages or by gradient.

    k(z) = argmin_k |z − e_k|²,   value e_k(z),   gradient of the value copied straight through to z

`ema` (as in the paper's released code): n_k and m_k are zero-debiased averages of how many vectors took code k and of
their sum; e_k = m_k / ñ_k with ñ_k = (n_k + ε) N / (N + K ε). The smoothing is used to form e_k only: the averages stay
raw. `gradient`: the codes are parameters, trained by |sg[z] − e|².

Ours: a code that no vector ever took keeps its place (the released code sends it to the origin); a code whose average
use falls under `restart` × even use becomes a random vector of the current batch, with even use to its name, so that it
has about ln(1/restart)/(1−decay) steps to prove itself. The random vectors are those with the smallest of uniform keys
drawn per row from the turn's `Rng`: the choice does not depend on micro-batches or processes.

`forward` gathers what it sees while training; `update` applies it, once per optimiser step, on every process. What is
gathered in between is deliberately no buffer: wrappers broadcast buffers before each forward.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from gencli import core
from gencli.core import Rng


class Quantised(NamedTuple):
    """What became of `z`: the values (straight through), the codes, and each item's mean squared distances."""

    values: Tensor  # (N, D, *grid), equal to the codes' vectors
    codes: Tensor  # (N, *grid) long
    commitment: Tensor  # (N,) |z - sg[e]|², moves the encoder only
    codebook: Tensor  # (N,) |sg[z] - e|², moves the codebook only


@dataclass
class _Pending:
    """Seen since the last update: counts, sums, and the candidates for restarts with their keys."""

    counts: Tensor  # (K,)
    sums: Tensor  # (K, D)
    keys: Tensor  # (K,) ascending, inf where there is no candidate
    vectors: Tensor  # (K, D)


class Usage(nn.Module):
    """How often codes are used: plain counts over the current and the last epoch."""

    tally: Tensor
    whole: Tensor
    epoch: Tensor

    def __init__(self, codes: int) -> None:
        super().__init__()
        self.register_buffer("tally", torch.zeros(codes, dtype=torch.long))  # this epoch so far
        self.register_buffer("whole", torch.zeros(codes, dtype=torch.long))  # the last whole epoch
        self.register_buffer("epoch", torch.zeros((), dtype=torch.long))  # vectors in an epoch, 0 = not known
        self._seen: Tensor | None = None

    @torch.no_grad()
    def see(self, codes: Tensor) -> None:
        """Count the codes of a micro-batch; `update` adds them."""
        counts = torch.bincount(codes.flatten(), minlength=len(self.tally))
        self._seen = counts if self._seen is None else self._seen + counts

    def update(self) -> None:
        """Add what was seen since the last call. Every process must call it."""
        seen, self._seen = self._seen, None
        self.count(core.all_reduce(torch.zeros_like(self.tally) if seen is None else seen))

    def count(self, counts: Tensor) -> None:
        """Add one step's counts."""
        self.tally += counts
        if 0 < int(self.epoch) <= int(self.tally.sum()):
            self.whole.copy_(self.tally)
            self.tally.zero_()

    def now(self, pending: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Perplexity and share of codes in use, counted over the last whole epoch (before that: since the start)."""
        counts = self.whole
        if not counts.any():
            fresh = self._seen if pending is None else pending.long()
            counts = self.tally if fresh is None else self.tally + fresh
        return perplexity(counts), (counts > 0).float().mean()


class Statistics(Usage):
    """How the codes are used, and raw zero-biased averages of that and of the vectors."""

    counts: Tensor
    sums: Tensor
    steps: Tensor

    def __init__(self, codes: int, dim: int) -> None:
        super().__init__(codes)
        self.register_buffer("counts", torch.zeros(codes))
        self.register_buffer("sums", torch.zeros(codes, dim))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def add(self, counts: Tensor, sums: Tensor, decay: float) -> None:
        """One step's counts and sums."""
        self.counts.lerp_(counts, 1 - decay)
        self.sums.lerp_(sums, 1 - decay)
        self.steps += 1
        self.count(counts.long())

    def mass(self, decay: float) -> float:
        """What the averages' weights sum to: 1 − decayᵗ."""
        return 1 - decay ** int(self.steps)


class Quantiser(nn.Module):
    """K codes of D numbers.

    Args:
        codes: K.
        dim: D.
        codebook: `ema` or `gradient`.
        decay: of the moving averages.
        restart: codes used less than this share of even use are replaced; 0 = never.
        epsilon: of the Laplace smoothing.
    """

    codebook: Tensor

    def __init__(
        self,
        codes: int,
        dim: int,
        codebook: Literal["ema", "gradient"] = "ema",
        decay: float = 0.99,
        restart: float = 0.1,
        epsilon: float = 1e-5,
    ) -> None:
        super().__init__()
        self.decay, self.restart, self.epsilon = decay, restart, epsilon
        bound = (3 / dim) ** 0.5
        start = torch.empty(codes, dim).uniform_(-bound, bound)
        if codebook == "ema":
            self.register_buffer("codebook", start)
        else:
            self.codebook = nn.Parameter(start)
        self.averaged = codebook == "ema"
        self.statistics = Statistics(codes, dim)
        self._pending: _Pending | None = None

    def forward(self, z: Tensor, rng: Rng | None = None) -> Quantised:
        """Quantise `z` `(N, D, *grid)`; while training, gather statistics (candidates for restarts need `rng`)."""
        with core.full_precision(z.device):
            wide = z.to(self.codebook.dtype)
            codes = self.nearest(wide)
            chosen = self.lookup(codes)
            if self.training:
                self._gather(wide.detach(), codes, rng)
            return Quantised(
                values=chosen.detach() + (wide - wide.detach()),  # exactly the code, the gradient of z
                codes=codes,
                commitment=(wide - chosen.detach()).square().flatten(1).mean(1),
                codebook=(wide.detach() - chosen).square().flatten(1).mean(1),
            )

    def nearest(self, z: Tensor) -> Tensor:
        """The codes `(N, *grid)` of `z` `(N, D, *grid)`."""
        with core.full_precision(z.device), torch.no_grad():
            rows = z.to(self.codebook.dtype).movedim(1, -1)
            return assign(rows.flatten(0, -2), self.codebook).view(rows.shape[:-1])

    def lookup(self, codes: Tensor) -> Tensor:
        """The vectors `(N, D, *grid)` of codes `(N, *grid)`."""
        return nn.functional.embedding(codes, self.codebook).movedim(-1, 1)

    @torch.no_grad()
    def initialise(self, vectors: Tensor, rng: Rng, epoch: int = 0) -> None:
        """Codes from encoder outputs `(M, D)` by k-means; `epoch` is the number of vectors in a pass over the data."""
        self.codebook.copy_(kmeans(vectors.to(self.codebook), len(self.codebook), rng))
        self.statistics.epoch.fill_(epoch)

    @torch.no_grad()
    def update(self) -> None:
        """Apply what was gathered since the last call: averages, codes, restarts. Every process must call it."""
        pending, self._pending = self._pending or self._nothing(), None
        with core.full_precision(self.codebook.device):
            counts, sums = core.all_reduce(pending.counts), core.all_reduce(pending.sums)
            if not counts.any():
                return
            self.statistics.add(counts, sums, self.decay)
            if self.averaged:
                self._form()
            if self.restart > 0 and int(self.statistics.steps) * (1 - self.decay) >= 1:
                self._restart(pending)

    def usage(self) -> tuple[Tensor, Tensor]:
        """Perplexity and share of codes in use, counted over the last whole epoch (before that: since the start)."""
        return self.statistics.now(None if self._pending is None else self._pending.counts)

    def _nothing(self) -> _Pending:
        book = self.codebook.detach()
        zeros = torch.zeros_like(book)
        return _Pending(zeros[:, 0].clone(), zeros, torch.full_like(zeros[:, 0], torch.inf), zeros.clone())

    @torch.no_grad()
    def _gather(self, z: Tensor, codes: Tensor, rng: Rng | None) -> None:
        pending = self._pending = self._pending or self._nothing()
        rows = z.movedim(1, -1).flatten(0, -2)
        counts, sums = _totals(rows, codes.flatten(), len(self.codebook))
        pending.counts += counts
        pending.sums += sums
        if rng is None or self.restart == 0:
            return
        keys = rng.at("restart").uniform((len(z), codes[0].numel())).to(z).flatten()
        pending.keys, pending.vectors = _least(
            torch.cat([pending.keys, keys]), torch.cat([pending.vectors, rows]), len(self.codebook)
        )

    def _form(self) -> None:
        stats, mass = self.statistics, self.statistics.mass(self.decay)
        counts, sums = stats.counts / mass, stats.sums / mass
        total = counts.sum()
        smooth = (counts + self.epsilon) * (total / (total + len(counts) * self.epsilon))
        self.codebook.copy_(torch.where(counts[:, None] > 0, sums / smooth[:, None], self.codebook))

    def _restart(self, pending: _Pending) -> None:
        stats = self.statistics
        even = stats.counts.mean()
        dead = (stats.counts < self.restart * even).nonzero().flatten()  # the same on every process
        if not len(dead):
            return
        vectors = self._candidates(pending)[: len(dead)]
        dead = dead[: len(vectors)]
        self.codebook[dead] = vectors
        stats.counts[dead] = even
        stats.sums[dead] = even * vectors

    def _candidates(self, pending: _Pending) -> Tensor:
        """The candidates of all processes in one order, the same everywhere."""
        here = core.world()
        keys = pending.keys.new_zeros(here.size, *pending.keys.shape)
        vectors = pending.vectors.new_zeros(here.size, *pending.vectors.shape)
        keys[here.rank], vectors[here.rank] = pending.keys, pending.vectors
        merged, rows = _least(
            core.all_reduce(keys).flatten(), core.all_reduce(vectors).flatten(0, 1), len(self.codebook)
        )
        return rows[merged.isfinite()]


def assign(rows: Tensor, codebook: Tensor) -> Tensor:
    """The index `(M,)` of the nearest code of each row `(M, D)`."""
    half = codebook.square().sum(1) / 2
    return torch.cat([(half - part @ codebook.T).argmin(1) for part in rows.split(1 << 15)])


def perplexity(counts: Tensor) -> Tensor:
    """exp of the entropy of accumulated counts `(K,)`: how many codes are in even use; in [1, K]."""
    p = counts.float() / counts.sum()
    return torch.special.entr(p).sum().exp()


def kmeans(vectors: Tensor, codes: int, rng: Rng, rounds: int = 10) -> Tensor:
    """`codes` centres of `vectors` `(M, D)` by Lloyd's algorithm; an empty cluster moves to the worst-served vector."""
    order = rng.at("kmeans").uniform((1, len(vectors)))[0].argsort().to(vectors.device)
    picks = torch.arange(codes, device=vectors.device) % len(vectors)
    centres = vectors[order[picks]]
    for _ in range(rounds):
        nearest = assign(vectors, centres)
        counts, sums = _totals(vectors, nearest, codes)
        empty = (counts == 0).nonzero().flatten()[: len(vectors)]
        far = (vectors - centres[nearest]).square().sum(1).topk(len(empty)).indices
        centres = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], centres)
        centres[empty] = vectors[far]
    return centres


def _totals(rows: Tensor, codes: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """How many rows took each code, and their sum; by matrix product, which is deterministic on every device."""
    counts, sums = rows.new_zeros(size), rows.new_zeros(size, rows.shape[1])
    for part, chosen in zip(rows.split(1 << 15), codes.split(1 << 15), strict=True):
        hot = nn.functional.one_hot(chosen, size).to(rows.dtype)
        counts += hot.sum(0)
        sums += hot.T @ part
    return counts, sums


def _least(keys: Tensor, rows: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The rows with the `most` smallest keys, ascending."""
    kept, where = keys.topk(min(most, len(keys)), largest=False)
    return kept, rows[where]
