"""Latents from a prior, decoded."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from tiny import POINTS
from torch import Tensor

from gencli.core import Batch, Losses, Model, Rng, Turn
from gencli.samplers.prior import Prior


class Doubling(Model):
    """x = 2z, with the stages z, 2z if asked for."""

    @dataclass(frozen=True)
    class Config:
        pass

    def loss(self, batch: Batch, turn: Turn) -> Losses:
        raise AssertionError("not trained")

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def prior(self, n: int, rng: Rng, **cond: Tensor) -> Any:
        return {"a": rng.normal((n, 3))}

    def decode(self, z: Any, **cond: Tensor) -> Tensor:
        return 2 * z["a"]


class Staged(Doubling):
    def stages(self, z: Any, **cond: Tensor) -> list[Tensor]:
        return [z["a"], self.decode(z)]


def frames(model: Model, n: int = 2000, way: str = "frames", **settings: Any) -> list[Any]:
    sampler = Prior.make(settings)
    return list(getattr(sampler, way)(model, POINTS, n, Rng.rows(range(n)), {}))


def test_one_frame_scaled_by_the_temperature() -> None:
    model = Doubling(None, POINTS)
    (plain,), (cool,) = frames(model), frames(model, temperature=0.5)
    torch.testing.assert_close(cool.x, plain.x / 2)
    assert abs(float(plain.x.std()) - 2) < 0.05


def test_every_point_of_the_walk_has_the_priors_distribution_and_the_last_is_the_sample() -> None:
    model = Doubling(None, POINTS)
    walk = frames(model, way="trajectory")
    assert len(walk) > 10 and torch.equal(walk[-1].x, frames(model)[0].x)
    for frame in walk:  # a straight line would have a standard deviation of √2 half-way
        assert abs(float(frame.x.std()) - 2) < 0.06
    first = torch.corrcoef(torch.stack([walk[0].x.flatten(), walk[-1].x.flatten()]))[0, 1]
    assert abs(float(first)) < 0.05, "the walk starts from an independent draw"
    steps = [float((a.x - b.x).norm()) for a, b in itertools.pairwise(walk)]
    assert max(steps) < 1.05 * min(steps), "at an even pace"


def test_a_model_with_stages_shows_them_unless_a_walk_is_asked_for() -> None:
    model = Staged(None, POINTS)
    shown = frames(model, way="trajectory")
    assert len(shown) == 2 and torch.equal(shown[1].x, 2 * shown[0].x)
    assert len(frames(model, way="trajectory", path="walk")) > 10
