"""Training steps in bf16 against the same in fp32, for the laptop recipe of each network: what `--precision auto` rests on.

The ratio is how much faster bf16 is. `gencli/training/precision.py` holds the networks that gain on a kind of hardware.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks._frame import Case, Side

RECIPES: dict[str, tuple[str, dict[str, Any]]] = {  # network: the recipe that trains it, and what to change
    "unet": ("ddpm", {}),
    "dit": ("ddpm", {"model": {"net": {"name": "dit"}}}),
    "pixelcnn": ("pixelcnn", {}),
    "gated-pixelcnn": ("gated-pixelcnn", {}),
    "conv-encoder": ("vqvae", {}),
    "mlp": ("vae", {}),
    "coupling-resnet": ("realnvp", {}),
    "dcgan-generator": ("wgan-gp", {}),
    "transformer": ("gpt", {}),
    "bidirectional-transformer": ("maskgit", {}),
    "pixelcnnpp": ("pixelcnnpp", {}),
}


def cases(folder: Path, mini: bool) -> list[Case]:
    """One a network."""
    names = list(RECIPES)[:1] if mini else list(RECIPES)
    return [
        Case(
            f"bf16, {network} ({RECIPES[network][0]})",
            "gencli in fp32",
            lambda side, network=network: step(network, "bf16" if side == "gencli" else "fp32", mini),
            rounds=1 if mini else 4,
            aim=0.0,
            memory=False,
        )
        for network in names
    ]


def step(network: str, precision: str, mini: bool) -> Side:
    """A training step of the recipe."""
    import torch

    from benchmarks._trainer import prepared
    from gencli import recipe
    from gencli.bundle import Run
    from gencli.config import merge
    from gencli.data import open_table
    from gencli.training.session import resolve

    name, change = RECIPES[network]
    loaded = recipe.load(name, smoke=mini)
    if change:  # another network takes none of this one's settings
        loaded = {**loaded, "model": {**loaded["model"], **change["model"]}}
    tables = resolve(merge(loaded, {"train": {"steps": 1000}}))
    data = open_table(tables["data"])
    torch.manual_seed(0)
    run = Run.build(tables, data.spec)
    return prepared(run, data.split("train"), precision).take_step
