"""An independent judge of class-conditional samples, with controls that must fail where a model passes.

    python -m benchmarks.judge SAMPLES_DIR --data digits

The judge is no part of training or of gencli's features: for digits a support vector machine (RBF) on raw pixels,
for Fashion-MNIST a small network of another architecture and seed, trained when first needed and kept in the cache.

accuracy      share of samples that the judge classifies as asked
recognisable  share whose best class leads by as much as it does for nine in ten held-out images: needs no labels
recall        share of held-out images inside the samples' manifold (k = 3, gencli's features); precision the other way
novelty       median distance of samples to the nearest training image, over that of held-out images; 1 = as new as those

Controls, which must fail the bar: samples of one Gaussian with the mean and full covariance of all images, and the output
of an untrained network. A Gaussian for each class is shown beside them but is no control: on 8×8 digits enlarged to 16×16
it is a good model, and the judge recognises nearly all of its samples.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks._images import Labelled, digits, fashion, samples
from gencli.errors import GencliError
from gencli.files import atomic_path
from gencli.home import home
from gencli.metrics._features import extractor
from gencli.metrics.precision_recall import distances, precision_recall

Data = Literal["digits", "digits-8x8", "fashion-mnist"]
READ: dict[Data, Callable[[str], Labelled]] = {
    "digits": digits,
    "digits-8x8": partial(digits, side=8),
    "fashion-mnist": fashion,
}
BAR = {"accuracy": 0.75, "recognisable": 0.6, "precision": 0.3, "recall": 0.3, "novelty": 0.9}

LEAST = 0.90  # accuracy on test images, below which a network is no judge


@cache
def real(data: Data, split: str) -> Labelled:
    """The real images and labels of a split."""
    if data not in READ:
        raise GencliError(f"no judge for '{data}'", f"choose one of {', '.join(READ)}")
    return READ[data](split)


# ------------------------------------------------------------------------------------------------------------- the judges


def judge(images: Tensor, labels: Tensor, data: Data) -> float:
    """Share of uint8 images `(N, 1, H, W)` that are classified as `labels` say."""
    return float((classify(images, data) == labels).double().mean())


def classify(images: Tensor, data: Data) -> Tensor:
    """`(N,)` the class that the judge sees."""
    return scores(images, data).argmax(1)


def recognisable(images: Tensor, data: Data) -> float:
    """Share of images whose best class leads the next by at least what it does for nine in ten held-out images."""
    least = _lead(real(data, "test")[0], data).quantile(0.1)
    return float((_lead(images, data) >= least).double().mean())


def _lead(images: Tensor, data: Data) -> Tensor:
    best = scores(images, data).topk(2, dim=1).values
    return best[:, 0] - best[:, 1]


def scores(images: Tensor, data: Data) -> Tensor:
    """`(N, 10)` of every class, the greatest for the one that the judge sees."""
    side = real(data, "train")[0].shape[-1]
    if images.shape[1:] != (1, side, side):
        raise GencliError(f"the judge of {data} takes images (1, {side}, {side}), these are {tuple(images.shape[1:])}")
    if data != "fashion-mnist":
        return torch.from_numpy(_machine(data).decision_function(_rows(images)))
    net = _network()
    with torch.no_grad():
        return torch.cat([net(part.float() / 255) for part in images.split(500)])


def _rows(images: Tensor) -> np.ndarray:
    return images.flatten(1).numpy() / 255


@cache
def _machine(data: Data) -> Any:
    from sklearn.svm import SVC

    images, labels = real(data, "train")
    return SVC(kernel="rbf", C=10, gamma="scale").fit(_rows(images), labels.numpy())


class Judge(nn.Module):
    """Two 5×5 convolutions with batch normalisation and max pooling, and a hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(1, 24, 5, padding=2), nn.BatchNorm2d(24), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(24, 48, 5, padding=2), nn.BatchNorm2d(48), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(48 * 49, 128), nn.ReLU(), nn.Dropout(0.3), nn.Linear(128, 10)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Class logits of images in [0, 1]."""
        return self.layers(x)


@cache
def _network() -> Judge:
    path = home() / "judge" / "fashion-mnist-v1.safetensors"
    net = Judge()
    if path.exists():
        net.load_state_dict(load_file(path))
        return net.eval()
    _train(net, epochs=4)
    images, labels = real("fashion-mnist", "test")
    with torch.no_grad():
        found = torch.cat([net(part.float() / 255).argmax(1) for part in images.split(500)])
    share = float((found == labels).double().mean())
    assert share >= LEAST, f"the judge classifies {share:.1%} of the test images, {LEAST:.0%} are needed"
    with atomic_path(path) as temporary:
        save_file(net.state_dict(), temporary)
    return net


def _train(net: Judge, epochs: int) -> None:
    rng = torch.Generator().manual_seed(20)
    torch.manual_seed(20)
    for layer in net.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.reset_parameters()
    images, labels = real("fashion-mnist", "train")
    optimiser = torch.optim.Adam(net.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=epochs * (len(images) // 100))
    net.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(images), generator=rng).split(100):
            loss = F.cross_entropy(net(images[rows].float() / 255), labels[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    net.eval()


# ---------------------------------------------------------------------------------------------------- recall and novelty


def manifold(images: Tensor, data: Data) -> tuple[float, float]:
    """Precision and recall against as many held-out images."""
    held_out = real(data, "test")[0]
    by = extractor("gencli")
    count = min(len(images), len(held_out))
    pick = torch.randperm(len(held_out), generator=torch.Generator().manual_seed(0))[:count]
    return precision_recall(by.extract(held_out[pick].split(256)).x, by.extract(images.split(256)).x)


def novelty(images: Tensor, data: Data, most: int = 1000) -> float:
    """Median distance to the nearest training image, relative to that of held-out images; below 1 = closer than those."""
    train, held_out = (real(data, split)[0] for split in ("train", "test"))
    return float(np.median(_nearest(images[:most], train)) / np.median(_nearest(held_out[:most], train)))


def _nearest(images: Tensor, among: Tensor) -> np.ndarray:
    parts = [distances(_rows(images), _rows(part)).min(1) for part in among.split(5000)]
    return np.min(parts, axis=0)


def verdict(images: Tensor, labels: Tensor, data: Data) -> dict[str, float]:
    """Every figure of the judge; accuracy only where labels were asked for."""
    precision, recall = manifold(images, data)
    made = {"n": float(len(images)), "recognisable": recognisable(images, data)}
    made |= {"precision": precision, "recall": recall, "novelty": novelty(images, data)}
    return made if (labels < 0).all() else {"accuracy": judge(images, labels, data), **made}


def passes(found: dict[str, float], bar: dict[str, float] | None = None) -> bool:
    """Whether every figure reaches the bar."""
    return all(found[key] >= least for key, least in (bar or BAR).items() if key in found)


# ----------------------------------------------------------------------------------------------------------- the controls


def gaussian(data: Data, count: int, seed: int = 0) -> Tensor:
    """Images from one Gaussian with the mean and full covariance of all training images, uint8."""
    return _drawn_like(real(data, "train")[0], count, np.random.default_rng(seed))


def gaussian_per_class(data: Data, labels: Tensor, seed: int = 0) -> Tensor:
    """One image for each label from the Gaussian of its class, uint8."""
    images, known = real(data, "train")
    rng = np.random.default_rng(seed)
    made = torch.empty(len(labels), *images.shape[1:], dtype=torch.uint8)
    for label in labels.unique():
        made[labels == label] = _drawn_like(images[known == label], int((labels == label).sum()), rng)
    return made


def _drawn_like(images: Tensor, count: int, rng: np.random.Generator) -> Tensor:
    rows = images.flatten(1).double().numpy()
    centred = rows - rows.mean(0)
    weights = rng.standard_normal((count, len(rows))) / np.sqrt(len(rows) - 1)
    drawn = rows.mean(0) + weights @ centred  # exactly this covariance, without a factorisation
    return torch.from_numpy(drawn.round().clip(0, 255)).to(torch.uint8).view(-1, *images.shape[1:])


def untrained(data: Data, count: int, seed: int = 0) -> Tensor:
    """What a convolutional network with random weights makes of noise, stretched to the full range of grey, uint8."""
    side = real(data, "train")[0].shape[-1]
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn((count, 16, side // 2, side // 2), generator=rng)
    x = F.interpolate(x, (side, side), mode="nearest")
    for outer, inner in ((16, 16), (1, 16)):
        x = F.conv2d(F.gelu(x), torch.randn((outer, inner, 3, 3), generator=rng) / 12, padding=1)
    low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
    return ((x - low) / (high - low) * 255).round().to(torch.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("samples", type=Path, help="folder with samples.json and its PNGs")
    parser.add_argument("--data", choices=list(READ), default="digits")
    parser.add_argument("--accuracy", type=float, default=BAR["accuracy"], help="the bar for the share seen as asked")
    parser.add_argument("--recall", type=float, default=BAR["recall"], help="the bar for recall")
    args = parser.parse_args()
    images, labels = samples(args.samples)
    bar = {**BAR, "accuracy": args.accuracy, "recall": args.recall}
    asked = labels if (labels >= 0).all() else torch.arange(len(images)) % 10
    held_out, truth = real(args.data, "test")
    rows = {
        "samples": verdict(images, labels, args.data),
        "gaussian": verdict(gaussian(args.data, len(images)), asked, args.data),
        "untrained": verdict(untrained(args.data, len(images)), asked, args.data),
        "gaussian per class": verdict(gaussian_per_class(args.data, asked), asked, args.data),
        "held-out images": verdict(held_out, truth, args.data),
    }
    ok = passes(rows["samples"], bar) and not passes(rows["gaussian"], bar) and not passes(rows["untrained"], bar)
    print(json.dumps({"bar": bar, "passed": ok, **rows}, indent=2))
    raise SystemExit(0 if ok else 1)


if __name__ == "__main__":
    main()
