"""A diffusion transformer's training step and 50 steps of DDIM, against a plain loop; and what a sampler costs itself.

gencli's side is its `Trainer` with its own defaults and `Run.sample`. The other side is the loop that a paper's repository
has: the same network with the same weights in fp32, `torch.optim.AdamW`, clipping, an average of the weights parameter by
parameter, DDIM from its formula. The last case compares a whole call of a sampler with the network evaluations inside it:
its ratio is the share of the time that the network takes.
"""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import unet
from benchmarks._frame import Case, Side
from benchmarks.unet import LR, Shape

NET = {"name": "dit", "patch": 2, "width": 192, "depth": 6, "heads": 3}
MINI = {"name": "dit", "patch": 2, "width": 16, "depth": 1, "heads": 1}
DECAY = 0.9999


def cases(folder: Path, mini: bool) -> list[Case]:
    """Training, sampling, and the sampler's own time."""
    shape = Shape(8, MINI, folder) if mini else Shape(16, NET, folder)
    batch, size, steps, rounds = (4, 2, 3, 1) if mini else (64, 16, 50, 5)
    made = [
        Case(f"training step, DiT, batch {batch}", "a plain loop", partial(training, shape, batch), rounds, aim=1.5)
    ]
    draw = partial(sampling, shape, size, steps)
    made.append(Case(f"DDIM, {steps} steps, DiT, {size} images", "a plain loop", draw, rounds, unet.apart, 1.5))
    alone = partial(overhead, shape, size, steps)
    made.append(Case(f"DDIM, {steps} steps, all of it", "its network alone", alone, rounds, aim=0.99, memory=False))
    return made


# --------------------------------------------------------------------------------------------------------------- plain loop


def alpha_bar() -> Tensor:
    """ᾱ of DDPM's 1,000 steps."""
    return (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)


class Plain:
    """The loop of a paper's repository around a network."""

    def __init__(self, net: Any) -> None:
        self.net, self.average = net.train(), copy.deepcopy(net)
        self.optimiser = torch.optim.AdamW(net.parameters(), lr=LR, weight_decay=0.0)
        self.table = alpha_bar().float()

    def step(self, x: Tensor) -> float:
        """One step on a batch in [−1, 1]."""
        t, noise = torch.randint(0, 1000, (len(x),)), torch.randn(x.shape)
        kept = self.table[t].reshape(-1, 1, 1, 1)
        loss = F.mse_loss(self.net(kept.sqrt() * x + (1 - kept).sqrt() * noise, t.float()), noise)
        self.optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimiser.step()
        with torch.no_grad():
            for mean, weight in zip(self.average.parameters(), self.net.parameters(), strict=True):
                mean.mul_(DECAY).add_(weight, alpha=1 - DECAY)
        return loss.item()


@torch.no_grad()
def ddim(net: Any, noise: Tensor, steps: int) -> Tensor:
    """Pictures in bytes; the network predicts v, its estimates are clipped, steps end at the noisiest level."""
    table = alpha_bar()
    chosen = [round(1000 - i * 1000 / steps) - 1 for i in range(steps)]
    x = noise.double()
    for here, there in zip(chosen, [*chosen[1:], None], strict=True):
        kept = table[here]
        v = net(x.float(), torch.full((len(x),), float(here))).double()
        x0 = (kept.sqrt() * x - (1 - kept).sqrt() * v).clamp(-1, 1)
        eps = (x - kept.sqrt() * x0) / (1 - kept).sqrt()
        left = table[there] if there is not None else torch.ones((), dtype=torch.float64)
        x = left.sqrt() * x0 + (1 - left).sqrt() * eps
    return ((x / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)


# ------------------------------------------------------------------------------------------------------------------- sides


def training(shape: Shape, batch: int, who: str) -> Side:
    """A step of either side."""
    if who == "gencli":
        made = unet.trainer(shape, batch, unet.automatic(shape))
        return lambda: float(made.take_step().losses["loss"])
    plain = Plain(unet.run_of(shape, batch)[0].model.net)
    x = torch.rand(batch, 1, shape.side, shape.side) * 2 - 1
    return lambda: plain.step(x)


def sampling(shape: Shape, size: int, steps: int, who: str) -> Side:
    """Pictures of either side from the same noise."""
    from gencli.core import Rng

    if who == "gencli":
        return unet.draw(shape, size, steps)
    net = unet.run_of(shape, 1, "v")[0].model.net.eval()
    noise = Rng.rows(range(size)).at("start").normal((size, 1, shape.side, shape.side))
    return lambda: ddim(net, noise, steps)


def overhead(shape: Shape, size: int, steps: int, who: str) -> Side:
    """All of a sampler's call, or as many evaluations of the network as it takes."""
    if who == "gencli":
        return unet.draw(shape, size, steps)
    net = unet.run_of(shape, 1, "v")[0].model.net.eval()
    x, level = torch.randn(size, 1, shape.side, shape.side), torch.full((size,), 500.0)

    @torch.no_grad()
    def evaluations() -> None:
        for _ in range(steps):
            net(x, level)

    return evaluations
