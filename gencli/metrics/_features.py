"""Feature protocols: what network, with what preprocessing, turns images into vectors; and the cache of references.

`gencli` the bundled network (default) · `inception` clean-fid's protocol · `dinov2` and `clip` with their published weights ·
`random` a seeded untrained network · `pixels` · `points` (coordinates as they are) · a PATH to weights of such a network
or to a run whose model offers features.
Distances of different protocols are not comparable, so each has a name that metrics print and a fingerprint of weights
and preprocessing that caches and receipts hold. Loading weights executes no code: safetensors, and for Inception a
TorchScript file that is opened only if its sha256 is the known one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from gencli import files, registry
from gencli.core import Classifier, Features, Rng
from gencli.data._base import Data, Split
from gencli.data._cache import limit
from gencli.errors import GencliError
from gencli.files import atomic_path
from gencli.home import CACHES, home
from gencli.metrics._base import FeatureSet, Head

NAMES = ("gencli", "inception", "dinov2", "clip", "random", "pixels", "points")
BUNDLED = Path(__file__).parent / "weights" / "gencli-features-v1.safetensors"
BATCH = 256
MOST_PIXELS = 4096


class Extractor(ABC):
    """One protocol: uint8 images `(N, C, H, W)` to features `(N, D)`.

    Attributes:
        name: printed.
        fingerprint: of weights and preprocessing, for caches and receipts.
        note: what a reader must be told.
        words: the preprocessing, for receipts.
        sha256: of the file of weights; empty where there is none.
        any_size: images of several sizes make features of one.
        least: items below which its distances mean nothing.
        head: features to logits, where a trained classifier gave the features.
    """

    name: str
    fingerprint: str
    note: str = "not comparable with Inception FID"
    words: str = ""
    sha256: str = ""
    any_size: bool = True
    least: int = 2
    head: Head | None = None

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """`(N, D)`; the same for an image whatever else is in the batch, to rounding."""

    def rows(self, batch: Tensor) -> np.ndarray:
        """Features of one batch in the network's own precision, as caches keep them."""
        with torch.no_grad():
            return np.asarray(self.features(batch).cpu().numpy())

    def together(self, parts: Sequence[np.ndarray]) -> FeatureSet:
        """The set of all rows in their order, float64."""
        if not parts:
            raise GencliError("there is nothing to evaluate: no samples", "make some with `gencli sample`")
        x = np.concatenate(parts).astype(np.float64)
        return FeatureSet(x, self.name, self.fingerprint, self.note, self.head)

    def extract(self, batches: Iterable[Tensor]) -> FeatureSet:
        """Features of all batches in their order."""
        return self.together([self.rows(batch) for batch in batches])

    def facts(self) -> dict[str, str]:
        """For receipts: what turned images into numbers, besides the name and the fingerprint."""
        return {"preprocessing": self.words, "features_sha256": self.sha256}


def extractor(
    name: str = "gencli",
    weights: Path | None = None,
    fetch: bool = False,
    device: torch.device | str = "cpu",
    protocol: str = "clean",
) -> Extractor:
    """The protocol called `name`, or of the network at the path `name`.

    Args:
        name: one of `NAMES`, or a path.
        weights: file of the Inception weights instead of the cache folder's.
        fetch: whether missing Inception weights may be fetched from the network.
        device: where the network runs.
        protocol: the convention by which images become Inception's input.
    """
    if name == "inception":
        from gencli.metrics._inception import Inception
        from gencli.metrics._protocols import named

        return Inception(weights, fetch, device, protocol=named(protocol))
    if name == "gencli":
        return Network(load_network(BUNDLED), BUNDLED.stem, device, sha256=sha256_of(BUNDLED))
    if name == "random":
        return Network(random_network(), "random-v1", device, trained=False)
    if name in ("pixels", "points"):
        return Values(name)
    if name in ("dinov2", "clip"):
        from gencli.metrics import _pretrained

        return _pretrained.Pretrained(_pretrained.beside(name), device)
    if Path(name).exists():
        return from_path(Path(name), device)
    raise registry.unknown("features", name, NAMES, "gencli list metrics")


class Network(Extractor):
    """A feature network over images in [0, 1]."""

    words = "uint8 / 255, grey, antialiased bilinear"

    def __init__(
        self, net: nn.Module, name: str, device: torch.device | str = "cpu", sha256: str = "", trained: bool = True
    ) -> None:
        assert isinstance(net, Features), f"{type(net).__name__} offers no features"
        self.head = head_of(net) if trained else None
        self.net = net.eval().requires_grad_(False).to(device)
        self.name, self.device, self.sha256 = name, torch.device(device), sha256
        self.fingerprint = digest_of(net, f"{type(net).__name__}: {self.words}")

    def features(self, images: Tensor) -> Tensor:
        return self.net.features(images.to(self.device).float() / 255)


class Values(Extractor):
    """The items themselves: pixels in [0, 1], or the coordinates of points."""

    any_size = False

    def __init__(self, name: str) -> None:
        self.name, self.fingerprint = name, f"{name}-v1"
        self.note = Extractor.note if name == "pixels" else ""
        self.words = "uint8 / 255" if name == "pixels" else "coordinates as they are"

    def features(self, images: Tensor) -> Tensor:
        flat = images.flatten(1).double()
        if self.name == "points":
            return flat
        if flat.shape[1] > MOST_PIXELS:
            raise GencliError(
                f"features 'pixels' of {tuple(images.shape[1:])} images have {flat.shape[1]} dimensions, "
                f"the most is {MOST_PIXELS}",
                "use `--features gencli` or `--features random`",
            )
        return flat / 255


class RunFeatures(Extractor):
    """The features of a run's model, behind its own codecs."""

    words = "the run's own codecs"
    any_size = False

    def __init__(self, path: Path, device: torch.device | str = "cpu") -> None:
        from gencli.bundle import Run

        self.run = Run.load(path, device)
        if not isinstance(self.run.model, Features):
            raise GencliError(
                f"the model of {path} offers no features", f"choose one of {', '.join(NAMES)} or another run"
            )
        self.head = head_of(self.run.model)
        self.name = path.resolve().name
        self.sha256 = sha256_of(path / "model.safetensors")
        recipe = json.dumps(self.run.config.get("recipe", {}), sort_keys=True)
        self.fingerprint = digest_of(self.run.model, recipe + self.run.weights_hash())  # its codec's weights too

    def features(self, images: Tensor) -> Tensor:
        batch = self.run.encode({"x": images}, Rng.rows([0] * len(images)))
        model: Any = self.run.model
        return model.features(batch["x"])


def head_of(net: nn.Module) -> Head | None:
    """What a classifier, or its network, makes of its features; None where that is no linear layer `head`."""
    last = getattr(getattr(net, "net", net), "head", None)
    if not isinstance(net, Classifier) or not isinstance(last, nn.Linear):
        return None
    return linear(last.weight, last.bias)


def linear(weight: Tensor, bias: Tensor | None = None) -> Head:
    """A linear layer `(K, D)` over features, in float64."""
    matrix = weight.detach().double().cpu().numpy()
    shift = 0.0 if bias is None else bias.detach().double().cpu().numpy()
    return lambda x: x @ matrix.T + shift


def from_path(path: Path, device: torch.device | str = "cpu") -> Extractor:
    """A run's folder, a published network's, a folder with one safetensors file, or such a file."""
    from gencli.metrics import _pretrained

    if _pretrained.kind_of(path):
        return _pretrained.Pretrained(path, device)
    if (path / "config.json").exists():
        return RunFeatures(path, device)
    found = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if len(found) != 1:
        raise GencliError(f"{path} holds {len(found)} safetensors files, one is needed", "give the file itself")
    net = load_network(found[0])
    made = Network(net, found[0].stem, device, sha256_of(found[0]))
    made.name = f"{found[0].stem}-{made.fingerprint[:8]}"  # two files may share a name
    return made


def load_network(path: Path) -> nn.Module:
    """A feature network from safetensors whose header names the network and its settings."""
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            state = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118  (not a dict)
    except (SafetensorError, OSError) as error:
        raise GencliError(f"{path} is not a readable safetensors file: {error}", "copy or make it again") from error
    if "network" not in header:
        raise GencliError(f"{path} does not say which network its weights are for", "give weights of a feature network")
    cls = registry.load("networks", header["network"])
    if getattr(cls, "role", None) != "features":
        raise GencliError(f"{path} holds a '{header['network']}', which gives no features", "give a feature network")
    net = cls.make(json.loads(header.get("settings", "{}")))
    missing, extra = net.load_state_dict(state, strict=False)
    lost = [key for key in missing if not key.endswith("num_batches_tracked")]
    if lost or extra:
        raise GencliError(
            f"{path} does not fit its network: {len(lost)} tensors missing, {len(extra)} unknown", "make it again"
        )
    return net


def random_network(seed: int = 0) -> nn.Module:
    """An untrained feature network, the same on every machine."""
    net: nn.Module = registry.load("networks", "feature-net").make()
    rng = torch.Generator().manual_seed(seed)
    for key, value in net.named_parameters():
        if value.ndim > 1:
            value.data = torch.randn(value.shape, generator=rng) * (2 / value[0].numel()) ** 0.5
        else:
            value.data.fill_(0.0 if key.endswith("bias") else 1.0)
    return net


def sha256_of(path: Path) -> str:
    """Of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(net: nn.Module, protocol: str) -> str:
    """A hash of weights and preprocessing."""
    made = hashlib.sha256(protocol.encode())
    for key, value in sorted(net.state_dict().items()):
        made.update(key.encode() + str(tuple(value.shape)).encode() + value.cpu().contiguous().numpy().tobytes())
    return made.hexdigest()[:16]


# ------------------------------------------------------------------------------------------------------------ references


def reference(data: Data, split: str, by: Extractor, n: int | None = None, batch_size: int = BATCH) -> FeatureSet:
    """Features of `n` items of a split (all by default), from the cache where they were extracted before.

    A smaller `n` takes a fixed random subset. The key holds the data's content, so a changed folder is never served
    old features; nothing is augmented or shuffled.
    """
    items = data.split(split)
    count = len(items) if n is None else min(n, len(items))
    path = cache_path(data, split, by, count)
    if path.exists():
        return by.together([read_kept(path)])
    indices = subset(len(items), count, data.hash)
    return _kept(path, by, items, indices, batch_size)


def reference_part(data: Data, split: str, by: Extractor, indices: np.ndarray) -> FeatureSet:
    """Features of the items of a split at some indices, from the cache where these or all were extracted before."""
    items = data.split(split)
    if len(indices) == len(items) or cache_path(data, split, by, len(items)).exists():
        whole = reference(data, split, by)
        return replace(whole, x=whole.x[indices])
    which = hashlib.sha256(indices.astype("<i8").tobytes()).hexdigest()[:16]
    path = cache_path(data, split, by, len(indices), which)
    return by.together([read_kept(path)]) if path.exists() else _kept(path, by, items, indices, BATCH)


def _kept(path: Path, by: Extractor, items: Split, indices: np.ndarray, batch_size: int) -> FeatureSet:
    made = by.extract(in_batches(items, indices, batch_size))
    keep(path, made.x)
    make_room(path)
    return made


def cache_path(data: Data, split: str, by: Extractor, count: int, which: str = "") -> Path:
    """Where the features of `count` items are kept, or of those that `which` is a digest of."""
    key = json.dumps([data.hash, split, by.name, by.fingerprint, count, *([which] if which else [])])
    return home() / "cache" / "features" / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.npy"


def subset(total: int, count: int, key: str) -> np.ndarray:
    """`count` of `total` indices, ascending: the same ones for the same data."""
    if count >= total:
        return np.arange(total)
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
    return np.sort(np.random.default_rng(seed).choice(total, count, replace=False))


def in_batches(items: Split, indices: np.ndarray, batch_size: int = BATCH) -> Iterator[Tensor]:
    """The items' `x`, batch by batch."""
    for part in torch.from_numpy(indices).split(batch_size):
        yield items.batch(part)["x"]


def keep(path: Path, rows: np.ndarray) -> None:
    """Write features into the cache."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, rows)


def make_room(latest: Path) -> None:
    """Delete the sets of features used longest ago, but not the latest one, until all fit: `$GENCLI_CACHE_GB`, else 20 GB."""
    (cache,) = (cache for cache in CACHES if cache.name == "features")
    others = [place for place in cache.items if place != latest and place.name[0] != "."]
    files.make_room(others, limit() - files.space(latest).size)


def used(place: Path) -> None:
    """Mark a set of features as used now."""
    with contextlib.suppress(OSError):  # a read-only cache is still a cache
        os.utime(place)


def read_kept(path: Path) -> Any:
    """Features from the cache.

    Raises:
        GencliError: the file is damaged.
    """
    try:
        used(path)
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise GencliError(f"cached features are damaged: {path}: {error}", f"delete {path}") from error
