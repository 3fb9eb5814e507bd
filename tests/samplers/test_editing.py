"""SDEdit and RePaint against closed forms of Gaussian data, and what must stay of an image."""

import itertools

import pytest
import torch
from denoisers import Exact as OfGaussian

from gencli.core import Field, Rng, Spec
from gencli.errors import GencliError
from gencli.samplers.ancestral import Ancestral
from gencli.samplers.repaint import Repaint
from gencli.samplers.sdedit import Sdedit

SPEC = Spec(Field("image", (1, 4, 4), range=(-1.0, 1.0)))
PAIR = Spec(Field("points", (2,)))
GUIDE = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
KEEP = torch.zeros(1, 4, 4, dtype=torch.bool)
KEEP[:, :2] = True


class Exact(OfGaussian):
    """Of images."""

    spec = SPEC


class Correlated(OfGaussian):
    """Of pairs with unit variances and correlation 0.9."""

    spec = PAIR
    covariance = torch.tensor([[1.0, 0.9], [0.9, 1.0]], dtype=torch.float64)

    def denoise(self, x, sigma, **cond):
        return x @ torch.linalg.inv(self.covariance + sigma**2 * torch.eye(2, dtype=torch.float64)) @ self.covariance


def drawn(sampler, model, n, spec=SPEC, **cond):
    rows = {key: value.expand(n, *spec.x.shape) for key, value in cond.items()}
    *_, last = sampler.frames(model, spec, n, Rng.batch(0, total=n), rows)
    return last.x


# ------------------------------------------------------------------------------------------------------------------ sdedit


def test_strength_0_returns_the_guide_and_evaluates_nothing():
    sampler = Sdedit.make({"strength": 0})
    assert torch.equal(drawn(sampler, Exact(), 3, known=GUIDE), GUIDE.expand(3, 1, 4, 4))
    assert sampler.evaluations(Exact(), SPEC) == 0


def test_strength_1_hardly_depends_on_the_guide():
    sampler, model = Sdedit.make({"strength": 1, "clip": False}), Exact(0.1, 0.5)
    assert sampler.evaluations(model, SPEC) == 50 and sampler.levels(model)[0] == model.levels[0]
    one, other = (drawn(sampler, model, 4, known=guide) for guide in (GUIDE, -GUIDE))
    alpha = 1 / (1 + model.levels[0] ** 2).sqrt()
    assert alpha == pytest.approx(0.0064, abs=2e-4), "of the linear schedule"
    assert (one - other).abs().max() <= 2 * alpha


def test_the_mean_is_the_guide_shrunk_towards_the_datas_mean_the_more_the_stronger():
    mean, std, n = 0.3, 0.4, 4000
    model, shrunk = Exact(mean, std), []
    for strength in (0.1, 0.2, 0.4, 0.6):
        sampler = Sdedit.make({"strength": strength, "clip": False})
        kept, levels = 1.0, sampler.levels(model)
        for here, there in itertools.pairwise(levels):  # E x_s − μ is a multiple of E x_t − μ at every step
            a = std**2 / (std**2 + here**2)
            kept *= a + (there / here) ** 2 * (1 - a)
        made = drawn(sampler, model, n, known=GUIDE).mean(0)
        assert (made - (mean + kept * (GUIDE[0] - mean))).abs().max() < 4.5 * std / n**0.5
        shrunk.append(float(kept))
    assert shrunk == sorted(shrunk, reverse=True) and shrunk[0] > 0.5 > 0.1 > shrunk[-1]


def test_what_is_kept_is_the_guide_exactly_and_the_rest_is_not():
    made = drawn(Sdedit.make({"strength": 0.8}), Exact(0.1, 0.5), 3, known=GUIDE, keep=KEEP)
    assert torch.equal(made[:, :, :2], GUIDE.expand(3, 1, 4, 4)[:, :, :2])
    assert (made[:, :, 2:] - GUIDE[:, :, 2:]).abs().min() > 1e-6


# ----------------------------------------------------------------------------------------------------------------- repaint


def test_a_mask_of_everything_returns_the_image_and_one_of_nothing_is_plain_sampling():
    model, sampler = Exact(0.1, 0.5), Repaint.make({"steps": 10, "resample": 1})
    assert torch.equal(drawn(sampler, model, 2, known=GUIDE, keep=torch.ones_like(KEEP)), GUIDE.expand(2, 1, 4, 4))
    plain = drawn(Ancestral.make({"steps": 10}), model, 2)
    assert torch.equal(drawn(sampler, model, 2, known=GUIDE, keep=torch.zeros_like(KEEP)), plain)


def test_levels_go_back_a_jump_as_often_as_asked():
    model = Exact()
    plain = Repaint.make({"steps": 6, "resample": 1}).levels(model)
    assert torch.equal(plain, Ancestral.make({"steps": 6}).levels(model))
    sampler = Repaint.make({"steps": 6, "jump": 4, "resample": 2})
    where = [int((plain == level).nonzero()) for level in sampler.levels(model)]
    assert where == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6, 4, 5, 6]
    assert sampler.evaluations(model, SPEC) == 4 + 4 + 2 + 2


def test_resampling_brings_the_hidden_half_into_agreement():
    """One of two numbers of correlation 0.9 is known to be 2: the other's mean is 1.8, which replacement alone misses."""
    known, keep = torch.tensor([[2.0, 0.0]], dtype=torch.float64), torch.tensor([True, False])
    means = []
    for resample in (1, 2, 5, 20):
        sampler = Repaint.make({"steps": 50, "jump": 1, "resample": resample, "clip": False})
        made = drawn(sampler, Correlated(), 4000, PAIR, known=known, keep=keep)
        assert torch.equal(made[:, 0], torch.full((4000,), 2.0, dtype=torch.float64))
        means.append(float(made[:, 1].mean()))
    assert means == sorted(means) and means[0] < 1.4 and abs(means[-1] - 1.8) < 0.05, means


# ---------------------------------------------------------------------------------------------------------------- refusals


def test_what_is_missing_is_said():
    with pytest.raises(GencliError, match="sdedit edits images and was given none"):
        drawn(Sdedit.make(), Exact(), 1)
    with pytest.raises(GencliError, match="repaint was not told what to keep"):
        drawn(Repaint.make(), Exact(), 1, known=GUIDE)
    with pytest.raises(GencliError, match=r"strength"):
        Sdedit.make({"strength": 1.2})
