"""What every metric is: metrics of samples compare features of two sets, metrics of models ask a model about data."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from gencli.config import Component
from gencli.core import Batch, Codec, Field, Items, Model, Rng, Spec, mix
from gencli.errors import GencliError

Better = Literal["lower", "higher"]
Head = Callable[[np.ndarray], np.ndarray]  # features (N, D) to logits (N, K)


@dataclass(frozen=True)
class Value:
    """One measured number and what must be known to read it.

    Args:
        name: as printed and stored, with the protocol in brackets: `fid[gencli-features-v1]`.
        value: the number.
        interval: 95 % for the sampling noise of one checkpoint; it contains the value. None where it is not known.
        n: number of samples or items behind the number.
        unit: `bits/dim`, `dB`; empty for a pure number.
        better: which direction is better.
        kind: `exact` or `bound` for likelihoods, else empty.
        note: what a reader must be told, one line.
        facts: what the receipt stores besides.
    """

    name: str
    value: float
    interval: tuple[float, float] | None
    n: int
    better: Better
    unit: str = ""
    kind: str = ""
    note: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class FeatureSet:
    """Features of one set of items, extracted once and shared by metrics.

    Args:
        x: `(N, D)` float64.
        extractor: the protocol's public name, which metrics print.
        fingerprint: of the extractor's weights and preprocessing.
        note: what a reader must be told about the extractor.
        head: a trained classifier's last layer, features to logits; None where the extractor knows no classes.
    """

    x: np.ndarray
    extractor: str
    fingerprint: str = ""
    note: str = ""
    head: Head | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        assert self.x.ndim == 2 and self.x.dtype == np.float64, f"features are {self.x.dtype} {self.x.shape}"
        if not np.isfinite(self.x).all():
            bad = int((~np.isfinite(self.x)).any(1).sum())
            raise GencliError(f"{bad} of {len(self.x)} items have features that are not finite", "check the samples")

    def __len__(self) -> int:
        return len(self.x)

    @property
    def size(self) -> int:
        """Length of a feature vector."""
        return self.x.shape[1]

    def unit(self) -> np.ndarray:
        """The vectors `(N, D)` at length one."""
        length = np.linalg.norm(self.x, axis=1, keepdims=True)
        if not length.all():
            zero = int((length == 0).sum())
            raise GencliError(
                f"{zero} of {len(self)} items have features {self.extractor} that are all zero: they have no direction",
                "use other `--features`",
            )
        return self.x / length


class SampleMetric(Component):
    """A metric of samples: `real` is the reference, `fake` what a model made."""

    kinds: ClassVar[tuple[str, ...]] = ("image",)

    @abstractmethod
    def __call__(self, real: FeatureSet, fake: FeatureSet) -> list[Value] | Value:
        """The values; raises `GencliError` where the sets cannot be compared."""

    def least(self, real: FeatureSet) -> int:
        """Items of either set below which the metric says nothing, for features like the reference's."""
        return 2

    def foresee(self, real: FeatureSet, n: int) -> None:
        """Refuse what would be refused once n samples are there, before they are drawn."""
        self._enough(("reference", len(real)), ("samples", n), least=self.least(real))

    @staticmethod
    def _enough(*sets: tuple[str, int], least: int) -> None:
        for what, count in sets:
            if count < least:
                raise GencliError(f"the {what} hold {count} items, at least {least} are needed", "raise `-n`")

    def check(self, real: FeatureSet, fake: FeatureSet) -> None:
        """Refuse sets of different features, and sets too small to say anything."""
        if (real.extractor, real.fingerprint, real.size) != (fake.extractor, fake.fingerprint, fake.size):
            raise GencliError(
                f"features differ: the reference has {real.extractor} of size {real.size}, "
                f"the samples have {fake.extractor} of size {fake.size}",
                "extract both with the same `--features` and at the same size",
            )
        self._enough(("reference", len(real)), ("samples", len(fake)), least=self.least(real))


class Run(Protocol):
    """What metrics of models may ask of a trained run."""

    model: Model
    codecs: list[Codec]
    spec: Spec

    def encode(self, batch: Batch, rng: Rng) -> Batch:
        """Data to model space: every codec's `encode`, then its `draw`."""

    def decode(self, batch: Batch) -> Batch:
        """Model space to data."""

    def sample(self, rng: Rng, cond: Batch | None = None) -> Batch:
        """Samples in data space by the run's own sampler, one a row of `rng`."""


class ModelMetric(Component):
    """A metric of a model that asks an ability of it and judges it on held-out items."""

    needs: ClassVar[type[Any]]

    @abstractmethod
    def __call__(
        self, run: Run, data: Items, rng: Rng, n: int | None = None, batch_size: int = 64
    ) -> list[Value] | Value:
        """Values over `n` items spread evenly over `data` (all by default); the same at any batch size."""

    def check(self, run: Run) -> None:
        """Refuse a model without the ability."""
        if not isinstance(run.model, self.needs):
            metric = self.public_name()
            raise GencliError(
                f"metric '{metric}' needs a model that offers {self.needs.__name__}, "
                f"{type(run.model).__name__} does not",
                "see `gencli list models` for what each offers",
            )


class Seen:
    """Items one by one, and their features, which are extracted when they are first asked for.

    Args:
        items: one by one.
        extract: features of all.
        part: features of those at some indices alone; None = all are extracted.
    """

    def __init__(
        self, items: Items, extract: Callable[[], FeatureSet], part: Callable[[Tensor], FeatureSet] | None = None
    ) -> None:
        self.items = items
        self._extract, self._part = extract, part

    def __len__(self) -> int:
        return len(self.items)

    @cached_property
    def features(self) -> FeatureSet:
        """One row an item, in their order."""
        return self._extract()

    def features_of(self, indices: Tensor) -> FeatureSet:
        """Of some items, without the others' where those were not asked for."""
        if self._part is not None and "features" not in self.__dict__:
            return self._part(indices)
        return replace(self.features, x=self.features.x[indices.numpy()])


@dataclass(frozen=True)
class Evidence:
    """What a metric of items may look at.

    Args:
        train: the items that the model was trained on.
        test: items of the same data that it was not.
        samples: what it made, as raw items with the labels that were asked for; None for a metric that needs none.
        run: None where the samples come from a folder.
        classes: what the labels are.
        seed: of whatever the metric draws.
        batch_size: items computed together.
    """

    train: Seen
    test: Seen
    samples: Seen | None = None
    run: Run | None = None
    classes: Field | None = None
    seed: int = 0
    batch_size: int = 64

    def drawn(self) -> Seen:
        """The samples, for a metric that `draws`."""
        assert self.samples is not None, "a metric that draws is given samples"
        return self.samples


class ItemMetric(Component):
    """A metric that looks at single items: samples beside what the model was trained on and what it was not."""

    kinds: ClassVar[tuple[str, ...]] = ("image",)
    draws: ClassVar[bool] = True  # whether it looks at samples
    needs: ClassVar[tuple[type[Any], ...]] = ()  # abilities, one of which the model must have

    def foresee(self, classes: Field | None) -> None:
        """Refuse, before samples are drawn, what would be refused once they are; `classes` are those asked for."""
        return

    @abstractmethod
    def __call__(self, evidence: Evidence) -> list[Value] | Value:
        """The values; raises `GencliError` where there is too little to say anything."""


def base_seed(rng: Rng, *key: object) -> int:
    """One whole number from a stream of any number of rows."""
    return int(rng.at(*key).integers((len(rng),), 2**62)[0])


def item_rows(seed: int, indices: Tensor, model: Model) -> Rng:
    """A stream for each item that depends on its index only, so that the batch size changes nothing."""
    return Rng.rows([mix(seed, int(i)) for i in indices], model.device)


def on_device(batch: Batch, model: Model) -> Batch:
    """The batch where the model is."""
    return {key: value.to(model.device) for key, value in batch.items()}


def conditions(run: Run, batch: Batch) -> Batch:
    """The keys of an encoded batch that the model takes as conditions."""
    return {key: batch[key] for key in run.model.spec.cond if key in batch}


def spread(total: int, n: int | None) -> Tensor:
    """Indices of `n` of `total` items (all by default), spread evenly since a split may be sorted."""
    count = total if n is None else min(n, total)
    if count < 1:
        raise GencliError(f"asked for {count} items of {total}", "give `-n` 1 or more")
    return torch.arange(count) * total // count


Spread = tuple[float, float | None, tuple[float, float] | None]


def mean_with_error(values: Sequence[float] | np.ndarray) -> Spread:
    """Mean, standard error and 95 % interval (Student's t) of independent values; the mean alone of a single one."""
    from scipy.stats import t

    x = np.asarray(values, dtype=np.float64)
    mean = float(x.mean())
    if len(x) < 2:
        return mean, None, None
    error = float(x.std(ddof=1) / np.sqrt(len(x)))
    half = float(t.ppf(0.975, len(x) - 1)) * error
    return mean, error, (mean - half, mean + half)
