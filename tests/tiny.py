"""Runs that take a fraction of a second, for the tests of training and of the command line."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from gencli import recipe as recipes
from gencli.bundle import Run
from gencli.config import merge, parse
from gencli.core import Batch, Field, Spec
from gencli.data import open_table
from gencli.training.session import Session, resolve
from gencli.training.settings import TrainConfig
from gencli.training.trainer import Trainer

TRAIN = {"steps": 6, "batch_size": 8, "save_every": 3, "sample_every": 1000}
UNET = {"name": "unet", "width": 8, "mults": [1, 2], "blocks": 1, "attention": [4]}
HALVES = {"width": 8, "residual_width": 4, "residual_blocks": 1, "downsamples": 1}
MLP = {"name": "mlp", "width": 16, "layers": 1}
VQ = {"name": "vqvae", "codes": 16, "dim": 4, "decay": 0.5}
TABLES: dict[str, dict[str, Any]] = {
    "ddpm": {"model": {"name": "ddpm", "timesteps": 20, "net": UNET}},
    "vqvae": {
        "model": {**VQ, "encoder": {"name": "conv-encoder", **HALVES}, "decoder": {"name": "conv-decoder", **HALVES}}
    },
    "gated-pixelcnn": {
        "model": {"name": "gated-pixelcnn", "net": {"name": "gated-pixelcnn", "width": 4, "layers": 2, "head": 8}}
    },
    "pixelcnn": {"model": {"name": "pixelcnn", "net": {"name": "pixelcnn", "width": 4, "blocks": 1, "head": 8}}},
    "vae": {"model": {"name": "vae", "dim": 4, "encoder": MLP, "decoder": MLP}},
    "realnvp": {
        "model": {"name": "realnvp", "couplings": 1, "net": {"name": "coupling-resnet", "width": 4, "blocks": 1}}
    },
    "wgan-gp": {
        "model": {
            "name": "wgan-gp",
            "latent": 8,
            "critic_turns": 2,
            "generator": {"name": "dcgan-generator", "width": 4, "upsamples": 2},
            "critic": {"name": "dcgan-critic", "width": 4, "downsamples": 2},
        }
    },
}
DIGITS = {"name": "digits", "image_size": 8}


def table(model: str, over: Mapping[str, Any] | None = None, **train: Any) -> dict[str, Any]:
    """A recipe of `model` in miniature, on 8×8 digits."""
    base = {**TABLES[model], "data": DIGITS, "train": {**TRAIN, **train}}
    return merge(base, over or {})


@cache
def smoke(name: str) -> dict[str, Any]:
    """The tables of a model's recipe in miniature."""
    return resolve(recipes.load(name, smoke=True))


def shaken(model: nn.Module, scale: float = 0.1) -> None:
    """Random non-zero weights everywhere: a layer that starts from zero would prove nothing."""
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) * scale)


def toml(path: Path, tables: Mapping[str, Any]) -> Path:
    """Write tables as a recipe file."""
    lines = ["# tiny"]

    def write(name: str, values: Mapping[str, Any]) -> None:
        lines.append(f"[{name}]")
        inner = {key: value for key, value in values.items() if isinstance(value, Mapping)}
        lines.extend(f"{key} = {json.dumps(value)}" for key, value in values.items() if key not in inner)
        for key, value in inner.items():
            write(f"{name}.{key}", value)

    for name, values in tables.items():
        write(name, values)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@cache
def _opened(text: str) -> Any:
    return open_table(json.loads(text))


def opened(values: Mapping[str, Any]) -> Any:
    """A data set, read once for all tests."""
    return _opened(json.dumps(values))


def session(root: Path, tables: Mapping[str, Any], **kwargs: Any) -> Session:
    """A session over resolved tables."""
    made = resolve(tables)
    return Session(made, opened(made["data"]), root, **kwargs)


def trained(root: Path, tables: Mapping[str, Any], **kwargs: Any) -> Path:
    """A finished run's folder."""
    made = session(root, tables, **kwargs)
    for _ in made.events():
        pass
    return made.folder


def resumed(folder: Path, **train: Any) -> list[Any]:
    """The events of resuming the run in `folder`, with some training settings changed."""
    tables = json.loads((folder / "config.json").read_text())["recipe"]
    made = session(folder.parent, merge(tables, {"train": train}), folder=folder)
    return list(made.events())


def ends_as(whole: Path, tables: Mapping[str, Any], stop: int) -> Path:
    """The folder of a run that is stopped after so many steps, goes on, and ends bit for bit as the one in `whole`."""
    steps = json.loads((whole / "config.json").read_text())["recipe"]["train"]["steps"]
    part = trained(whole.parent, merge(tables, {"train": {"steps": stop}}), name="part")
    resumed(part, steps=steps)
    assert hashes(part) == hashes(whole)
    return part


def trainer(tables: Mapping[str, Any], start: bool = True, seed: int = 0) -> Trainer:
    """A prepared trainer without a folder."""
    made = resolve(tables)
    data = opened(made["data"])
    torch.manual_seed(seed)
    run = Run.build(made, data.spec)
    return of_run(run, data.split("train"), parse(TrainConfig, made["train"], "train"), start)


def of_run(run: Run, items: Any, train: TrainConfig, start: bool = True) -> Trainer:
    """A trainer of any run."""
    AcceleratorState._reset_state(reset_partial_state=False)
    made = Trainer(run, train, items, Accelerator(mixed_precision="no", cpu=True))
    if start:
        made.initialise()
        made.prepare()
    return made


class Points:
    """Items that are fixed points with values in [−1, 1]."""

    encoded = True

    def __init__(self, n: int = 64, dim: int = 3) -> None:
        self.x = torch.rand(n, dim, generator=torch.Generator().manual_seed(5)) * 2 - 1

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, indices: torch.Tensor) -> Batch:
        return {"x": self.x[indices]}


POINTS = Spec(Field("points", (3,)))


def bare(model: Any) -> Run:
    """A run of a model of points, without codecs."""
    return Run(model, [], POINTS, POINTS, {})


def hashes(folder: Path) -> dict[str, str]:
    """sha256 of the weights and of the newest state's files."""
    state = sorted((folder / "train").glob("step-*"))[-1]
    paths = [folder / "model.safetensors", *sorted(state.glob("*.safetensors"))]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}


def logged(folder: Path) -> list[int]:
    """The steps in metrics.jsonl."""
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
