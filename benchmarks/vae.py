"""A VAE's training, against a plain loop and pythae's trainer, and its IWAE-1000 of 10,000 images in bounded memory.

Training is that of the recipe's network on digits of 16×16 made binary by chance at every step: gencli's `Trainer` with its own
defaults (averaged weights, records of losses), data included; the plain loop has the same networks, Adam, images at hand, and
averages nothing. pythae's `BaseTrainer`, measured where it is installed, gets the images made binary once, which it keeps.

The bound is that of a model with random weights. gencli makes one draw after the other of 250 images; the plain way has all
draws of 64 images at once, so that its memory grows with their number. A call does a fiftieth of the 10,000 images.
"""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks._frame import Case, Outcome, Side

LR, IMAGES, TRAIN = 1e-3, 10_000, 1628  # images of the bound, and digits to train on


@dataclass(frozen=True)
class Size:
    """A VAE of digits, and how much of it is done in a call."""

    side: int
    width: int
    dim: int
    batch: int
    epochs: int
    draws: int
    images: int  # of the 10,000, for the bound

    @property
    def x(self) -> int:
        return self.side**2


def cases(folder: Path, mini: bool) -> list[Case]:
    """Training against each peer there is, and the bound."""
    size = Size(8, 16, 4, 64, 1, 20, 40) if mini else Size(16, 512, 8, 128, 5, 1000, 200)
    rounds, name = 1 if mini else 5, f"training, vae, {size.epochs} epochs, batch {size.batch}"
    peers = {"a plain loop": plain_training}
    if importlib.util.find_spec("pythae"):
        peers["pythae's trainer"] = partial(pythae_training, folder)
    made = [
        Case(name, peer, partial(training, size, side), rounds, partial(same_start, size), aim=1.5)
        for peer, side in peers.items()
    ]
    share = size.images / IMAGES
    shares = {} if mini else {"gencli": share, "peer": share}
    what = f"IWAE-{size.draws:,} of {size.images if mini else IMAGES:,} images"
    return [*made, Case(what, "all draws at once", partial(bound, size), min(rounds, 3), same_bound, share=shares)]


# --------------------------------------------------------------------------------------------------------------- training


def run_of(size: Size) -> Any:
    """A fresh run of the recipe's networks, and its training data."""
    from gencli.bundle import Run
    from gencli.data import open_table
    from gencli.training.session import resolve

    net = {"name": "mlp", "width": size.width, "layers": 2, "activation": "gelu"}
    tables = resolve(
        {
            "model": {"name": "vae", "dim": size.dim, "likelihood": "bernoulli", "encoder": net, "decoder": net},
            "codecs": [{"name": "binarise"}],
            "data": {"name": "digits", "image_size": size.side, "unconditional": True},
            "train": {"steps": 100_000, "batch_size": size.batch, "lr": LR, "save_every": 100_000},
            "sample": {"name": "prior"},
        }
    )
    data = open_table(tables["data"])
    torch.manual_seed(0)
    run = Run.build(tables, data.spec)
    run.config = {"name": "bench", "recipe": tables}
    return run, data.split("train")


def training(size: Size, other: Any, who: str) -> Side:
    """Some epochs of either side; the last loss in nats an image, and the number of parameters."""
    if who != "gencli":
        side: Side = other(size)
        return side
    from benchmarks._trainer import prepared
    from gencli.training import precision

    run, items = run_of(size)
    made = prepared(run, items, precision.resolve("auto", torch.device("cpu"), "mlp"))
    count, steps = sum(p.numel() for p in run.model.parameters()), size.epochs * math.ceil(TRAIN / size.batch)

    def some() -> tuple[float, int]:
        losses = [made.take_step().losses["loss"] for _ in range(steps)]
        return float(losses[-1]), count

    return some


def mlp(ins: int, width: int, outs: int) -> nn.Sequential:
    """Two hidden layers."""
    return nn.Sequential(nn.Linear(ins, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, outs))


def grey(size: Size) -> Tensor:
    """Training images `(N, side²)` in [0, 1]."""
    from sklearn.datasets import load_digits

    images = torch.from_numpy(load_digits().images / 16).float()[:, None]
    return F.interpolate(images, (size.side, size.side), mode="nearest").flatten(1)


def plain_training(size: Size) -> Side:
    """The loop of every tutorial."""
    x, encoder, decoder = grey(size)[:TRAIN], mlp(size.x, size.width, 2 * size.dim), mlp(size.dim, size.width, size.x)
    parameters = [*encoder.parameters(), *decoder.parameters()]
    optimiser, count = torch.optim.Adam(parameters, LR), sum(p.numel() for p in parameters)

    def some() -> tuple[float, int]:
        for _ in range(size.epochs):
            for rows in torch.randperm(len(x)).split(size.batch):
                bits = torch.bernoulli(x[rows])
                mean, log_var = encoder(bits).chunk(2, 1)
                z = mean + (0.5 * log_var).exp() * torch.randn_like(mean)
                recon = F.binary_cross_entropy_with_logits(decoder(z), bits, reduction="none").sum(1)
                kl = 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum(1)
                loss = (recon + kl).mean()
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
        return loss.item(), count

    return some


def pythae_training(folder: Path, size: Size) -> Side:
    """`BaseTrainer.train()` of pythae's VAE on the same networks."""
    from pythae.data.datasets import BaseDataset
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(size.x, size.width, 2 * size.dim)

        def forward(self, x: Tensor) -> Any:
            mean, log_var = self.net(x.flatten(1)).chunk(2, 1)
            return ModelOutput(embedding=mean, log_covariance=log_var)

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(size.dim, size.width, size.x)

        def forward(self, z: Tensor) -> Any:
            return ModelOutput(reconstruction=self.net(z).sigmoid())

    x = torch.bernoulli(grey(size)[:TRAIN])
    settings = VAEConfig(input_dim=(size.x,), latent_dim=size.dim, reconstruction_loss="bce")
    model = VAE(settings, encoder=Encoder(), decoder=Decoder())
    config = BaseTrainerConfig(
        output_dir=str(folder / "pythae"),
        num_epochs=size.epochs,
        learning_rate=LR,
        per_device_train_batch_size=size.batch,
        no_cuda=True,
    )
    trainer = BaseTrainer(model, BaseDataset(x, torch.zeros(len(x))), training_config=config)
    count = sum(p.numel() for p in model.parameters())

    def some() -> tuple[float, int]:
        trainer.train()
        with torch.no_grad():
            return float(model({"data": x[: size.batch]}).loss), count

    return some


def same_start(size: Size, ours: tuple[float, int], theirs: tuple[float, int]) -> Outcome:
    """The networks are of one size, and neither's loss has left that of even guesses upwards."""
    worse = max(ours[0], theirs[0]) / (size.x * math.log(2))
    return {"difference of parameters": (abs(ours[1] - theirs[1]), 0), "losses of both over D ln 2": (worse, 1.05)}


# -------------------------------------------------------------------------------------------------------------- the bound


def bound(size: Size, who: str) -> Side:
    """IWAE-k of some images by either side: the mean in nats."""
    from gencli.core import Rng

    model, x = run_of(size)[0].model.eval(), bits_of(size)

    def one_by_one() -> float:
        parts = []
        for first in range(0, len(x), 250):
            rows = range(first, min(first + 250, len(x)))
            parts.append(model.log_prob(x[rows.start : rows.stop], Rng.rows(rows), samples=size.draws))
        return float(torch.cat(parts).mean())

    def at_once() -> float:
        parts = []
        for some in x.split(64):
            mean, log_var = model.encoder(some).chunk(2, 1)
            z = mean + (0.5 * log_var).exp() * torch.randn(size.draws, *mean.shape)
            logits = model.decoder(z.flatten(0, 1)).view(size.draws, *some.shape)
            bits = some.expand_as(logits)
            log_p = -F.binary_cross_entropy_with_logits(logits, bits, reduction="none").flatten(2).sum(2)
            log_w = log_p + 0.5 * ((z - mean).square() * (-log_var).exp() + log_var - z.square()).sum(2)
            parts.append(log_w.logsumexp(0) - math.log(size.draws))
        return float(torch.cat(parts).mean())

    return torch.no_grad()(one_by_one if who == "gencli" else at_once)


def bits_of(size: Size) -> Tensor:
    """As many binary images `(N, 1, side, side)` as a call does."""
    x = grey(size)[: size.images].view(-1, 1, size.side, size.side)
    return torch.bernoulli(x, generator=torch.Generator().manual_seed(0))


def same_bound(ours: float, theirs: float) -> Outcome:
    """Noise of their own apart, both found the same."""
    return {"nats apart": (abs(ours - theirs), 0.1)}
