"""What training must hold in memory, from shapes alone, against what the device has: too much is refused before it is made.

    held = weights and buffers + a gradient each + the optimiser's moments + the averaged weights

On top come what autograd keeps from the forward pass for the backward pass (`kept_for_backward` measures it), the data, and
the program itself.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gencli.bundle import Run
from gencli.core import Model, Spec
from gencli.errors import GencliError
from gencli.files import as_size
from gencli.training import optim
from gencli.training.settings import TrainConfig

MOMENTS = {"adam": 2, "adamw": 2, "rmsprop": 1}  # numbers kept for each trained one
MEMINFO = Path("/proc/meminfo")
CONTAINER = Path("/sys/fs/cgroup")
LIMITS = (("", "memory.max", "memory.current"), ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes"))  # v2, v1
SHARE = 0.9  # of what is left may be planned for: the program itself and the data need the rest


@dataclass(frozen=True)
class Held:
    """Bytes for the whole of training, and the numbers of parameters behind them."""

    parameters: int
    training_only: int  # of these, not in model.safetensors
    weights: int
    gradients: int
    optimiser: int
    averages: int

    @property
    def total(self) -> int:
        """All bytes."""
        return self.weights + self.gradients + self.optimiser + self.averages


def held(model: Model, train: TrainConfig) -> Held:
    """What training a model holds; the model may be on the meta device."""
    skip = model.training_only
    parameters = dict(model.named_parameters())
    state = model.state_dict(keep_vars=True)
    optimiser, trained = 0, dict[str, nn.Parameter]()
    for phase in model.phases():
        mine = optim.trainable(model, phase)
        trained |= mine
        if phase.shares is None:
            each = MOMENTS[optim.phase_settings(train, phase).optimizer]
            optimiser += each * _bytes(mine.values()) + 4 * len(mine)  # and a count of steps
    return Held(
        parameters=sum(p.numel() for p in parameters.values()),
        training_only=sum(p.numel() for name, p in parameters.items() if skip and name.startswith(skip)),
        weights=_bytes([*parameters.values(), *model.buffers()]),
        gradients=_bytes(trained.values()),
        optimiser=optimiser,
        averages=(1 + len(train.ema_profiles))
        * _bytes(value for name, value in state.items() if not (skip and name.startswith(skip))),
    )


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in {id(tensor): tensor for tensor in tensors}.values())  # tied ones once


def blueprint(recipe: Mapping[str, Any], spec: Spec, codec_run: Run | None) -> Model:
    """The model that a recipe makes of data, with shapes and no numbers: it takes no memory."""
    try:
        with torch.device("meta"):
            return Run.build(recipe, spec, codec_run).model
    except (RuntimeError, TypeError, ValueError, ArithmeticError) as error:  # sizes that no tensor can have
        first = str(error).split("\n", 1)[0][:160]
        raise GencliError(
            f"no network of {recipe['model']['name']} has these sizes: {first}",
            f"`gencli train {recipe['model']['name']} --help` lists them",
        ) from error


def available(device: torch.device) -> int | None:
    """Bytes that a device has left, or None where the system does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    found = []
    if MEMINFO.is_file():
        lines = MEMINFO.read_text().splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
    elif "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):  # all there is, used or not
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    found += [left for names in LIMITS if (left := _left(CONTAINER, *names)) is not None]
    return min(found, default=None)


def _left(root: Path, inside: str, limit: str, used: str) -> int | None:
    """What a container may still take, or None where it has no limit; files that it has cached can be had."""
    try:
        most, now = int((root / inside / limit).read_text()), int((root / inside / used).read_text())
        stat = dict(line.split() for line in (root / inside / "memory.stat").read_text().splitlines())
        return max(0, most - now + int(stat.get("total_inactive_file", stat.get("inactive_file", 0))))
    except (OSError, ValueError):  # no such container, or its limit is "max"
        return None


def refuse_too_large(name: str, needs: Held, device: torch.device) -> None:
    """Refuse a model whose weights, gradients, optimiser and averages alone are more than 90 % of what the device has left."""
    left = available(device)
    if left is not None and needs.total > SHARE * left:
        raise GencliError(
            f"training {name} needs {as_size(needs.total)} for {needs.parameters:,} parameters with their gradients, "
            f"optimiser and averages; {device.type} has {as_size(left)} of memory left, of which a run may hold {SHARE:.0%}",
            f"make the network smaller: `gencli train {name} --help` lists its width and depth",
        )


class TooMuch(Exception):
    """More is kept for the backward pass than there may be."""


@dataclass
class Peak:
    """Bytes now and at most, and how many there may be."""

    now: int = 0
    most: int = 0
    limit: float = math.inf

    def add(self, count: int) -> None:
        """`count` more, or fewer."""
        self.now += count
        self.most = max(self.most, self.now)
        if self.now > self.limit:
            raise TooMuch


class _Kept:
    """One tensor that autograd keeps; it tells when it is let go."""

    def __init__(self, tensor: Tensor, users: dict[int, int], peak: Peak) -> None:
        self.tensor, self.users, self.peak = tensor.detach(), users, peak
        storage = tensor.untyped_storage()
        self.key, self.size = storage.data_ptr(), storage.nbytes()
        users[self.key] = users.get(self.key, 0) + 1
        if users[self.key] == 1:
            peak.add(self.size)

    def __del__(self) -> None:
        self.users[self.key] -= 1
        if not self.users[self.key]:
            self.peak.add(-self.size)


@contextmanager
def kept_for_backward(model: nn.Module, limit: float = math.inf) -> Iterator[Peak]:
    """Count what autograd keeps inside the block, each storage once, the model's own tensors not at all.

    Raises:
        TooMuch: as soon as it is more than `limit` bytes.
    """
    peak = Peak(limit=limit)
    users = {tensor.untyped_storage().data_ptr(): 1 for tensor in [*model.parameters(), *model.buffers()]}
    with torch.autograd.graph.saved_tensors_hooks(lambda x: _Kept(x, users, peak), lambda kept: kept.tensor):
        yield peak
