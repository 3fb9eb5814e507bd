"""A U-Net's training step and 50 steps of DDIM, against diffusers with the same architecture and weights.

gencli's side is its `Trainer` with its own defaults (precision, Adam, averaged weights), data included, and `Run.sample`. The
other side does what diffusers' script for unconditional training and its DDIM pipeline do: `UNet2DModel`, schedulers,
`torch.optim.AdamW`, clipping, `EMAModel`, in fp32. Both have one head of attention, as DDPM has it. `gencli convert` writes
the network that diffusers loads.

Outcomes: a sample of the same noise; the loss over 200 steps with the same batches, noise and timesteps; and the curve in
bf16 beside that in fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks._frame import Case, Outcome, Side

STEPS, WINDOW, LR = 200, 50, 1e-3
BEGINNINGS = 5
MOST, NOISE = 16, "noise.pt"
AIM = 1.5  # where bf16 is fast; 1 in fp32
NET = {"name": "unet", "width": 32, "mults": [1, 2, 2], "groups": 8}
SHAPES: dict[str, tuple[int, dict[str, Any]]] = {  # side, and the network
    "32×32, attention at 16": (32, {**NET, "blocks": 2, "attention": [16]}),
    "16×16, the recipe ddpm": (16, {**NET, "blocks": 1, "attention": [8]}),
}
MINI = {"name": "unet", "width": 8, "mults": [1, 2], "groups": 2, "blocks": 1, "attention": [4]}


@dataclass(frozen=True)
class Shape:
    """A network for square images, and the folder where diffusers finds the same network."""

    side: int
    net: Mapping[str, Any]
    place: Path


def cases(folder: Path, mini: bool) -> list[Case]:
    """Training and sampling of each shape."""
    shapes = {"8×8": (8, MINI)} if mini else SHAPES
    size, steps, rounds = (2, 2, 1) if mini else (16, 50, 5)
    made = []
    for number, (name, (side, net)) in enumerate(shapes.items()):
        shape = Shape(side, net, folder / str(number))
        if not shape.place.exists():
            write(shape)
        for batch in (4,) if mini else (16, 64):
            label = f"training step, {name}, batch {batch}"
            made.append(Case(label, "diffusers", partial(training, shape, batch), rounds, aim=AIM, calls=2))
        label, draw = f"DDIM, {steps} steps, {name}, {size} images", partial(sampling, shape, size, steps)
        made.append(Case(label, "diffusers", draw, min(rounds, 3), apart, AIM))
    return [*made[:-2], replace(made[-2], outcome=partial(curves, shape, 3 if mini else STEPS)), made[-1]]


def recipe(shape: Shape, batch: int, prediction: str) -> dict[str, Any]:
    """Settings that both sides have: the paper's chain, the rate and the clipping; the rest are gencli's defaults."""
    model = {"name": "ddpm", "prediction": prediction, "net": shape.net}
    train = {"steps": STEPS, "batch_size": batch, "lr": LR, "clip": 1.0, "save_every": 10_000}
    data = {"name": "digits", "image_size": shape.side, "unconditional": True}
    return {"model": model, "data": data, "train": train, "sample": {"name": "ddim"}}


def run_of(shape: Shape, batch: int = 1, prediction: str = "eps") -> Any:
    """A run whose weights are the same whenever it is made, and its training data.

    With prediction v they are random everywhere, so that samples are: an untrained network that predicts noise makes all
    pixels black or white.
    """
    from gencli.bundle import Run
    from gencli.data import open_table
    from gencli.training.session import resolve

    tables = resolve(recipe(shape, batch, prediction))
    data = open_table(tables["data"])
    torch.manual_seed(0)
    run = Run.build(tables, data.spec)
    with torch.no_grad():
        for weight in run.model.parameters():
            values = torch.randn(weight.shape)
            weight.copy_(values * weight[0].numel() ** -0.5) if prediction == "v" else weight.add_(0.02 * values)
    run.config = {"name": "bench", "recipe": tables}
    return run, data.split("train")


def write(shape: Shape) -> None:
    """The networks for diffusers, to train and to sample, and the noise that gencli's first samples start from."""
    from gencli.converters.diffusers import Diffusers
    from gencli.core import Rng

    for what, prediction in (("train", "eps"), ("sample", "v")):
        Diffusers.make().write(run_of(shape, 1, prediction)[0], shape.place / what)
    noise = Rng.rows(range(MOST)).at("start").normal((MOST, 1, shape.side, shape.side))
    torch.save(noise, shape.place / NOISE)


# ------------------------------------------------------------------------------------------------------------------ gencli


def automatic(shape: Shape) -> str:
    """What `--precision auto` means here."""
    from gencli.training import precision

    return precision.resolve("auto", torch.device("cpu"), shape.net["name"])


def trainer(shape: Shape, batch: int, precision: str) -> Any:
    """gencli's trainer before its first step."""
    from benchmarks._trainer import prepared

    return prepared(*run_of(shape, batch), precision)


def draw(shape: Shape, size: int, steps: int) -> Side:
    """Pictures of the first seeds, in bytes."""
    from gencli.core import Rng

    run = run_of(shape, 1, "v")[0]
    run.model.eval()
    sampler = run.sampler("ddim", {"steps": steps})
    return lambda: run.sample(Rng.rows(range(size)), sampler=sampler)["x"]


# --------------------------------------------------------------------------------------------------------------- diffusers


class Peer:
    """diffusers' network, optimiser and average, as its script for unconditional training has them."""

    def __init__(self, place: Path) -> None:
        from gencli.metrics._torchvision import import_torchvision

        import_torchvision()  # which diffusers imports too
        from diffusers import DDPMScheduler, UNet2DModel
        from diffusers.training_utils import EMAModel

        self.net = UNet2DModel.from_pretrained(place / "train", subfolder="unet", local_files_only=True)
        self.scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
        self.optimiser = torch.optim.AdamW(self.net.parameters(), lr=LR, weight_decay=0.0)
        self.average = EMAModel(self.net.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
        self.net.train()

    def step(self, x: Tensor, noise: Tensor, timesteps: Tensor) -> float:
        """One step on a batch in [−1, 1]."""
        noisy = self.scheduler.add_noise(x, noise, timesteps)
        loss = F.mse_loss(self.net(noisy, timesteps).sample, noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.average.step(self.net.parameters())
        return loss.item()


def draw_peer(place: Path, size: int, steps: int) -> Side:
    """The loop of `DDIMPipeline`, along the clipped estimate as gencli goes."""
    from gencli.metrics._torchvision import import_torchvision

    import_torchvision()  # which diffusers imports too
    from diffusers import DDIMScheduler, UNet2DModel

    net = UNet2DModel.from_pretrained(place / "sample", subfolder="unet", local_files_only=True).eval()
    scheduler = DDIMScheduler.from_pretrained(place / "sample", subfolder="scheduler", local_files_only=True)
    noise = torch.load(place / NOISE, weights_only=True)[:size]

    @torch.no_grad()
    def pictures() -> Tensor:
        x = noise
        scheduler.set_timesteps(steps)
        for timestep in scheduler.timesteps:
            x = scheduler.step(net(x, timestep).sample, timestep, x, use_clipped_model_output=True).prev_sample
        return ((x / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)

    return pictures


# ------------------------------------------------------------------------------------------------------------------- sides


def training(shape: Shape, batch: int, who: str) -> Side:
    """A step of either side."""
    if who == "gencli":
        made = trainer(shape, batch, automatic(shape))
        return lambda: float(made.take_step().losses["loss"])
    peer, x = Peer(shape.place), torch.rand(batch, 1, shape.side, shape.side) * 2 - 1
    return lambda: peer.step(x, torch.randn(x.shape), torch.randint(0, 1000, (batch,)))


def sampling(shape: Shape, size: int, steps: int, who: str) -> Side:
    """Pictures of either side."""
    return draw(shape, size, steps) if who == "gencli" else draw_peer(shape.place, size, steps)


# ---------------------------------------------------------------------------------------------------------------- outcomes


def apart(ours: Tensor, theirs: Tensor) -> Outcome:
    """Pictures of the same noise: the size of the difference over their own spread, in grey levels."""
    found = float((ours.double() - theirs.double()).square().mean().sqrt() / theirs.double().std())
    return {"difference of the pictures over their spread": (found, 2e-2)}


def drawn(made: Any) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The batches, noise and timesteps that gencli's trainer has in its steps."""
    from gencli.core import Rng
    from gencli.data._loader import indices

    train, model = made.train, made.model
    for step in range(train.steps):
        chosen = indices(step, train.batch_size, len(made.items), train.seed)
        rng = Rng.batch(train.seed, "main", step, total=train.batch_size)
        x = made.run.encode(made.items.batch(chosen), Rng.batch(train.seed, "unused", total=train.batch_size))["x"]
        noise = rng.at("noise").normal(x.shape)
        yield x, noise, model.index(model.draw_sigma(len(x), rng.at("levels")))


def curves(shape: Shape, steps: int, *_: object) -> Outcome:
    """The loss in fp32 against diffusers', and in bf16 against fp32 over several beginnings.

    One pair says little of bf16: two runs in fp32 whose weights begin 0.1 % apart differ by as much after 100 steps.
    """
    window = min(WINDOW, steps)

    def curve(one: Callable[[], float]) -> Tensor:
        return torch.tensor([one() for _ in range(steps)]).unfold(0, window, window).mean(1)

    def ours(kind: str, beginning: int) -> Tensor:
        made = perturbed(trainer(shape, 16, kind), beginning)
        return curve(lambda: float(made.take_step().losses["loss"]))

    peer, batches = Peer(shape.place), drawn(trainer(shape, 16, "fp32"))
    theirs = curve(lambda: peer.step(*next(batches)))
    full = [ours("fp32", beginning) for beginning in range(BEGINNINGS)]
    half = [ours("bf16", beginning) for beginning in range(BEGINNINGS)]
    apart = torch.stack([b / f - 1 for b, f in zip(half, full, strict=True)]).mean(0).abs()
    name = f"loss of steps {steps - window}–{steps}"
    in_bf16 = f"in bf16 against fp32, the mean of {BEGINNINGS} beginnings"
    return {
        f"{name} against diffusers', both in fp32, relative": (float((full[0][-1] / theirs[-1] - 1).abs()), 1e-4),
        f"{name} {in_bf16}, relative": (float(apart[-1]), 1e-2),
        f"the widest of {len(apart)} such windows {in_bf16}, relative": (float(apart.max()), 2e-2),
    }


def perturbed(made: Any, beginning: int) -> Any:
    """A trainer whose weights begin 0.1 % beside where they would; the first begins where it would."""
    if beginning:
        generator = torch.Generator().manual_seed(beginning)
        with torch.no_grad():
            for weight in made.model.parameters():
                weight.mul_(1 + 1e-3 * torch.randn(weight.shape, generator=generator))
    return made
