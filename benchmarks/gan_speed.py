"""GANs: a training step of DCGAN and of StyleGAN2-ADA at 32×32 against plain loops on the same networks, and its convolution.

gencli's side is its `Trainer` with data, averaged weights and records; the plain loop has one batch at hand, averages nothing,
and takes the same turns: discriminator and generator at every step; of StyleGAN2-ADA the penalty on the discriminator's
gradient every 16th, the path length every 4th, styles mixed, nothing augmented. A call is 16 steps, so that each has its turn.

The convolution, forward and backward, is measured against what the released code does: weights for each item, and one grouped
convolution of them all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks._frame import Case, Outcome, Side

LR, BETAS = 2e-4, (0.5, 0.999)
LAZY, PATH = 16, 4  # steps for each turn of the two penalties


@dataclass(frozen=True)
class Size:
    """How large everything is."""

    side: int
    width: int
    batch: int
    steps: int


def cases(folder: Path, mini: bool) -> list[Case]:
    """Two loops and a layer."""
    size = Size(8, 4, 8, 2) if mini else Size(32, 32, 32, LAZY)
    rounds = 1 if mini else 5
    made = []
    for name in ("dcgan", "stylegan2-ada"):
        label = f"{size.steps} training steps, {name}, {size.side}×{size.side}, batch {size.batch}"
        made.append(Case(label, "a plain loop", partial(training, name, size), rounds, memory=False))
    label = f"modulated convolution, 64 channels, {size.side}×{size.side}, batch {size.batch}"
    made.append(Case(label, "weights for each item", partial(convolving, size), 2 * rounds, equal, memory=False))
    return made


def run_of(name: str, size: Size) -> Any:
    """A fresh run and its training data."""
    from gencli.bundle import Run
    from gencli.data import open_table
    from gencli.training.session import resolve

    halvings = {8: 1, 32: 3}[size.side]
    nets = {
        "dcgan": ("dcgan-generator", "dcgan-critic", {"upsamples": halvings}, {"downsamples": halvings}),
        "stylegan2-ada": ("stylegan2-generator", "stylegan2-critic", {"mapping": 2, "style": 2 * size.width}, {}),
    }[name]
    channels = {"width": size.width} if name == "dcgan" else {"base": 16 * size.width, "most": 2 * size.width}
    model: dict[str, Any] = {"name": name, "latent": 64, "augment": "none"}
    model["generator"] = {"name": nets[0], **channels, **nets[2]}
    model["critic"] = {"name": nets[1], **channels, **nets[3]}
    train = {"steps": 10_000, "batch_size": size.batch, "lr": LR, "betas": BETAS, "save_every": 10_000}
    data = {"name": "digits", "image_size": size.side, "unconditional": True}
    tables = resolve({"model": model, "data": data, "train": train, "sample": {"name": "prior"}})
    opened = open_table(tables["data"])
    torch.manual_seed(0)
    run = Run.build(tables, opened.spec)
    run.config = {"name": "bench", "recipe": tables}
    return run, opened.split("train")


def training(name: str, size: Size, who: str) -> Side:
    """Some steps of either side."""
    run, items = run_of(name, size)
    if who == "gencli":
        from benchmarks._trainer import prepared

        made = prepared(run, items, "fp32")
        return lambda: [made.take_step() for _ in range(size.steps)]
    x = 2 * torch.rand(size.batch, 1, size.side, size.side, generator=torch.Generator().manual_seed(0)) - 1
    step = {"dcgan": plain_dcgan, "stylegan2-ada": plain_stylegan}[name](run.model, x)
    return lambda: [step(k) for k in range(size.steps)]


def taken(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    """A turn of one network."""
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()


def plain_dcgan(model: Any, x: Tensor) -> Callable[[int], None]:
    """As every example has it."""
    generator, critic = model.generator, model.critic
    ours, theirs = (torch.optim.Adam(net.parameters(), LR, BETAS) for net in (generator, critic))

    def step(k: int) -> None:
        with torch.no_grad():
            made = generator(torch.randn(len(x), 64)).tanh()
        taken(theirs, (F.softplus(-critic(x)) + F.softplus(critic(made))).mean())
        taken(ours, F.softplus(-critic(generator(torch.randn(len(x), 64)).tanh())).mean())

    return step


def plain_stylegan(model: Any, x: Tensor) -> Callable[[int], None]:
    """Both networks and both lazy penalties."""
    generator, critic = model.generator, model.critic
    ours, theirs = (torch.optim.Adam(net.parameters(), LR, BETAS) for net in (generator, critic))
    spots, layers, mean = sum(generator.spots), generator.layers, torch.zeros(())

    def drawn(n: int) -> tuple[Tensor, Tensor]:
        w, other = (generator.style(torch.randn(n, 64))[:, None].expand(-1, layers, -1) for _ in range(2))
        later = torch.arange(layers) >= torch.randint(1, layers, (n, 1))
        w = torch.where((later & (torch.rand(n, 1) < 0.9))[..., None], other, w)
        return w, generator(w, torch.randn(n, spots))

    def step(k: int) -> None:
        with torch.no_grad():
            _, made = drawn(len(x))
        taken(theirs, (F.softplus(-critic(x)) + F.softplus(critic(made))).mean())
        if k % LAZY == 0:
            at = x.clone().requires_grad_()
            (slope,) = torch.autograd.grad(critic(at).sum(), at, create_graph=True)
            taken(theirs, LAZY / 2 * slope.square().sum((1, 2, 3)).mean())
        taken(ours, F.softplus(-critic(drawn(len(x))[1])).mean())
        if k % PATH == 0:
            w, made = drawn(len(x) // 2)
            along = torch.randn_like(made) / made.shape[-1]
            (slope,) = torch.autograd.grad((made * along).sum(), w, create_graph=True)
            lengths = slope.square().sum(2).mean(1).sqrt()
            mean.lerp_(lengths.detach().mean(), 0.01)
            taken(ours, 2 * PATH * (lengths - mean).square().mean())

    return step


def convolving(size: Size, who: str) -> Side:
    """A layer's output and its three gradients."""
    from gencli.nn.modulated import EPSILON, modulated

    g = torch.Generator().manual_seed(0)
    x = torch.randn(size.batch, 64, size.side, size.side, generator=g).requires_grad_()
    weight = torch.randn(64, 64, 3, 3, generator=g).requires_grad_()
    style = (1 + 0.3 * torch.randn(size.batch, 64, generator=g)).requires_grad_()

    def shared() -> Tensor:
        return modulated(x, weight, style, lambda x, w: F.conv2d(x, w, padding=1))

    def apart() -> Tensor:
        each = weight[None] * style[:, None, :, None, None]
        each = each * (each.square().sum((2, 3, 4), keepdim=True) + EPSILON).rsqrt()
        made = F.conv2d(x.reshape(1, -1, size.side, size.side), each.flatten(0, 1), padding=1, groups=size.batch)
        return made.view_as(x)

    def call() -> tuple[Tensor, ...]:
        made = (shared if who == "gencli" else apart)()
        return made.detach(), *torch.autograd.grad(made.square().mean(), (x, weight, style))

    return call


def equal(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> Outcome:
    """One output and the same gradients, relative to the largest."""
    far = [float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, theirs, strict=True)]
    return dict(zip(("output", "gradient of x", "of weights", "of styles"), ((f, 1e-4) for f in far), strict=True))
