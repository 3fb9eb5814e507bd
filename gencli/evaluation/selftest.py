"""Whether the arithmetic of this machine is right: each check measures one figure against a bar, from known answers.

    order    slope of log error over log steps of a sampler on the probability-flow ODE of a Gaussian, whose end is known
    inverse  largest |x − f⁻¹(f(x))| of a flow with random weights, on the device; and its log-determinant against autograd's
    sum      |Σ p(x) − 1| over every image that there is
    fid      of features and themselves, and of features and themselves moved by a vector, which is its squared length
    drift    relative distance of a network's output on the device from the same network's in float64 on the CPU

Orders and distances are computed in float64, on the CPU where the device has none.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gencli import registry
from gencli.core import Field, Rng, Spec
from gencli.metrics import fid, roundtrip

ORDERS: tuple[tuple[str, Mapping[str, Any], int], ...] = (
    ("ddim", {}, 1),
    ("euler", {}, 1),
    ("heun", {}, 2),
    ("dpmpp-2m", {}, 2),
    ("ipndm", {}, 2),
    ("unipc", {}, 3),
    ("deis", {}, 3),
)
STEPS = (64, 128, 256, 512)
SHORT = 0.2  # of the order that is claimed

POINTS, IMAGES = Spec(Field("points", (2,))), Spec(Field("image", (1, 8, 8), vocab=256, range=(-1.0, 1.0)))
FLOWS: tuple[tuple[str, Mapping[str, Any], Spec], ...] = (
    ("realnvp", {"couplings": 1, "net": {"name": "coupling-resnet", "width": 8, "blocks": 1}}, IMAGES),
    ("maf", {}, POINTS),
    ("nsf", {}, POINTS),
)
BINARY = Spec(Field("image", (1, 3, 3), vocab=2))
COUNTED: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("made", {}),
    ("pixelcnn", {"net": {"name": "pixelcnn", "width": 8, "blocks": 2, "first": 3, "head": 8}}),
)
NETWORKS: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("unet", {"width": 32, "mults": (1, 2), "blocks": 1, "attention": (8,)}),
    ("dit", {"width": 64, "depth": 2, "heads": 2, "patch": 2}),
)
PRECISE = {"fp32": 1e-4, "bf16": 5e-2, "fp16": 5e-3}


@dataclass(frozen=True)
class Check:
    """One figure and its bar.

    Args:
        name: what was checked.
        figure: what was measured.
        bar: what it must not pass.
        least: whether the bar is the least that will do, else the most.
        where: the device and the arithmetic.
    """

    name: str
    figure: float
    bar: float
    where: str
    least: bool = False

    @property
    def passed(self) -> bool:
        """Whether it holds; what is no number does not."""
        return self.figure >= self.bar if self.least else self.figure <= self.bar


Todo = tuple[str, Callable[[], Check]]


def checks(device: torch.device) -> list[Todo]:
    """All checks on a device, by name, not done yet."""
    made: list[Todo] = [(f"order of {name}", _bound(_order, device, name, *rest)) for name, *rest in ORDERS]
    for name, settings, spec in FLOWS:
        made.append((f"inverse of {name}", _bound(_inverse, device, name, settings, spec)))
        made.append((f"log-determinant of {name}", _bound(_volume, device, name, settings, spec)))
    made += [(f"sum of p of {name}", _bound(_sum, device, name, settings)) for name, settings in COUNTED]
    made += [("fid of x and x", _bound(_fid, device, 0.0)), ("fid of x and x + v", _bound(_fid, device, 0.3))]
    for name, settings in NETWORKS:
        for precision in _precisions(device, name):
            made.append((f"{precision} drift of {name}", _bound(_drift, device, name, settings, precision)))
    return made


def _bound(check: Callable[..., Check], *args: Any) -> Callable[[], Check]:
    return lambda: check(*args)


def _wide(device: torch.device) -> torch.device:
    return torch.device("cpu") if device.type == "mps" else device  # which has no float64


def _where(device: torch.device, arithmetic: str) -> str:
    return f"{device.type}, {arithmetic}"


# ------------------------------------------------------------------------------------------------------------------ samplers


class _Gaussian:
    """E[x0 | x] for data N(0.3, 0.5²), and where the probability-flow ODE carries a point."""

    mean, std = 0.3, 0.5

    def denoise(self, x: Tensor, sigma: Tensor, **cond: Tensor) -> Tensor:
        return (self.std**2 * x + sigma**2 * self.mean) / (self.std**2 + sigma**2)

    def carried(self, x: Tensor, here: Tensor, there: Tensor) -> Tensor:
        scale = ((self.std**2 + there**2) / (self.std**2 + here**2)).sqrt()
        return self.mean + scale * (x - self.mean)


def _order(device: torch.device, name: str, settings: Mapping[str, Any], order: int) -> Check:
    where, data = _wide(device), _Gaussian()
    sampler = registry.load("samplers", name).make(settings)
    start = 80 * torch.tensor([-1.5, -0.7, -0.3, 0.25, 0.8, 1.6], dtype=torch.float64, device=where)[:, None]
    errors = []
    for steps in STEPS:
        levels = torch.linspace(80 ** (1 / 7), 0.002 ** (1 / 7), steps + 1, dtype=torch.float64, device=where) ** 7
        *_, last = sampler.run(data.denoise, start, levels, Rng.batch("selftest", total=len(start), device=where))
        made = last.info["noisy"] * (1 + levels[-1] ** 2).sqrt()
        errors.append(float((made - data.carried(start, levels[0], levels[-1])).abs().max()))
    slope = sum(math.log2(a / b) for a, b in itertools.pairwise(errors)) / (len(errors) - 1)
    return Check(f"order of {name}", slope, order - SHORT, _where(where, "float64"), least=True)


# ----------------------------------------------------------------------------------------------------- flows, probabilities


def _shaken(module: nn.Module, size: float) -> nn.Module:
    """With random numbers added to all parameters, so that nothing is as it starts."""
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(size * torch.randn(p.shape, generator=g, dtype=p.dtype))
    return module.eval().requires_grad_(False)


def _flow(name: str, settings: Mapping[str, Any], spec: Spec) -> tuple[Any, Tensor]:
    torch.manual_seed(0)
    model = _shaken(registry.load("models", name).make(settings, spec), 0.1)
    x = torch.rand((16, *spec.x.shape), generator=torch.Generator().manual_seed(1)) * 1.8 - 0.9
    return model, x


def _inverse(device: torch.device, name: str, settings: Mapping[str, Any], spec: Spec) -> Check:
    model, x = _flow(name, settings, spec)
    figure = float(roundtrip.apart(model.to(device), x.to(device), {}).max())
    return Check(f"inverse of {name}", figure, 1e-3, _where(device, "float32"))


def _volume(device: torch.device, name: str, settings: Mapping[str, Any], spec: Spec) -> Check:
    model, x = _flow(name, settings, spec)
    figure = float(roundtrip.mismatch(model, x[:2], {}).max())
    return Check(f"log-determinant of {name}", figure, 1e-7, "cpu, float64")


def _sum(device: torch.device, name: str, settings: Mapping[str, Any]) -> Check:
    torch.manual_seed(0)
    model = _shaken(registry.load("models", name).make(settings, BINARY), 0.5).to(device)
    every = torch.tensor(list(itertools.product((0, 1), repeat=BINARY.x.size))).view(-1, *BINARY.x.shape).to(device)
    with torch.no_grad():
        log = model.log_prob(every, Rng.batch("selftest", total=len(every), device=device))  # type: ignore[operator]
    return Check(f"sum of p of {name}", abs(float(log.double().exp().sum()) - 1), 1e-5, _where(device, "float32"))


def _fid(device: torch.device, moved: float) -> Check:
    x = np.random.default_rng(0).normal(size=(512, 64)) @ np.random.default_rng(1).normal(size=(64, 64))
    found = fid.distance(x, x + moved) - 64 * moved**2
    return Check(f"fid of x and x{' + v' * bool(moved)}", abs(found), 1e-8, "cpu, float64")


# ----------------------------------------------------------------------------------------------------------------- networks


def _precisions(device: torch.device, network: str) -> list[str]:
    from gencli.training import precision

    chosen = precision.resolve("auto", device, network)
    return ["fp32"] if chosen == "fp32" else ["fp32", chosen]


def _drift(device: torch.device, name: str, settings: Mapping[str, Any], precision: str) -> Check:
    from gencli.config import choose

    torch.manual_seed(0)
    field = Field("image", (1, 16, 16), vocab=256, range=(-1.0, 1.0))
    net = _shaken(choose("networks", {"name": name, **settings}).build(field, 1, {}), 0.02)
    g = torch.Generator().manual_seed(1)
    x, t = torch.randn((4, 1, 16, 16), generator=g), torch.rand(4, generator=g)
    with torch.no_grad():
        exact = copy.deepcopy(net).double()(x.double(), t.double())
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
        with torch.autocast(device.type, dtype, enabled=precision != "fp32"):
            found = net.to(device)(x.to(device), t.to(device))
    figure = float((found.double().cpu() - exact).norm() / exact.norm())
    return Check(f"{precision} drift of {name}", figure, PRECISE[precision], _where(device, precision))
