"""What continuous normalising flows share: dx/dt = f(x, t) from data at 0 to noise at T, and how its volume changes.

    d log p(x(t)) / dt = −tr ∂f/∂x,      log p(x) = log N(x(T); 0, I) + ∫ tr ∂f/∂x dt from 0 to T

Training integrates by torchdiffeq, in one of two ways: `direct` keeps every evaluation for the backward pass, `adjoint` solves
the sensitivity's own ODE backwards from the end and keeps none, whatever the number of steps. An adaptive solver has one
error for the batch there, so that an item's loss depends a little on its batch-mates (`couples`). Likelihoods and samples
are integrated with each item's own steps (`samplers/_ode.py`) by an adaptive solver, and by `refine` times as many
steps as in training otherwise, with which a field that was learned with few is inverted exactly. An image does not depend on
its batch-mates.

Images have `scales`: blocks, every 2×2 square made channels, blocks; then half of the channels leave and the next scale works
on the rest. The last scale has its blocks alone. z keeps the shape of the image.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torchdiffeq
from torch import Tensor, nn

from gencli.config import Part, opt, part
from gencli.core import Batch, Field, Losses, Rng, Spec, Turn, full_precision
from gencli.errors import GencliError
from gencli.models.flow._dequantiser import Dequantisation
from gencli.models.flow._family import Flow
from gencli.nn import trace as traces
from gencli.nn.sides import check_sides
from gencli.nn.squeeze import Corners, squeeze, unsqueeze
from gencli.samplers._butcher import SolverName
from gencli.samplers._ode import integrate, of_both, within

Solver = Literal["dopri5", "bosh3", "rk4", "midpoint", "euler"]
ADAPTIVE: dict[str, SolverName] = {"dopri5": "dopri5", "bosh3": "bosh3"}
Noise = Callable[[int, Tensor], list[Tensor]]  # (which block, its x) -> probes of the trace; none for the exact one
SHOTS = 8  # of a block on the way from noise to data


class How(NamedTuple):
    """How to integrate."""

    solver: Solver
    steps: int
    rtol: float
    atol: float
    adjoint: bool


class Block(nn.Module):
    """One ODE from 0 to T."""

    def __init__(self, net: nn.Module, time: float, learn_time: bool) -> None:
        super().__init__()
        self.net, self.calls = net, 0
        root = torch.tensor(time).sqrt()
        self.root_time: Tensor
        if learn_time:
            self.root_time = nn.Parameter(root)
        else:
            self.register_buffer("root_time", root)

    @property
    def end(self) -> Tensor:
        """T."""
        return self.root_time.square()

    def field(self, x: Tensor, t: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        """f(x, t), t `()` or `(N,)`."""
        self.calls += 1
        weight = next(self.net.parameters())
        return self.net(x.to(weight), t.to(weight).expand(len(x)), **cond).to(x)

    def forward(self, x: Tensor, probes: list[Tensor], how: How, cond: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """x(T) and ∫ tr ∂f/∂x dt `(N,)`, differentiable in x, the network and T."""
        flow = Joint(self, probes, cond)
        times = torch.cat([self.end.new_zeros(1), self.end[None]]).to(x)
        settings: dict[str, Any] = {"method": how.solver, "rtol": how.rtol, "atol": how.atol}
        if how.solver not in ADAPTIVE:
            settings["options"] = {"grid_constructor": _even(how.steps)}  # in between nothing is kept
        begin = (x, x.new_zeros(len(x)))
        if how.adjoint:
            path = torchdiffeq.odeint_adjoint(
                flow, begin, times, adjoint_params=tuple(self.net.parameters()), **settings
            )
        else:
            path = torchdiffeq.odeint(flow, begin, times, **settings)
        return path[0][-1], path[1][-1]

    def alone(self, x: Tensor, probes: list[Tensor], how: How, cond: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The same without gradients, each row with steps of its own."""
        size = x[0].numel()
        trace = traces.hutchinson(probes) if probes else traces.exact()

        def along(t: Tensor, joint: Tensor) -> Tensor:
            with torch.enable_grad():
                here = joint[:, :-1].reshape(x.shape).detach().requires_grad_()
                speed = self.field(here, t, cond)
                volume = trace(speed, here) / size
            return torch.cat([speed.detach().flatten(1), volume.detach()[:, None]], dim=1)

        joint = torch.cat([x.flatten(1), x.new_zeros(len(x), 1)], dim=1)
        times = torch.stack([self.end.new_zeros(()), self.end]).detach()
        (last,) = integrate(along, joint, times, of_both(how.rtol, how.atol), ADAPTIVE[how.solver])
        return last.y[:, :-1].reshape(x.shape), last.y[:, -1] * size

    @torch.no_grad()
    def back(self, z: Tensor, how: How, cond: Mapping[str, Tensor]) -> Iterator[Tensor]:
        """x at ever earlier times from z at T; the data's end last."""

        def along(t: Tensor, x: Tensor) -> Tensor:
            return self.field(x, t, cond)

        if how.solver in ADAPTIVE:
            times = torch.linspace(float(self.end), 0, SHOTS + 1)
            for point in integrate(along, z, times, within(how.rtol, how.atol), ADAPTIVE[how.solver]):
                yield point.y
            return
        times = (self.end * torch.linspace(1, 0, how.steps + 1).to(self.end)).to(z)
        yield from torchdiffeq.odeint(along, z, times, method=how.solver)[1:]


def _even(steps: int) -> Callable[[Any, Any, Tensor], Tensor]:
    """Times of `steps` equal steps, as torchdiffeq asks for them."""
    return lambda func, begin, times: times[0] + (times[-1] - times[0]) * torch.linspace(0, 1, steps + 1).to(times)


class Joint(nn.Module):
    """The derivative of x and of the volume, as torchdiffeq asks for it."""

    def __init__(self, block: Block, probes: list[Tensor], cond: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.block, self.probes, self.cond = block, probes, cond

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        again = torch.is_grad_enabled()
        trace = traces.hutchinson(self.probes, again) if self.probes else traces.exact(again)
        with torch.enable_grad():
            x = state[0] if again and state[0].requires_grad else state[0].detach().requires_grad_()
            speed = self.block.field(x, t, self.cond)
            volume = trace(speed, x)
        return (speed, volume) if again else (speed.detach(), volume.detach())


Solve = Callable[[Block, Tensor], tuple[Tensor, Tensor]]
Back = Callable[[Block, Tensor], Iterator[Tensor]]


class Stage(nn.Module):
    """One scale and those inside it, between tensors of shape `(N, *shape)`."""

    def __init__(self, config: Any, shape: tuple[int, ...], level: int, cond: Mapping[str, Field]) -> None:
        super().__init__()
        last = level == config.scales - 1 or len(shape) != 3
        self.first: Any = nn.ModuleList(block(config, shape, cond) for _ in range(config.blocks))
        self.second: Any = nn.ModuleList()
        self.rest: Any = None
        if not last:
            channels, sides = shape[0], tuple(side // 2 for side in shape[1:])
            self.second.extend(block(config, (4 * channels, *sides), cond) for _ in range(config.blocks))
            self.rest = Stage(config, (2 * channels, *sides), level + 1, cond)

    def forward(self, x: Tensor, solve: Solve) -> tuple[Tensor, Tensor]:
        """z and log |det dz/dx| `(N,)`."""
        total = torch.zeros((), dtype=x.dtype, device=x.device)
        for one in self.first:
            x, log_det = solve(one, x)
            total = total + log_det
        if self.rest is None:
            return x, total
        x = squeeze(x, "rows")
        for one in self.second:
            x, log_det = solve(one, x)
            total = total + log_det
        stays, leaves = x.chunk(2, dim=1)
        stays, log_det = self.rest(stays, solve)
        return unsqueeze(torch.cat([stays, leaves], dim=1), "rows"), total + log_det

    def unfold(self, z: Tensor, back: Back) -> Iterator[Tensor]:
        """z on its way to x, which comes last."""
        if self.rest is not None:
            inner, leaves = squeeze(z, "rows").chunk(2, dim=1)
            for stays in self.rest.unfold(inner, back):
                z = unsqueeze(torch.cat([stays, leaves], dim=1), "rows")
                yield z
            for one in reversed(self.second):
                for wide in back(one, squeeze(z, "rows")):
                    yield unsqueeze(wide, "rows")
                z = unsqueeze(wide, "rows")
        for one in reversed(self.first):
            for state in back(one, z):
                yield state
            z = state


def block(config: Any, shape: tuple[int, ...], cond: Mapping[str, Field]) -> Block:
    """An ODE between tensors of that shape."""
    return Block(config.net.build(Field("state", shape), shape[0], cond), config.time, config.learn_time)


class ContinuousFlow(Flow):
    """A flow whose layers are ODEs."""

    corners: ClassVar[Corners | None] = "rows"
    compilable = ()  # a trace is a derivative already, and compiled networks are differentiated once
    shardable = ()

    @dataclass(frozen=True)
    class Config(Dequantisation):
        blocks: int = opt(
            1, "ODEs one after the other on a scale, twice as many where its squares become channels", low=1
        )
        scales: int = opt(1, "scales of an image; the side halves between them", low=1, high=8)
        time: float = opt(1.0, "T, where noise is", low=1e-3)
        learn_time: bool = opt(False, "T is learned, each ODE's own")
        solver: Solver = opt("dopri5", "dopri5 and bosh3 choose their steps by their error, the others have --steps")
        steps: int = opt(8, "steps of a solver that does not choose them", low=1)
        refine: int = opt(1, "times as many of them in likelihoods and samples as in training", low=1)
        rtol: float = opt(1e-5, "error allowed in a step, relative to x", low=1e-12, high=1)
        atol: float = opt(1e-5, "error allowed in a step where x is 0", low=1e-12, high=1)
        gradient: Literal["adjoint", "direct"] = opt(
            "adjoint", "memory that does not grow with steps, or kept evaluations"
        )
        divergence: Literal["exact", "hutchinson"] = opt("exact", "the trace: a derivative a number, or a random probe")
        constraint: float = opt(0.9, "share of the unit interval that data fill before the logit", low=0.01, high=1.0)
        classes: bool = opt(False, "a density of each class: the field is told the label")
        net: Part = part("networks", "ode-net", "the field f(x, t)", role="denoise")

    def __init__(self, config: Config, spec: Spec) -> None:
        super().__init__(config, spec)
        _check(config, spec.x)
        self.net = Stage(config, spec.x.shape, 0, self.spec.cond)
        self.blocks = [module for module in self.net.modules() if isinstance(module, Block)]
        self.couples = config.solver in ADAPTIVE
        self.how = How(config.solver, config.steps, config.rtol, config.atol, config.gradient == "adjoint")
        self.fine = self.how._replace(steps=config.steps * config.refine)

    # ----------------------------------------------------------------------------------------------------- from data to noise

    def transform(self, y: Tensor, **cond: Tensor) -> tuple[Tensor, Tensor]:
        """With the exact trace."""
        return self._through(y, cond, lambda i, x: [])

    def _through(self, y: Tensor, cond: Mapping[str, Tensor], noise: Noise) -> tuple[Tensor, Tensor]:
        how = self.how if self.training else self.fine
        alone = not torch.is_grad_enabled() and self.couples

        def solve(one: Block, x: Tensor) -> tuple[Tensor, Tensor]:
            probes = noise(self.blocks.index(one), x)
            return one.alone(x, probes, how, cond) if alone else one(x, probes, how, cond)

        return self.net(y.double() if alone and y.device.type != "mps" else y, solve)

    def loss(self, batch: Batch, turn: Turn) -> Losses:
        before = sum(one.calls for one in self.blocks)
        cond = {key: batch[key] for key in self.spec.cond}
        with full_precision(batch["x"].device):
            losses = self.scored(self._nats(batch["x"], cond, turn.rng, 1))
        calls = (sum(one.calls for one in self.blocks) - before) / len(self.blocks)
        return {**losses, "evaluations": torch.tensor(calls, device=batch["x"].device)}

    def _nats(self, x: Tensor, cond: Mapping[str, Tensor], rng: Rng, probes: int) -> Tensor:
        """log p(x) `(N,)`, the trace as the setting has it."""
        y, first = self._unbounded(x.to(torch.promote_types(self._dtype, torch.float32)))

        def noise(i: int, x: Tensor) -> list[Tensor]:
            if self.config.divergence == "exact":
                return []
            return [traces.signs(rng.at("probe", i, k), x) for k in range(probes)]

        z, then = self._through(y, cond, noise)
        return first.to(then) + then + self.log_noise(z)

    def log_prob(self, x: Tensor, rng: Rng, samples: int = 1, **cond: Tensor) -> Tensor:
        """log p(x) `(N,)` in nats; with probes the mean over `samples` of them, which is right on average."""
        with full_precision(x.device), torch.no_grad():
            return self._nats(x, cond, rng, samples)

    def traced(self) -> ContinuousFlow:
        """The same flow, weights and all, with the exact trace."""
        made = copy.copy(self)
        made.config = dataclasses.replace(self.config, divergence="exact")
        return made

    def estimate(self, samples: int) -> str:
        """What `log_prob` of that many probes is."""
        exact = self.config.divergence == "exact"
        trace = "exact trace" if exact else f"{samples} Hutchinson probe" + "s" * (samples > 1)
        return ", ".join(filter(None, [f"ODE by {self.config.solver}", trace, super().estimate(1)]))

    # ----------------------------------------------------------------------------------------------------- from noise to data

    def unfold(self, z: Tensor, **cond: Tensor) -> Iterator[Tensor]:
        wide = z.double() if self.couples and z.device.type != "mps" else z
        with full_precision(z.device):
            for state in self.net.unfold(wide, lambda one, x: one.back(x, self.fine, cond)):
                yield state.to(z)


def _check(config: Any, x: Field) -> None:
    if config.scales == 1:
        return
    if len(x.shape) != 3:
        raise GencliError(f"{config.scales} scales need images, got {x.kind} of shape {x.shape}", "use --scales 1")
    check_sides(*x.shape[1:], 1 << (config.scales - 1), "fewer --scales")
