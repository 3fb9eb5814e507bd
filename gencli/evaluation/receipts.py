"""Receipts in words, and whether two numbers may be compared.

Two values are comparable where the same features, preprocessing, number of samples, reference, rounding and file codec made
them; weights, sampler and seeds may differ, since they are what is compared. The probability that one is better is the
normal approximation Φ((b − a) / √(se_a² + se_b²)) with standard errors from the intervals (of 25 jackknife replicates, or as
the metric states). It takes the errors as independent; a common reference makes them move together, so the truth is
rather more decided than the probability says.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch

from gencli import __version__
from gencli.bundle import Run
from gencli.metrics._base import FeatureSet, Value
from gencli.metrics._interval import T_975
from gencli.metrics._protocols import NEAREST

UNKNOWN = "unknown"
LOSSY = ("JPEG", "MPO", "JPEG2000", "WEBP", "AVIF")
DECIDING = {
    "features": "features",
    "features_fingerprint": "extractor",
    "preprocessing": "preprocessing",
    "settings": "settings of the metric",
    "data_hash": "reference",
    "split": "split of the reference",
    "reference_items": "items of the reference",
    "rounding": "rounding",
}


class Result(Protocol):
    """A value with its receipt."""

    value: Value
    receipt: dict[str, Any]


def versions() -> dict[str, str]:
    """Of what computes."""
    return {"gencli": __version__, "torch": torch.__version__, "numpy": np.__version__}


def of_making(run: Run) -> dict[str, Any]:
    """What a receipt of samples says besides their origin: how floats became what is stored, and by which versions."""
    image = run.data_spec.x.kind == "image"
    return {"rounding": NEAREST if image else "none", "versions": versions()}


def seed_ranges(seeds: Sequence[int]) -> str:
    """`[0, 1, 2, 5]` to `0-2,5`; ascending seeds."""
    runs: list[list[int]] = []
    for seed in seeds:
        if runs and seed == runs[-1][1] + 1:
            runs[-1][1] = seed
        else:
            runs.append([seed, seed])
    return ",".join(f"{low}-{high}" if high > low else f"{low}" for low, high in runs)


def lossy(codecs: Counter[str] | Sequence[str]) -> set[str]:
    """The formats among them that may change pixels."""
    return {codec for codec in codecs if codec in LOSSY}


def lossy_words(codec: str) -> set[str]:
    """The same from a receipt's words."""
    return lossy([part.split(" ")[0] for part in codec.split(", ")])


# --------------------------------------------------------------------------------------------------------------- comparing


def differences(a: Result, b: Result) -> list[str]:
    """Why two values must not be compared, a few words each; empty if they may."""
    made = [
        f"{what} {_short(a.receipt.get(key))} and {_short(b.receipt.get(key))}"
        for key, what in DECIDING.items()
        if a.receipt.get(key) != b.receipt.get(key)
    ]
    if a.value.n != b.value.n:
        made.append(f"N {a.value.n:,} and {b.value.n:,}")
    if a.value.name != b.value.name:
        made.append(f"metric {a.value.name} and {b.value.name}")
    if a.value.kind != b.value.kind:
        made.append(f"kind {a.value.kind} and {b.value.kind}")
    if a.value.facts.get("codec") != b.value.facts.get("codec"):
        made.append("the codes of different codecs")
    ours, theirs = (str(r.receipt.get("file_codec", UNKNOWN)) for r in (a, b))
    if lossy_words(ours) != lossy_words(theirs):
        made.append(f"file codec {ours} and {theirs}")
    return made


def standard_error(value: Value) -> float | None:
    """As the metric states it, else from the interval, whose longer side is not cut at a bound; None where unknown."""
    stated = value.facts.get("standard_error")
    if stated is not None:
        return float(stated)
    if value.interval is None:
        return None
    return max(value.value - value.interval[0], value.interval[1] - value.value) / T_975


def probability_better(a: Value, b: Value) -> float | None:
    """That a's true value is better than b's; None without intervals."""
    errors = [standard_error(value) for value in (a, b)]
    if errors[0] is None or errors[1] is None:
        return None
    gap = b.value - a.value if a.better == "lower" else a.value - b.value
    spread = math.hypot(errors[0], errors[1])
    if spread == 0:
        return 0.5 if gap == 0 else float(gap > 0)
    return 0.5 * (1 + math.erf(gap / spread / math.sqrt(2)))


def only_seeds_differ(configs: Sequence[Mapping[str, Any]]) -> bool:
    """Whether runs are the same training with different seeds, for as many steps on the same data."""
    if len(configs) < 2:
        return False
    alike, seeds = set(), []
    for config in configs:
        recipe = json.loads(json.dumps(config["recipe"], default=str))
        seeds.append(recipe.get("train", {}).pop("seed", None))
        alike.add(json.dumps([recipe, config["data"]["hash"], config.get("step")], sort_keys=True))
    return len(alike) == 1 and len(set(seeds)) == len(seeds)


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation of a metric over training seeds."""

    metric: str
    mean: float
    sd: float
    runs: int


def over_seeds(values: Sequence[Value]) -> Spread:
    """Of the same metric, one value a training."""
    x = np.array([value.value for value in values])
    return Spread(values[0].name, float(x.mean()), float(x.std(ddof=1)), len(x))


def halves(real: FeatureSet, seed: int = 0) -> tuple[FeatureSet, FeatureSet]:
    """Two random halves of equal size, the same ones every time; one item is left out of an odd number."""
    order = np.random.default_rng((seed, len(real))).permutation(len(real))
    half = len(real) // 2
    first, second = (np.sort(part) for part in (order[:half], order[half : 2 * half]))
    return replace(real, x=real.x[first]), replace(real, x=real.x[second])


# --------------------------------------------------------------------------------------------------------------- explaining

_ORDER = {
    "metric": "metric",
    "settings": "settings",
    "protocol": "protocol",
    "features": "features",
    "features_fingerprint": "fingerprint of weights and preprocessing",
    "features_sha256": "sha256 of the extractor's file",
    "preprocessing": "preprocessing",
    "data": "reference",
    "data_hash": "hash of the reference",
    "split": "split of the reference",
    "reference_items": "items of the reference",
    "reference_codec": "file codec of the reference",
    "samples": "samples",
    "images": "images",
    "content": "hash of the samples",
    "file_codec": "file codec of the samples",
    "rounding": "rounding of the samples",
    "run": "run",
    "weights": "hash of the weights",
    "averaged": "weights",
    "step": "training steps",
    "sampler": "sampler",
    "network_evaluations": "network evaluations",
    "guidance": "guidance",
    "seeds": "seeds",
    "labels": "labels",
    "exact": "exact",
    "batch": "computed together",
    "precision": "precision",
    "device": "device",
    "versions": "versions",
}


def explained(receipt: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A receipt as rows of words, in a fixed order, what is not foreseen last."""
    keys = [*(key for key in _ORDER if key in receipt), *(key for key in receipt if key not in _ORDER)]
    return [(_ORDER.get(key, key.replace("_", " ")), _words(key, receipt[key])) for key in keys]


def _words(key: str, value: Any) -> str:
    if key == "averaged":
        return "average over training steps (EMA)" if value else "of the last step (raw)"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_words('', inner)}" for name, inner in value.items()) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value in ("", None) else str(value)


def _short(value: Any) -> str:
    return _words("", value)
