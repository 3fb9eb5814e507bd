"""Optimisers of phases: parameters by name, learning-rate schedules by turn, state as named tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gencli.config import as_dict, parse
from gencli.core import Model, Phase
from gencli.training.settings import TrainConfig


def trainable(model: Model, phase: Phase) -> dict[str, nn.Parameter]:
    """The parameters with `requires_grad` of a phase's modules, by their name in the model."""
    ids = {id(p) for module in phase.modules for p in module.parameters() if p.requires_grad}
    return {name: p for name, p in model.named_parameters() if id(p) in ids}


def phase_settings(train: TrainConfig, phase: Phase) -> TrainConfig:
    """The run's optimiser settings with the phase's own on top."""
    return parse(TrainConfig, {**as_dict(train), **phase.optim}, f"phase {phase.name}")


def make(train: TrainConfig, params: Mapping[str, nn.Parameter], model: Model) -> torch.optim.Optimizer:
    """The optimiser over named parameters; weight decay skips 1-D parameters and embeddings."""
    embedded = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    plain = [p for p in params.values() if p.ndim < 2 or id(p) in embedded]
    decayed = [p for p in params.values() if not (p.ndim < 2 or id(p) in embedded)]
    groups = [{"params": decayed, "weight_decay": train.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    groups = [g for g in groups if g["params"]]
    if train.optimizer == "rmsprop":
        return torch.optim.RMSprop(groups, lr=train.lr)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[train.optimizer]
    fused = all(p.device.type in ("cpu", "cuda") for p in params.values())  # one pass over memory instead of ten
    return kind(groups, lr=train.lr, betas=(train.betas[0], train.betas[1]), fused=fused)


def rate_of(phase: Phase, train: TrainConfig, turn: int) -> float:
    """The learning rate of a phase's turn `turn` (from 0), its schedule being gone through between two restarts."""
    edges = [0, *phase.restarts, -(-train.steps // phase.every)]
    begin = max(edge for edge in edges[:-1] if edge <= turn)
    end = min((edge for edge in edges if edge > turn), default=turn + 1)
    return rate(train, turn - begin, end - begin)


def rate(train: TrainConfig, turn: int, turns: int) -> float:
    """The learning rate of turn `turn` (from 0) of `turns`: a linear warm-up times the schedule.

    `constant`; `linear`, straight to 0 after the warm-up; `cosine`, half a cosine to 0 that starts after the warm-up; `rsqrt`,
    1/√max(turn / decay_after, 1), which does not look at `turns`.
    """
    warm = min(1.0, (turn + 1) / train.warmup) if train.warmup else 1.0
    if train.schedule == "constant":
        return train.lr * warm
    if train.schedule == "rsqrt":
        return train.lr * warm / math.sqrt(max(turn / train.decay_after, 1.0))
    done = max(0, turn - train.warmup) / max(1, turns - train.warmup)
    if train.schedule == "linear":
        return train.lr * warm * max(0.0, 1 - done)
    return train.lr * warm * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def state_tensors(optimiser: torch.optim.Optimizer, params: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """An optimiser's state as `KEY/PARAMETER` -> tensor."""
    made = {}
    for name, parameter in params.items():
        for key, value in optimiser.state.get(parameter, {}).items():
            made[f"{key}/{name}"] = torch.as_tensor(value).detach().to("cpu").contiguous()
    return made


def load_state(
    optimiser: torch.optim.Optimizer, params: Mapping[str, nn.Parameter], tensors: Mapping[str, Any]
) -> None:
    """The inverse of `state_tensors`."""
    for path, value in tensors.items():
        key, name = path.split("/", 1)
        parameter = params[name]
        where = "cpu" if key == "step" and not optimiser.defaults.get("fused") else parameter.device
        optimiser.state[parameter][key] = value.clone().to(where)
