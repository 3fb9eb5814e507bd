"""Flows: MAF and NSF against zuko, Glow against a plain loop and normflows, FFJORD against torchdiffeq used directly.

A training step of gencli is its `Trainer` with the recipe's settings, data included; the other side has its batch at hand and
does what every example does: log-likelihood, backward pass, clipping, Adam. Sampling is `Run.sample` against the library's.
Sizes are equal, and so are the numbers of parameters; normflows, measured where it is installed, has no convolutions that tell
the prior of what leaves, and no channel that tells the edge, so that it does less. FFJORD's two sides are one forward and one
backward solve by the adjoint with the same field, weights, points and probes, so that losses and the numbers of evaluations can
be compared.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks._frame import Case, Outcome, Side

LR, CLIP, VALUES = 1e-3, 10.0, 64  # 8×8 images as rows


@dataclass(frozen=True)
class Size:
    """How large everything is."""

    layers: int
    hidden: int
    bins: int
    width: int
    steps: int
    batch: int
    drawn: int


def cases(folder: Path, mini: bool) -> list[Case]:
    """Training and sampling of three flows, a solve of the fourth."""
    size = Size(2, 8, 4, 4, 1, 8, 2) if mini else Size(5, 256, 8, 64, 4, 64, 64)
    rounds = 1 if mini else 5
    made = []
    peers = [("maf", "zuko"), ("nsf", "zuko"), ("glow", "a plain loop")]
    for name, peer in [*peers, *([("glow", "normflows")] if importlib.util.find_spec("normflows") else [])]:
        same = {"zuko": same_size, "a plain loop": partial(same_density, size)}.get(peer, nothing_to_agree_on)
        label = f"training step, {name}, batch {size.batch}"
        made.append(Case(label, peer, partial(training, name, peer, size), rounds, same, memory=False))
        label = f"sampling, {name}, {size.drawn} images"
        made.append(Case(label, peer, partial(sampling, name, peer, size), rounds, memory=False))
    label = f"forward and adjoint solve, ffjord, {size.batch} points"
    made.append(Case(label, "torchdiffeq", partial(solving, size), rounds, same_solve, aim=0.95, memory=False))
    return made


# ------------------------------------------------------------------------------------------------------------- gencli's side


def settings(name: str, size: Size) -> dict[str, Any]:
    """The model's table."""
    hidden = [size.hidden]
    return {
        "maf": {"name": "maf", "layers": size.layers, "hidden": hidden},
        "nsf": {
            "name": "nsf",
            "layers": 3,
            "form": "autoregressive",
            "bins": size.bins,
            "bound": 5.0,
            "hidden": hidden,
        },
        "glow": {"name": "glow", "levels": 2, "steps": size.steps, "net": {"name": "glow-net", "width": size.width}},
    }[name]


def run_of(name: str, size: Size) -> Any:
    """A fresh run and its training data."""
    from gencli.bundle import Run
    from gencli.data import open_table
    from gencli.training.session import resolve

    train = {"steps": 10_000, "batch_size": size.batch, "lr": LR, "clip": CLIP, "save_every": 10_000}
    data = {"name": "digits", "image_size": 8, "unconditional": True}
    tables = resolve({"model": settings(name, size), "data": data, "train": train, "sample": {"name": "prior"}})
    opened = open_table(tables["data"])
    torch.manual_seed(0)
    run = Run.build(tables, opened.spec)
    run.config = {"name": "bench", "recipe": tables}
    return run, opened.split("train")


def training(name: str, other: str, size: Size, who: str) -> Side:
    """A step of either side; the number of parameters."""
    if who == "gencli":
        from benchmarks._trainer import prepared

        run, items = run_of(name, size)
        made = prepared(run, items, "fp32")
        count = sum(p.numel() for p in run.model.parameters())

        def step() -> int:
            made.take_step()
            return count

        return step
    torch.manual_seed(0)
    flow = peer(name, other, size)
    g = torch.Generator().manual_seed(0)
    x = torch.rand(size.batch, 1, 8, 8, generator=g) if name == "glow" else torch.randn(size.batch, VALUES, generator=g)
    optimiser = torch.optim.Adam(flow.parameters(), LR)
    count = sum(p.numel() for p in flow.parameters())

    def plain() -> int:
        loss = -(flow.log_prob(x) if name == "glow" else flow().log_prob(x)).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(flow.parameters(), CLIP)
        optimiser.step()
        return count

    return plain


def sampling(name: str, other: str, size: Size, who: str) -> Side:
    """Some samples of either side."""
    if who == "gencli":
        from gencli.core import Rng

        run, _ = run_of(name, size)
        run.model.eval().requires_grad_(False)
        return lambda: run.sample(Rng.rows(range(size.drawn)))["x"]
    torch.manual_seed(0)
    flow = peer(name, other, size).eval().requires_grad_(False)
    if name == "glow":
        return lambda: flow.sample(size.drawn)
    return lambda: flow().sample((size.drawn,))


def peer(name: str, other: str, size: Size) -> Any:
    """The other side's flow."""
    if name == "glow":
        return PlainGlow(size) if other == "a plain loop" else glow_of_normflows(size)
    import zuko

    hidden = {"hidden_features": (size.hidden,)}
    if name == "maf":
        return zuko.flows.MAF(VALUES, transforms=size.layers, **hidden)
    return zuko.flows.NSF(VALUES, bins=size.bins, transforms=3, **hidden)


def glow_of_normflows(size: Size) -> Any:
    """As its own example of images is made, with norms in the networks as they are here."""
    import normflows

    flows, base = [], []
    for channels, latent in ((8, (8, 2, 2)), (4, (2, 4, 4))):  # the innermost level first
        block = partial(normflows.flows.GlowBlock, channels, size.width, use_lu=False, net_actnorm=True)
        flows.append([*[block() for _ in range(size.steps)], normflows.flows.Squeeze()])
        base.append(normflows.distributions.DiagGaussian(latent))
    flow = normflows.MultiscaleFlow(base, flows, [normflows.flows.Merge()], class_cond=False)
    flow.log_prob(torch.rand(size.batch, 1, 8, 8), None)  # sets the norms
    draw, told = flow.sample, flow.log_prob
    flow.sample, flow.log_prob = lambda n: draw(n)[0], lambda x: told(x, None)
    return flow


def same_size(ours: int, theirs: int) -> Outcome:
    """The networks are of one size."""
    return {"difference of parameters": (abs(ours - theirs), 0)}


def nothing_to_agree_on(ours: int, theirs: int) -> Outcome:
    """normflows' Glow is another one."""
    return {}


# -------------------------------------------------------------------------------------------------------------------- glow


class PlainStep(nn.Module):
    """Actnorm, a 1×1 convolution and a coupling."""

    def __init__(self, channels: int, net: nn.Module) -> None:
        super().__init__()
        self.mix = nn.Parameter(nn.init.orthogonal_(torch.empty(channels, channels)))
        self.bias, self.logs = nn.Parameter(torch.zeros(channels, 1, 1)), nn.Parameter(torch.zeros(channels, 1, 1))
        self.net = net

    def there(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """y and its log-determinant."""
        pixels = x.shape[2] * x.shape[3]
        x = (x + self.bias) * torch.exp(3 * self.logs)
        log_det = pixels * (3 * self.logs.sum() + torch.slogdet(self.mix)[1])
        a, b = F.conv2d(x, self.mix[:, :, None, None]).chunk(2, 1)
        h = self.net(a)
        scale = torch.sigmoid(h[:, 1::2] + 2)
        return torch.cat([a, (b + h[:, 0::2]) * scale], 1), log_det + scale.log().sum((1, 2, 3))

    def back(self, y: Tensor) -> Tensor:
        """The inverse."""
        a, b = y.chunk(2, 1)
        h = self.net(a)
        x = torch.cat([a, b / torch.sigmoid(h[:, 1::2] + 2) - h[:, 0::2]], 1)
        x = F.conv2d(x, torch.inverse(self.mix)[:, :, None, None])
        return x * torch.exp(-3 * self.logs) - self.bias


def folded(x: Tensor) -> Tensor:
    """Every 2×2 square made channels."""
    n, c, h, w = x.shape
    return x.view(n, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4).reshape(n, 4 * c, h // 2, w // 2)


def unfolded(x: Tensor) -> Tensor:
    """The inverse."""
    n, c, h, w = x.shape
    return x.view(n, 2, 2, c // 4, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, c // 4, 2 * h, 2 * w)


class PlainGlow(nn.Module):
    """Two levels, as one writes it down, with gencli's networks."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        from gencli.core import Field
        from gencli.networks.glow_net import FromZero, GlowNet

        def level(channels: int, side: int) -> nn.ModuleList:
            ins, outs = Field("half", (channels // 2, side, side)), Field("both", (channels, side, side))
            config = GlowNet.Config(size.width)
            return nn.ModuleList(PlainStep(channels, GlowNet(config, ins, outs)) for _ in range(size.steps))

        self.first, self.second = level(4, 4), level(8, 2)
        self.split, self.last = FromZero(2, 4), FromZero(16, 16)

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) `(N,)`."""
        x, total = folded(x), x.new_zeros(len(x))
        for step in self.first:
            x, log_det = step.there(x)
            total = total + log_det
        x, leaves = x.chunk(2, 1)
        mean, logs = self.split(x).chunk(2, 1)
        total = total + torch.distributions.Normal(mean, logs.exp()).log_prob(leaves).sum((1, 2, 3))
        x = folded(x)
        for step in self.second:
            x, log_det = step.there(x)
            total = total + log_det
        mean, logs = self.last(torch.cat([torch.zeros_like(x)] * 2, 1)).chunk(2, 1)
        return total + torch.distributions.Normal(mean, logs.exp()).log_prob(x).sum((1, 2, 3))

    def sample(self, n: int) -> Tensor:
        """Images `(n, 1, 8, 8)`."""
        mean, logs = self.last(torch.zeros(n, 16, 2, 2)).chunk(2, 1)
        x = mean + logs.exp() * torch.randn_like(mean)
        for step in reversed(self.second):
            x = step.back(x)
        x = unfolded(x)
        mean, logs = self.split(x).chunk(2, 1)
        x = torch.cat([x, mean + logs.exp() * torch.randn_like(mean)], 1)
        for step in reversed(self.first):
            x = step.back(x)
        return unfolded(x)


def same_density(size: Size, ours: int, theirs: int) -> Outcome:
    """One size, and with the same weights one density."""
    from gencli.core import Rng

    run, _ = run_of("glow", size)
    plain = PlainGlow(size)
    g = torch.Generator().manual_seed(0)
    own = dict(run.model.named_parameters())
    places = {"first": "net.steps", "second": "net.rest.steps", "split": "net.law", "last": "net.rest.law"}
    parts = {"bias": "norm.bias", "logs": "norm.log_scale"}
    with torch.no_grad():
        for key, value in plain.named_parameters():
            head, *middle, last = key.split(".")
            last = parts.get(last, last) if middle and middle[-1].isdigit() else last  # actnorm's, not a network's
            there = own[".".join([places[head], *middle, last])]
            value.copy_(there.add_(0.05 * torch.randn(there.shape, generator=g)))
        x = torch.rand(8, 1, 8, 8, generator=g)
        apart = (run.model.eval().log_prob(x, Rng.rows(range(8))) - plain.log_prob(x)).abs().max()
    return {
        "difference of parameters": (abs(ours - theirs), 0),
        "nats apart with the same weights": (float(apart), 1e-2),
    }


# ------------------------------------------------------------------------------------------------------------------ ffjord


def solving(size: Size, who: str) -> Side:
    """A loss with its gradients by the adjoint; the loss, and the evaluations of the field."""
    from gencli.core import Field, Rng, Spec, Turn
    from gencli.models.flow.ffjord import Ffjord
    from gencli.nn import trace

    torch.manual_seed(0)
    net = {"name": "ode-net", "width": size.width, "layers": 3, "time": "concatsquash", "activation": "tanh"}
    table = {"net": net, "solver": "dopri5", "gradient": "adjoint", "divergence": "hutchinson"}
    model = Ffjord.make(table, Spec(Field("points", (2,))))
    (block,) = model.blocks
    x = 2 * torch.randn(size.batch, 2)
    rng = Rng.batch("probe", total=size.batch)
    if who == "gencli":

        def ours() -> tuple[float, int]:
            block.calls = 0
            loss = model({"x": x}, Turn("main", 0, 1, rng))["loss"]
            loss.backward()
            return float(loss.detach()), block.calls

        return ours
    import torchdiffeq

    probe = trace.signs(rng.at("probe", 0, 0), x)
    field = Joint(block.net, probe)
    times = torch.tensor([0.0, float(block.end.detach())])

    def theirs() -> tuple[float, int]:
        field.calls = 0
        z, log_det = torchdiffeq.odeint_adjoint(
            field, (x, torch.zeros(len(x))), times, rtol=1e-5, atol=1e-5, method="dopri5"
        )
        noise = torch.distributions.Normal(0.0, 1.0).log_prob(z[-1]).sum(1)
        loss = -(noise + log_det[-1]).mean()
        loss.backward()
        return float(loss.detach()), field.calls

    return theirs


class Joint(nn.Module):
    """dx/dt and d log p/dt, as torchdiffeq's examples have them."""

    def __init__(self, net: nn.Module, probe: Tensor) -> None:
        super().__init__()
        self.net, self.probe, self.calls = net, probe, 0

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        self.calls += 1
        with torch.enable_grad():
            x = state[0].requires_grad_(True)
            speed = self.net(x, t.expand(len(x)))
            along = torch.autograd.grad(speed, x, self.probe, create_graph=True)[0]
        return speed, (along * self.probe).sum(1)


def same_solve(ours: tuple[float, int], theirs: tuple[float, int]) -> Outcome:
    """One loss, and no more evaluations."""
    return {
        "difference of losses": (abs(ours[0] - theirs[0]), 1e-3),
        "evaluations over torchdiffeq's": (ours[1] / theirs[1], 1.05),
    }
