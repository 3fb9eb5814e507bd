"""Runs on disk with random weights, made without training."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from tiny import session, table
from torch import nn

from gencli.training.ema import kept_state

NET = {"groups": 2}  # one number of groups, as other libraries have it


def filled(model: nn.Module, std: float = 0.3, gain: float = 1.0) -> None:
    """Every parameter from N(0, std), the gains of norms about `gain`."""
    generator = torch.Generator().manual_seed(3)
    norms = {id(m.weight) for m in model.modules() if isinstance(m, (nn.GroupNorm, nn.BatchNorm2d))}
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * std + (gain if id(weight) in norms else 0.0))


def saved(root: Path, tables: Mapping[str, Any], std: float = 0.3, gain: float = 1.0, **kwargs: Any) -> Path:
    """A run's folder: as after training, with random weights."""
    made = session(root, tables, **kwargs)
    filled(made.run.model, std, gain)
    weights = {key: value.detach().contiguous() for key, value in kept_state(made.run.model).items()}
    (made.folder / "model.safetensors").write_bytes(save(weights, metadata={"step": "0"}))
    return made.folder


def ddpm(over: Mapping[str, Any] | None = None, **net: Any) -> dict[str, Any]:
    """A recipe of a tiny ddpm that diffusers has the like of."""
    made = table("ddpm", over)
    made["model"] = {**made["model"], "net": {**made["model"]["net"], **NET, **net}}
    return made


class Creates:
    """What an attacker writes: unpickling it calls a function."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)
