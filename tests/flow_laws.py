"""What holds for every invertible map and every density, each in float64 with an autograd Jacobian or a grid as its judge."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import opened, trainer
from torch import Tensor, nn

from gencli import recipe, registry
from gencli.core import Field, Rng, Spec, Turn
from gencli.data.toy2d import draw

Map = Callable[[Tensor], tuple[Tensor, Tensor]]


def shaken(module: nn.Module, size: float = 0.3, seed: int = 0) -> nn.Module:
    """The module in float64 and in evaluation, with random numbers added to all parameters: nothing is as it starts."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.double().parameters():
            p.add_(size * torch.randn(p.shape, generator=g, dtype=p.dtype))
    return module.eval().requires_grad_(False)


def points(*shape: int, seed: int = 1, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def undoes(there: Map, back: Map, x: Tensor, atol: float = 1e-10) -> None:
    """back(there(x)) = x and there(back(x)) = x, with log-determinants that add up to zero, and the map is not the identity."""
    for one, other in ((there, back), (back, there)):
        made, log_det = one(x)
        again, undone = other(made)
        assert made.shape == x.shape and log_det.shape == (len(x),)
        assert (made - x).abs().max() > 0.01
        torch.testing.assert_close(again, x, rtol=0, atol=atol)
        torch.testing.assert_close(undone, -log_det, rtol=0, atol=atol)


def slogdet(there: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """log |det| `(N,)` of the map's Jacobian at each row, by autograd."""
    return torch.stack([torch.linalg.slogdet(jacobian(there, row)).logabsdet for row in x])


def jacobian(there: Callable[[Tensor], Tensor], row: Tensor) -> Tensor:
    """`(D, D)` of the map at one item."""
    made = torch.autograd.functional.jacobian(lambda v: there(v[None]).flatten(), row)
    return made.view(row.numel(), row.numel())  # type: ignore[union-attr]


def tells_its_volume(there: Map, x: Tensor, atol: float = 1e-9) -> None:
    """The log-determinant that the map gives is that of its Jacobian, and not its negative."""
    exact = slogdet(lambda v: there(v)[0], x)
    torch.testing.assert_close(there(x)[1], exact, rtol=0, atol=atol)


def mass(log_prob: Callable[[Tensor], Tensor], reach: float = 10.0, side: int = 301) -> float:
    """What a density of the plane integrates to on a grid of [−reach, reach]²."""
    axis = torch.linspace(-reach, reach, side, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    return float(log_prob(grid).exp().sum() * (axis[1] - axis[0]) ** 2)


def holds_one(log_prob: Callable[[Tensor], Tensor], reach: float = 10.0, side: int = 301) -> None:
    """The density integrates to one within 1 %."""
    assert mass(log_prob, reach, side) == pytest.approx(1, abs=0.01)


def keeps_every_law(model: Any, x: Tensor, **cond: Tensor) -> None:
    """A whole flow, in model space: there and back, its volume, its stages, its loss."""
    model = shaken(model, 0.1)
    z, log_det = model.forward_flow(x, **cond)
    assert z.shape == x.shape and (z - x).abs().max() > 0.03
    torch.testing.assert_close(model.inverse(z, **cond), x, rtol=0, atol=1e-8)
    exact = [
        slogdet(lambda v, i=i: model.forward_flow(v, **{k: c[i : i + 1] for k, c in cond.items()})[0], x[i : i + 1])
        for i in range(min(2, len(x)))
    ]
    torch.testing.assert_close(log_det[:2], torch.cat(exact), rtol=0, atol=1e-7)
    shown = model.stages(z, **cond)
    assert torch.equal(shown[-1], model.decode(z, **cond)) and all(one.shape == z.shape for one in shown)
    nats = model.log_prob(x, Rng.rows(range(len(x))), **cond)
    noise = torch.distributions.Normal(0.0, 1.0).log_prob(z)
    if model.noise == "logistic":
        noise = -z - 2 * torch.nn.functional.softplus(-z)
    torch.testing.assert_close(nats, noise.flatten(1).sum(1) + log_det, rtol=0, atol=1e-9)
    turn = Turn("main", 0, 1, Rng.batch("law", total=len(x)))
    torch.testing.assert_close(model.loss({"x": x, **cond}, turn)["each"], -nats, rtol=0, atol=1e-9)
    if x.shape[1:] == (2,):
        holds_one(lambda grid: model.log_prob(grid, Rng.rows([0])))


def descend(model: Any, batch: Callable[[int], Tensor], steps: int, lr: float, rows: int) -> Any:
    """The model after some steps of Adam on its loss; `batch` is a function of the step."""
    optimizer = torch.optim.Adam(model.parameters(), lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        optimizer.zero_grad()
        turn = Turn("main", step, steps, Rng.batch("descend", step, total=rows))
        model.loss({"x": batch(step)}, turn)["loss"].backward()
        optimizer.step()
        schedule.step()
    return model.eval().requires_grad_(False)


def eight_gaussians(x: Tensor) -> Tensor:
    """log p `(N,)` of the data set toy2d, shape 8-gaussians."""
    scale = math.sqrt(0.5 + 0.125**2)
    angle = torch.arange(8, dtype=x.dtype) * (math.pi / 4)
    centres = torch.stack([angle.cos(), angle.sin()], 1) / scale
    apart = torch.cdist(x, centres).square() / (2 * (0.125 / scale) ** 2)
    return torch.logsumexp(-apart, 1) - math.log(8 * 2 * math.pi * (0.125 / scale) ** 2)


def lost(model: Any, x: Tensor) -> float:
    """What a density of eight Gaussians loses to the true one, in nats a point: KL(p ‖ q) by draws x of p."""
    return float((eight_gaussians(x) - model.log_prob(x, Rng.rows([0]))).mean())


def gaussian_loses(x: Tensor) -> float:
    """What the Gaussian of the points' own covariance loses to the true density."""
    fit = torch.distributions.MultivariateNormal(x.mean(0), x.T.cov())
    return float((eight_gaussians(x) - fit.log_prob(x)).mean())


def plane(name: str, settings: dict[str, Any], steps: int, lr: float = 5e-3, rows: int = 256) -> tuple[Any, Tensor]:
    """A flow after some steps on eight Gaussians, in float32, and 4,000 points that it has not seen."""
    torch.manual_seed(0)
    train, _ = draw("8-gaussians", Rng.batch("plane", "train", total=10_000))
    test, _ = draw("8-gaussians", Rng.batch("plane", "test", total=4000))
    model = registry.load("models", name).make(settings, Spec(Field("points", (2,))))
    chosen = torch.Generator().manual_seed(0)
    fed = train.float()
    made = descend(model, lambda step: fed[torch.randint(len(fed), (rows,), generator=chosen)], steps, lr, rows)
    return made.double(), test


def comes_within_a_tenth_of_a_nat(name: str) -> None:
    """A run of the recipe loses less to the data's exact density, in nats a point; a Gaussian and the untrained flow more."""
    table = recipe.load(name)
    one, data = trainer(table), opened(table["data"])
    x = torch.from_numpy(data.split("test").x[:2000])

    def loses(model: Any) -> float:
        judged = model.traced() if hasattr(model, "traced") else model
        return float((data.log_density(x) - judged.log_prob(x, Rng.batch("points", total=len(x)))).mean())

    untrained = loses(one.run.model.eval())
    one.run.model.train()
    for _ in one:
        pass
    with one.average.worn_by(one.run.model):
        trained = loses(one.run.model.eval())
    assert trained < 0.1 < gaussian_loses(x.double()) < untrained
