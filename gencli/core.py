"""The types that every part of gencli shares: fields and specs, random numbers, turns and phases, models and what they offer.

Data flows one way: `uint8 data -> codecs.encode, draw -> Batch -> model(batch, turn) -> Losses`, and back from a sampler
through `codecs.decode`. A sampler needs only one of four interfaces: `Denoiser`, `NextToken`, `TokenDenoiser`,
`LatentVariable`.
"""

from __future__ import annotations

import atexit
import contextlib
import datetime
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from gencli.config import Component
from gencli.errors import GencliError
from gencli.launch import World

Batch = dict[str, Tensor]
"""`x` is the data in model space, `(N, *spec.x.shape)`; the other keys are conditions (`label`, `text`, `image`, `mask`)."""

Losses = dict[str, Tensor]
"""`loss` is minimised; others are logged; `each` `(N,)` is the loss of each sample, `weight` the number of terms in `loss`."""


@dataclass(frozen=True)
class Field:
    """What one key of a batch holds, without the batch dimension.

    Args:
        kind: `image`, `points`, `codes`, `tokens`, `label`, `latent`, …
        shape: of one item; `()` for a label.
        vocab: number of values of a discrete field, and of the grid a continuous one was made from (256 for 8 bits).
        range: least and greatest value of a continuous field, None when unbounded (latents).
        rate: samples per second of audio, frames per second of video.
        ragged: items differ in length.
        names: what the values of a label are called.
    """

    kind: str
    shape: tuple[int, ...]
    vocab: int | None = None
    range: tuple[float, float] | None = None
    rate: float | None = None
    ragged: bool = False
    names: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Number of values in one item."""
        return int(torch.Size(self.shape).numel())


@dataclass(frozen=True)
class Spec:
    """What a batch holds: the data `x` and the conditions; their keys are the batch's keys."""

    x: Field
    cond: Mapping[str, Field] = field(default_factory=dict)


def mix(*keys: object) -> int:
    """A 63-bit seed from any keys, the same on every machine."""
    digest = hashlib.blake2b(repr(keys).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class Rng:
    """Random numbers that depend on keys and rows, never on how the work is split.

    In training one generator draws the rows of the *global* batch and returns this process's micro-batch's rows, so that
    1×64, 2×32 and two processes see the same numbers. In sampling every row owns a generator, so that sample i is the
    same whatever else is in its batch. The first dimension of every shape is the row.
    """

    def __init__(
        self, keys: Sequence[tuple[object, ...]], rows: range | None, total: int, device: torch.device | str
    ) -> None:
        self._keys = list(keys)
        self._rows = rows
        self._total = total
        self.device = torch.device(device)
        where = self.device if rows is not None else torch.device("cpu")
        self._generators = [torch.Generator(where).manual_seed(mix(*key)) for key in self._keys]

    @classmethod
    def batch(cls, *key: object, total: int, rows: range | None = None, device: torch.device | str = "cpu") -> Rng:
        """For training: draws `total` rows and returns `rows` of them (all by default)."""
        return cls([key], rows if rows is not None else range(total), total, device)

    @classmethod
    def rows(cls, seeds: Sequence[int], device: torch.device | str = "cpu") -> Rng:
        """For sampling: row i draws from its own seed, on the CPU, and the result is moved to `device`."""
        return cls([(int(seed),) for seed in seeds], None, len(seeds), device)

    def __len__(self) -> int:
        return len(self._rows) if self._rows is not None else self._total

    def at(self, *keys: object) -> Rng:
        """An independent stream for the same rows; the same keys always give the same stream."""
        return Rng([(*key, *keys) for key in self._keys], self._rows, self._total, self.device)

    def normal(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal numbers."""
        return self._draw(shape, lambda size, g: torch.randn(size, generator=g, device=g.device, dtype=dtype))

    def uniform(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Uniform numbers in [0, 1)."""
        return self._draw(shape, lambda size, g: torch.rand(size, generator=g, device=g.device, dtype=dtype))

    def integers(self, shape: Sequence[int], high: int) -> Tensor:
        """Whole numbers in [0, high)."""
        return self._draw(shape, lambda size, g: torch.randint(high, size, generator=g, device=g.device))

    def stratified(self, n: int) -> Tensor:
        """Uniform numbers `(n,)` in [0, 1), evenly over the global batch: (u + row / rows) mod 1, one u for all.

        Rows with seeds of their own draw each for itself.
        """
        if self._rows is None:
            return self.uniform((n,))
        first = self._draw((n,), lambda size, g: torch.rand(1, generator=g, device=g.device).expand(size))
        return (first + self.places / self._total) % 1

    @property
    def places(self) -> Tensor:
        """Which rows of the global batch these are `(N,)`; rows with seeds of their own are counted from 0."""
        rows = range(self._total) if self._rows is None else self._rows
        return torch.arange(rows.start, rows.stop, device=self.device)

    def multinomial(self, p: Tensor, u: Tensor | None = None) -> Tensor:
        """One draw `(N,)` from each row of probabilities `(N, K)`, by inversion of `u` (drawn if not given) in float64."""
        edges = p.double().cumsum(-1)
        drawn_u = self.uniform((len(p),), torch.float64).to(p.device) if u is None else u
        drawn = torch.searchsorted(edges, (drawn_u * edges[:, -1])[:, None], right=True).squeeze(-1)
        last = p.shape[-1] - 1 - (p.flip(-1) > 0).long().argmax(-1)  # rounding never picks a value of probability zero
        return torch.minimum(drawn, last)

    def _draw(self, shape: Sequence[int], draw: Any) -> Tensor:
        rows, *rest = shape
        assert rows == len(self), f"asked for {rows} rows of an Rng of {len(self)}"
        if self._rows is None:
            made = (
                torch.stack([draw(rest, g) for g in self._generators]) if rows else draw([0, *rest], torch.Generator())
            )
            return made.to(self.device)
        made = draw([self._total, *rest], self._generators[0])
        return made[self._rows.start : self._rows.stop]


@dataclass(frozen=True)
class Turn:
    """One phase's turn in one optimiser step: its name, how many turns it has had, how many it will have, its randomness."""

    phase: str
    step: int
    steps: int
    rng: Rng


@dataclass(frozen=True)
class Phase:
    """What is trained together and how often; one optimiser per phase unless `shares` names another's.

    Args:
        name: unique within the model.
        modules: whose parameters with `requires_grad` are trained; taken once, by name, before wrapping. A phase without
            modules has no optimiser: its loss only gathers statistics.
        every: the phase runs when `step % every == 0`.
        optim: settings that override the run's optimiser settings.
        shares: the phase whose optimiser this one steps.
        restarts: turns, ascending, at which the schedule of the learning rate begins anew.
    """

    name: str
    modules: tuple[nn.Module, ...] = ()
    every: int = 1
    optim: Mapping[str, Any] = field(default_factory=dict)
    shares: str | None = None
    restarts: tuple[int, ...] = ()


class Items(Protocol):
    """What models and codecs may ask of a split of a data set."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> Batch:
        """The raw items (`x` uint8 for images) and their conditions."""


class Model(nn.Module, Component, ABC):
    """A method: a loss for training, and one of the four interfaces for sampling.

    `forward` *is* the loss, so that wrappers (several processes, autocast) see it.
    """

    training_only: ClassVar[
        tuple[str, ...]
    ] = ()  # state-dict prefixes kept in train/: not averaged, not in model.safetensors
    compilable: ClassVar[tuple[str, ...]] = ("net",)  # children compiled in place; never the loss
    shardable: ClassVar[tuple[str, ...]] = ("net",)
    couples: bool = False  # a sample's loss depends on its batch-mates (batch norm, optimal-transport pairs)

    def __init__(self, config: Any, spec: Spec) -> None:
        nn.Module.__init__(self)
        self.config = config
        self.spec = spec

    @abstractmethod
    def loss(self, batch: Batch, turn: Turn) -> Losses:
        """The loss of one turn on one micro-batch; all randomness comes from `turn.rng`."""

    def forward(self, batch: Batch, turn: Turn) -> Losses:
        """The loss, through whatever wraps the model."""
        return self.loss(batch, turn)

    def phases(self) -> list[Phase]:
        """What is trained in which order within a step."""
        return [Phase("main", (self,))]

    @classmethod
    def data_for(cls, config: Any, data: Mapping[str, Any]) -> Mapping[str, Any]:
        """The table of a run's data set, given the model's settings: another one where they say what is to be fitted."""
        return data

    def attach(self) -> None:
        """At every start: load teachers and frozen features."""

    def initialise(self, data: Iterator[Batch], count: int, rng: Rng) -> None:
        """At step 0 only, on the plain model before wrapping: what needs data (k-means, actnorm, largest distance).

        Args:
            data: encoded batches, without end.
            count: number of items in the training split.
            rng: one row.
        """

    def after_step(self, turn: Turn) -> None:
        """After the optimisers: averaged codebooks, target networks, weight clipping.

        Runs on every process, with the same `turn`: its randomness has the rows of the global batch. What a process
        gathered from its own rows is summed with `all_reduce` here.
        """

    def supplied(self, cond: Batch, rng: Rng, noise: Mapping[str, Tensor]) -> Batch:
        """The conditions of samples as the networks take them, from those that were given or drawn from a source.

        Args:
            cond: one row a sample.
            rng: of what is added to them, one row a sample.
            noise: the level σ `(N,)` of those whose source stopped `until` it, scaled to unit variance.
        """
        return cond

    def until(self, key: str) -> float:
        """The level of noise σ at which the source of a condition stops; 0 = it ends."""
        return 0.0

    @property
    def device(self) -> torch.device:
        """Where the model's parameters are."""
        return next(self.parameters()).device


class Frozen:
    """A holder of modules that never change: not saved, averaged or trained with the model, but moved with it."""

    def __init__(self, **modules: nn.Module) -> None:
        self._modules = {name: module.eval().requires_grad_(False) for name, module in modules.items()}

    def __getattr__(self, name: str) -> nn.Module:
        modules = self.__dict__.get("_modules", {})
        if name not in modules:
            raise AttributeError(name)
        return modules[name]

    def __deepcopy__(self, memo: dict[int, Any]) -> Frozen:
        return self

    def to(self, device: torch.device | str) -> Frozen:
        """Move every module."""
        for module in self._modules.values():
            module.to(device)
        return self


# --------------------------------------------------------------------------------------------------- the four interfaces


@runtime_checkable
class Denoiser(Protocol):
    """x = x0 + sigma n: an estimate of x0 at any noise level.

    `meaning` says what the estimate is: `mean` is E[x0|x], `transport` follows a coupling's velocity, `endpoint` is the
    end of a trajectory. `levels` are the trained sigmas, descending; None means any in [sigma_min, sigma_max].
    """

    meaning: Literal["mean", "transport", "endpoint"]
    levels: Tensor | None

    def denoise(self, x: Tensor, sigma: Tensor, **cond: Tensor) -> Tensor:
        """x0 from x `(N, *shape)` and sigma `()` or `(N,)`; an absent condition is the null condition."""

    def start(self, noise: Tensor, sigma: Tensor) -> Tensor:
        """Standard normal noise to x at the first level `sigma`."""


@runtime_checkable
class NextToken(Protocol):
    """p(tokens) = prod_i p(token_i | tokens before i), over `x.flatten(1)` visited in `order`."""

    order: Tensor  # (L,) position in x.flatten() of the i-th token

    def logits(self, tokens: Tensor, **cond: Tensor) -> Tensor:
        """Teacher-forced `(N, L, V)` from `(N, L)`, both in `order`; row i uses tokens before i only."""

    def start(self, n: int, **cond: Tensor) -> Any:
        """The state before the first token: a pytree of tensors, batch first, never mutated in place."""

    def next(self, token: Tensor | None, state: Any) -> tuple[Tensor, Any]:
        """Logits `(N, V)` of the next token, given the token just drawn (None before the first), and the new state."""


@runtime_checkable
class TokenDenoiser(Protocol):
    """Logits of every token from partly masked tokens (MASK = vocab)."""

    def logits_at(self, tokens: Tensor, **cond: Tensor) -> Tensor:
        """`(N, L, V)` from `(N, L)`."""


@runtime_checkable
class LatentVariable(Protocol):
    """A latent drawn from a prior, then decoded without randomness, so that one may edit z.

    Optional: `stages(z, **cond) -> list[Tensor]`, what a person should see on the way from z to x, `decode(z)` last.
    """

    def prior(self, n: int, rng: Rng, **cond: Tensor) -> Any:
        """A latent (tensor or dict of tensors); all randomness is drawn here."""

    def decode(self, z: Any, **cond: Tensor) -> Tensor:
        """x from a latent."""


# ------------------------------------------------------------------------------------------------------------- abilities


@runtime_checkable
class Likelihood(Protocol):
    """log p(x) in model space, exact or bounded from below.

    Optional: `estimate(samples) -> str`, what `log_prob` of that many draws is called (`ELBO`, `IWAE-64`).
    """

    likelihood: Literal["exact", "bound"]

    def log_prob(self, x: Tensor, rng: Rng, samples: int = 1, **cond: Tensor) -> Tensor:
        """`(N,)` nats."""


@runtime_checkable
class Posterior(Protocol):
    """A flat latent of independent normal numbers given x, and its prior.

    `gaussian = False` says that a draw is changed further: then `draw_posterior(*infer(x, **cond), noise)` is (z, log q).
    """

    def posterior(self, x: Tensor, **cond: Tensor) -> Any:
        """The normal numbers: `mean` and `log_var` `(N, dim)`, `draw(noise)` and `log_prob(z)`."""

    def log_prior(self, z: Tensor, **cond: Tensor) -> Tensor:
        """log p(z) `(N,)` in nats."""


@runtime_checkable
class Invertible(Protocol):
    """A map of data to noise of the same shape, with its volume, and back."""

    def forward_flow(self, x: Tensor, **cond: Tensor) -> tuple[Tensor, Tensor]:
        """z and log |det dz/dx| `(N,)`."""

    def inverse(self, z: Tensor, **cond: Tensor) -> Tensor:
        """x from z."""


@runtime_checkable
class Autoencoder(Protocol):
    """A model whose latents can serve as another model's data (a learned codec)."""

    latent: Field

    def encode(self, x: Tensor) -> Tensor:
        """Latents `(N, *latent.shape)`, without randomness."""

    def decode(self, z: Tensor) -> Tensor:
        """x from latents."""


@runtime_checkable
class Levels(Autoencoder, Protocol):
    """An autoencoder whose latents are several grids of codes, each given those above it."""

    levels: Mapping[str, Field]  # from the topmost, the coarsest, down

    def split(self, z: Tensor) -> Batch:
        """The codes `(N, *levels[name].shape)` of each level."""

    def join(self, levels: Mapping[str, Tensor]) -> Tensor:
        """The latents again; of the levels that are left out, all at the bottom, the likeliest codes."""


@runtime_checkable
class Features(Protocol):
    """A representation of data for metrics and perceptual losses."""

    def features(self, x: Tensor) -> Tensor:
        """`(N, D)`."""


@runtime_checkable
class Classifier(Protocol):
    """log p(y|x) up to a constant, at a noise level where the classifier was trained on noisy data."""

    def class_logits(self, x: Tensor, sigma: Tensor | None = None) -> Tensor:
        """`(N, classes)`."""


class Codec(Protocol):
    """A mapping between data and the space a model lives in, batch to batch; a run has a list of them."""

    def spec(self, data: Spec) -> Spec:
        """What `encode` makes of a batch with spec `data`; also tells the codec what it works on."""

    def encode(self, batch: Batch) -> Batch:
        """Deterministic; may be cached on disk."""

    def draw(self, batch: Batch, rng: Rng) -> Batch:
        """The random part of encoding, once per step: sample a posterior, dequantise."""

    def require(self, batch: Batch) -> None:
        """Refuse a batch that lacks what `decode` needs besides x."""

    def decode(self, batch: Batch) -> Batch:
        """Back to data."""

    def log_det(self, batch: Batch) -> Tensor:
        """`(N,)` log |d encode / d data| in nats at a batch of data (before `encode`), so that bits/dim is about the data."""


# --------------------------------------------------------------------------------------------------- processes, precision


T = TypeVar("T")
PATIENCE = datetime.timedelta(days=1)  # with a process that prepares data or draws; the end of one is noticed at once


def join(cpu: bool) -> None:
    """Meet the other processes that a launcher started."""
    from accelerate import PartialState

    both = {} if cpu else {"backend": "cpu:gloo,cuda:nccl"}
    PartialState(cpu=cpu, timeout=PATIENCE, **both)
    atexit.register(torch.distributed.destroy_process_group)


def world() -> World:
    """The processes that work together on this; one without a launcher."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return World(torch.distributed.get_rank(), torch.distributed.get_world_size())
    return World()


@contextlib.contextmanager
def _together() -> Iterator[None]:
    """A process that ends closes its connections, which fails here at once in all others: they end too, one of them speaks."""
    try:
        yield
    except RuntimeError as error:
        if not world().main:
            raise SystemExit(1) from error
        why = str(error).partition("\n")[0]
        raise GencliError(
            f"another process of this command ended: {why}", "what it said is above; saved states are untouched", code=1
        ) from error


def all_reduce(x: Tensor) -> Tensor:
    """The sum over processes, in place. Every process must call it, so never from a loss: only from `after_step`."""
    if world().size > 1:
        with _together():
            torch.distributed.all_reduce(x)
    return x


def greatest(value: int) -> int:
    """The greatest of the processes' numbers."""
    if world().size == 1:
        return value
    held = torch.tensor(value)
    with _together():
        torch.distributed.all_reduce(held, torch.distributed.ReduceOp.MAX)
    return int(held)


def broadcast(value: T) -> T:
    """The main process's value, on every process."""
    if world().size == 1:
        return value
    held = [value]
    with _together():
        torch.distributed.broadcast_object_list(held)
    return held[0]


@torch.no_grad()
def share(tensors: Iterable[Tensor]) -> None:
    """Make every process's tensors those of the main process."""
    if world().size > 1:
        for tensor in tensors:
            held = tensor.contiguous()
            with _together():
                torch.distributed.broadcast(held, 0)
            tensor.copy_(held)


def gather(value: T) -> list[T]:
    """The values of all processes in order, on the main process; nothing on the others."""
    here = world()
    if here.size == 1:
        return [value]
    held: list[Any] = [None] * here.size if here.main else []
    with _together():
        torch.distributed.gather_object(value, held if here.main else None)
    return held


@contextlib.contextmanager
def main_first() -> Iterator[None]:
    """The main process does the block before the others: it fills a cache that they find."""
    if not world().main:
        broadcast(None)
    yield
    if world().main:
        broadcast(None)


def full_precision(device: torch.device | str = "cpu") -> contextlib.AbstractContextManager[Any]:
    """No autocast inside: for penalties, quantisers and likelihoods."""
    return torch.autocast(torch.device(device).type, enabled=False)


def as_rows(value: Tensor, like: Tensor) -> Tensor:
    """`()` or `(N,)` shaped to broadcast over the rows of `like`."""
    return value.reshape(-1, *[1] * (like.ndim - 1))
