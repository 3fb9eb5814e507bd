"""What two processes and one do alike: every trainable model, and models made to be hard to split, some steps each."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tiny import DIGITS, POINTS, TABLES, Points, bare, of_run, opened, smoke, table
from torch import Tensor, nn

from gencli import core, registry
from gencli.bundle import Run, state_of
from gencli.config import NoSettings, merge, parse
from gencli.core import Batch, Losses, Model, Phase, Turn
from gencli.training.session import resolve
from gencli.training.settings import TrainConfig
from gencli.training.trainer import Trainer

STEPS = 20
TRAIN = {"steps": STEPS, "batch_size": 8, "grad_accum": 2, "clip": 1.0, "precision": "fp32"}


class Weighted(Model):
    """The number of terms in the loss differs between processes, and one layer's gradient is there on some only."""

    def __init__(self) -> None:
        super().__init__(NoSettings(), POINTS)
        self.net, self.rare, self.never = nn.Linear(3, 1), nn.Linear(3, 1), nn.Linear(3, 1)

    def loss(self, batch: Batch, turn: Turn) -> Losses:
        x = batch["x"]
        kept = x[:, 0] > 0
        each = (self.net(x) - 1).square().sum(1)
        if (x[:, 1] > 0.9).any():
            each = each + self.rare(x).square().sum(1) * (x[:, 1] > 0.9)
        return {"loss": (each * kept).sum() / kept.sum().clamp(min=1), "weight": kept.sum().float()}


class Normed(Model):
    """A critic with a penalty that differentiates twice, a generator with batch normalisation, a tail that only counts."""

    couples = True
    training_only = ("critic.",)

    def __init__(self, norm: bool = True) -> None:
        super().__init__(NoSettings(), POINTS)
        middle = nn.BatchNorm1d(4) if norm else nn.LayerNorm(4)
        self.net = nn.Sequential(nn.Linear(3, 4), middle, nn.Tanh(), nn.Linear(4, 3))
        self.critic = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
        self.register_buffer("noise", torch.zeros(()))

    def phases(self) -> list[Phase]:
        return [Phase("critic", (self.critic,)), Phase("generator", (self.net,), every=3), Phase("count")]

    def loss(self, batch: Batch, turn: Turn) -> Losses:
        x, made = batch["x"], self.net(turn.rng.at("z").normal(batch["x"].shape))
        if turn.phase == "count":
            return {"loss": x.mean()}
        if turn.phase == "generator":
            return {"loss": -self.critic(made).mean()}
        at = made.detach().requires_grad_()
        (slope,) = torch.autograd.grad(self.critic(at).sum(), at, create_graph=True)
        gain = self.critic(x) - self.critic(made.detach())
        return {"loss": (slope.norm(dim=1) - 1).square().mean() * 10 - gain.mean(), "gain": gain.mean().detach()}

    def after_step(self, turn: Turn) -> None:
        self.noise.copy_(turn.rng.normal((len(turn.rng),)).sum())  # of the global batch: the same on every process


class Plain(Normed):
    """The same without batch normalisation: its items do not couple."""

    couples = False

    def __init__(self) -> None:
        super().__init__(norm=False)


PRECISE = {
    "cold-diffusion",
    "denoising-score-matching",
    "edm2",
    "flow-matching",
    "iddpm",
    "radial",
    "rectified-flow",
}
PRECISE |= {"vdm", "vqvae2"}
"""Trained in float64: some of their gradients nearly cancel, and Adam makes as large a step of what is left as of any other."""

OWN = {"weighted": Weighted, "normed": Normed, "plain": Plain}


class Watched:
    """Items that remember which of them were asked for."""

    def __init__(self, items: Any) -> None:
        self._items, self.asked = items, []
        self.encoded = getattr(items, "encoded", False)

    def __len__(self) -> int:
        return len(self._items)

    def batch(self, indices: Tensor) -> Batch:
        self.asked.append(indices.tolist())
        return self._items.batch(indices)


def names() -> list[str]:
    """Every registered model, then our own."""
    return [*registry.entries("models"), *OWN]


def made(name: str) -> tuple[Trainer, Watched]:
    """A prepared trainer of a model in miniature, the same on every process."""
    torch.manual_seed(core.world().rank)  # the processes' weights are made equal when they prepare
    if name in OWN:
        items = Watched(Points())
        return of_run(bare(OWN[name]()), items, parse(TrainConfig, {**TRAIN, "lr": 0.01}, "train")), items
    tables = table(name, **TRAIN) if name in TABLES else merge(smoke(name), {"train": TRAIN, "data": DIGITS})
    tables = resolve(tables)
    data = opened(tables["data"])
    items = Watched(data.split("train"))
    run = Run.build(tables, data.spec)
    if name in PRECISE:
        run.model.double()
    return of_run(run, items, parse(TrainConfig, tables["train"], "train")), items


def walk(out: Path) -> None:
    """Train every model; weights, averages, losses and items go into a folder of this process."""
    folder = out / f"rank-{core.world().rank}-of-{core.world().size}"
    folder.mkdir(parents=True)
    for name in names():
        trainer, items = made(name)
        items.asked.clear()  # those of initialising
        steps = 6 if trainer.model.couples else STEPS  # of those only the processes are compared with each other
        losses = [{key: float(value) for key, value in trainer.take_step().losses.items()} for _ in range(steps)]
        tensors = {f"raw/{key}": value for key, value in state_of(trainer.model).items()}
        tensors |= {f"average/{key}": value.clone() for key, value in trainer.average.state.items()}
        save_file(tensors, folder / f"{name}.safetensors")
        facts = {"losses": losses, "items": items.asked, "couples": trainer.model.couples}
        (folder / f"{name}.json").write_text(json.dumps(facts))


def walked(out: Path, rank: int, size: int, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What a process made of a model."""
    folder = out / f"rank-{rank}-of-{size}"
    return load_file(folder / f"{name}.safetensors"), json.loads((folder / f"{name}.json").read_text())


def apart(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> dict[str, float]:
    """‖a − b‖ / ‖b‖ of each tensor.

    Left out is what has not left zero after many steps: biases of attention's keys, which a softmax does not feel (alone,
    or the middle third of those of queries, keys and values). Their gradients are rounding alone, and Adam moves by
    rounding as by anything else.
    """
    assert set(ours) == set(theirs)
    pairs = {key: (_felt(key, ours[key]), _felt(key, value)) for key, value in theirs.items() if value.numel()}
    felt = {key: (a, b) for key, (a, b) in pairs.items() if not key.endswith(".k.bias") or b.abs().max() > 1e-4}
    return {key: float((a - b).norm() / b.norm().clamp(min=1e-30)) for key, (a, b) in felt.items()}


def _felt(key: str, value: Tensor) -> Tensor:
    """A tensor, of a joint bias of queries, keys and values without that of the keys."""
    queries, _, values = value.double().chunk(3) if key.endswith(".qkv.bias") else (value.double(), None, None)
    return queries if values is None else torch.cat([queries, values])


def walk_as_one_of_two(out: str) -> None:
    """`walk`, in a process that a launcher started."""
    os.chdir(out)
    core.join(cpu=True)
    walk(Path(out))
    raise SystemExit(0)  # and not the command line
