"""Train the bundled feature network: Fashion-MNIST and digits, 20 classes, two CPU threads, a few minutes.

    python -m benchmarks.train_features --out gencli/metrics/weights/gencli-features-v1.safetensors

Only training splits are used. Two tasks share the features: which class an intact image is of, and how noisy, blurred and
compressed an image is, read off along three fixed directions. So a distance between features notices artefacts as well as
wrong shapes, and grows with their strength instead of jumping (telling intact from damaged as classes would make it
jump). The last step writes the accuracies on the test splits beside the weights.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from benchmarks._images import FASHION, Labelled, digest, digits, fashion
from gencli.networks.feature_net import FeatureNet, canvas

NAMES = (
    *"0123456789",
    *("t-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"),
)
FIRST = {"digits": 0, "fashion-mnist": 10}  # of the classes
SPOILT = 4  # every fourth image of a batch
REACH = 3.0  # how far the greatest damage moves the features: about as far as a missing half of the classes
ARTEFACT_WEIGHT = 10.0


class Source:
    """One data set's images in an order that is shuffled anew after each pass."""

    def __init__(self, data: Labelled, first: int, most_shift: int, rng: torch.Generator) -> None:
        self.images, self.labels = data[0], data[1] + first
        self.most_shift, self.rng = most_shift, rng
        self.order = torch.empty(0, dtype=torch.long)

    def next(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Images on the canvas `(count, 1, 28, 28)`, labels, and how noisy, blurred, compressed each is `(count, 3)`."""
        while len(self.order) < count:
            self.order = torch.cat([self.order, torch.randperm(len(self.images), generator=self.rng)])
        rows, self.order = self.order[:count], self.order[count:]
        x = shifted(self.images[rows].float(), self.most_shift, self.rng)
        damage = torch.zeros(count, len(ARTEFACTS))
        for i in range(count // SPOILT):
            kind = int(torch.randint(len(ARTEFACTS), (), generator=self.rng))
            damage[i, kind] = torch.rand((), generator=self.rng)
            x[i] = ARTEFACTS[kind](x[i], float(damage[i, kind]), self.rng)
        return canvas(x.round().clamp(0, 255) / 255), self.labels[rows], damage


def shifted(x: Tensor, most: int, rng: torch.Generator) -> Tensor:
    """Each image moved by up to `most` pixels in both directions, its border repeated."""
    n, _, height, width = x.shape
    padded = F.pad(x, (most,) * 4, mode="replicate")
    dy, dx = torch.randint(2 * most + 1, (2, n), generator=rng)
    rows = (dy[:, None] + torch.arange(height))[:, :, None]
    cols = (dx[:, None] + torch.arange(width))[:, None, :]
    return padded[torch.arange(n)[:, None, None], 0, rows, cols][:, None]


def noisy(x: Tensor, strength: float, rng: torch.Generator) -> Tensor:
    """Gaussian noise of up to 50 grey levels."""
    return x + 50 * strength * torch.randn(x.shape, generator=rng)


def blurred(x: Tensor, strength: float, rng: torch.Generator) -> Tensor:
    """A Gaussian filter of 0.3 (nearly none) to 1.6 pixels."""
    line = torch.exp(-(torch.arange(-4.0, 5.0) ** 2) / (2 * (0.3 + 1.3 * strength) ** 2))
    line = line / line.sum()
    wide = F.pad(x[None], (4,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(wide, line[None, None, :, None]), line[None, None, None])[0]


def compressed(x: Tensor, strength: float, rng: torch.Generator) -> Tensor:
    """JPEG of quality 95 to 5."""
    file = io.BytesIO()
    grey = x[0].round().clamp(0, 255).to(torch.uint8).numpy()
    Image.fromarray(grey).save(file, "JPEG", quality=round(95 - 90 * strength))
    return torch.from_numpy(np.array(Image.open(file))).float()[None]


ARTEFACTS = (noisy, blurred, compressed)


def train(clothes: Labelled, small: Labelled, args: argparse.Namespace) -> FeatureNet:
    """One cycle of AdamW; a fifth of every batch is digits."""
    rng = torch.Generator().manual_seed(args.seed)
    torch.manual_seed(args.seed)
    net = FeatureNet.make()
    along = torch.linalg.qr(torch.randn(net.config.features, len(ARTEFACTS), generator=rng))[0]  # (D, 3), orthonormal
    optimiser = torch.optim.AdamW(net.parameters(), lr=args.lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, args.lr, total_steps=args.steps, pct_start=0.2)
    sources = Source(clothes, FIRST["fashion-mnist"], 2, rng), Source(small, FIRST["digits"], 1, rng)
    counts, began = (args.batch_size - args.batch_size // 5, args.batch_size // 5), time.monotonic()
    for step in range(args.steps):
        drawn = [source.next(count) for source, count in zip(sources, counts, strict=True)]
        x, label, damage = (torch.cat(parts) for parts in zip(*drawn, strict=True))
        found, intact = net.features(x), (damage == 0).all(1)
        by_class = F.cross_entropy(net.head(found[intact]), label[intact], label_smoothing=0.05)
        by_artefact = F.mse_loss(found @ along / REACH, damage)
        loss = by_class + ARTEFACT_WEIGHT * by_artefact
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 100 == 0:
            spent = time.monotonic() - began
            print(
                f"step {step} of {args.steps}: {by_class.item():.3f} {by_artefact.item():.4f}, {spent:.0f} s",
                flush=True,
            )
    return net.eval()


def accuracy(net: FeatureNet, images: Tensor, labels: Tensor) -> float:
    """Share of images classified as labelled, over all 20 classes."""
    with torch.no_grad():
        found = torch.cat([net(part.float() / 255).argmax(1) for part in images.split(500)])
    return float((found == labels).double().mean())


def write(net: FeatureNet, facts: dict[str, object], out: Path) -> None:
    """Weights as safetensors whose header says how to build the network, and the facts as JSON beside them."""
    settings = {"width": net.config.width, "features": net.config.features, "classes": net.config.classes}
    header = {"network": "feature-net", "settings": json.dumps(settings)}
    weights = {key: value.contiguous() for key, value in net.state_dict().items() if "num_batches" not in key}
    save_file(weights, out, metadata=header)
    out.chmod(0o644)
    held = {"name": out.stem, **header, "settings": settings, "classes": NAMES, **facts}
    out.with_suffix(".json").write_text(json.dumps(held, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--fashion", type=Path, default=FASHION)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=180)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(2)

    clothes, small = fashion("train", args.fashion), digits("train")
    began = time.monotonic()
    net = train(clothes, small, args)
    seconds = round(time.monotonic() - began)

    tests = {"digits": digits("test"), "fashion-mnist": fashion("test", args.fashion)}
    scores = {name: round(accuracy(net, x, y + FIRST[name]), 4) for name, (x, y) in tests.items()}
    facts = {
        "test_accuracy": scores,
        "data": {"fashion-mnist train": digest(clothes), "digits train": digest(small)},
        "command": f"python -m benchmarks.train_features --out gencli/metrics/weights/{args.out.name}",
        **{key: getattr(args, key) for key in ("steps", "batch_size", "lr", "seed")},
        "seconds": seconds,
        "torch": torch.__version__,
    }
    write(net, facts, args.out)
    print(f"test accuracy {scores}, {args.out.stat().st_size} bytes, {seconds} s")


if __name__ == "__main__":
    main()
