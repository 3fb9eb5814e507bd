"""NVAE: residual posteriors, groups and scales, the released count, balancing, temperature, bounds."""

from __future__ import annotations

import itertools

import pytest
import torch
from tiny import opened, smoke, trained
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from gencli.bundle import Run
from gencli.config import merge
from gencli.core import Autoencoder, Field, LatentVariable, Likelihood, Rng, Spec, Turn
from gencli.errors import GencliError
from gencli.metrics.bpd import Bpd
from gencli.models.vae.nvae import BOUND, NVAE, bounded, residual
from gencli.networks._nvae import Cell
from gencli.nn.gaussian import DiagonalGaussian
from gencli.samplers.prior import Prior

IMAGES = Spec(Field("image", (1, 8, 8), vocab=17, range=(-1.0, 1.0)), {"label": Field("label", (), vocab=10)})
SMALL = {"groups": [2, 1], "channels": 2, "width": 4, "blocks": 1, "cells": 1, "enc_cells": 1, "dec_cells": 1}


def nvae(spec: Spec = IMAGES, seed: int = 0, **settings: object) -> NVAE:
    torch.manual_seed(seed)
    return NVAE.make({**SMALL, **settings}, spec)


def grid(n: int, spec: Spec = IMAGES) -> Tensor:
    drawn = torch.randint(17, (n, *spec.x.shape), generator=torch.Generator().manual_seed(0))
    return drawn / 8.0 - 1


def turn(n: int, step: int = 0, steps: int = 10) -> Turn:
    return Turn("main", step, steps, Rng.batch("nvae", total=n))


def settled(model: NVAE, x: Tensor) -> NVAE:
    """In evaluation, with running averages that are not those of the beginning."""
    model.loss({"x": x}, turn(len(x)))
    model.after_step(turn(len(x)))
    return model.eval()


# ------------------------------------------------------------------------------------------------------ residual posteriors


def test_the_papers_kl_divergence_is_that_between_the_two_gaussians() -> None:
    g = torch.Generator().manual_seed(0)
    mean, log_var = (torch.randn(5, 3, 4, 4, generator=g, dtype=torch.float64) for _ in range(2))
    p = DiagonalGaussian(mean, log_var)
    made = torch.randn(5, 6, 4, 4, generator=g, dtype=torch.float64)
    q = residual(p, made)
    shift, stretch = bounded(made[:, :3]), bounded(made[:, 3:]).exp()
    formula = 0.5 * (shift.square() / log_var.exp() + stretch.square() - stretch.square().log() - 1)
    normals = [Normal(one.mean, (0.5 * one.log_var).exp()) for one in (q, p)]
    torch.testing.assert_close(formula.flatten(1).sum(1), kl_divergence(*normals).flatten(1).sum(1), rtol=1e-12, atol=0)
    torch.testing.assert_close(q.kl(p), formula.flatten(1).sum(1), rtol=1e-12, atol=0)
    torch.testing.assert_close(normals[0].stddev, normals[1].stddev * stretch)
    moved = residual(DiagonalGaussian(mean + 2, log_var), made)
    torch.testing.assert_close(moved.mean, q.mean + 2, msg="when the prior moves, the posterior moves along")
    assert torch.equal(residual(p, torch.zeros_like(made)).mean, mean)
    assert bounded(torch.tensor([-1e9, 1e9])).tolist() == [-BOUND, BOUND]


def test_what_the_data_say_reaches_posteriors_only() -> None:
    x = grid(4)
    model = settled(nvae(), x)
    with torch.no_grad():
        z = model.encode(x)
        told = model.decode(z)
        torch.testing.assert_close(model.reconstruct(x), told)
        seen, means = model.up(x), list[Tensor]()

        def choose(i: int, p: DiagonalGaussian, q: DiagonalGaussian | None) -> Tensor:
            assert q is not None
            means.append(q.mean)
            return q.mean

        torch.testing.assert_close(model.observed.mean(model.down(4, seen, choose)), told, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(z[:, : means[0][0].numel()], means[0].flatten(1), msg="the first prior is N(0, I)")
        assert not torch.equal(model.encode(x), model.encode(x.flip(0)))


# -------------------------------------------------------------------------------------------------------- groups and scales


@pytest.mark.parametrize(("side", "top"), [(8, 2), (16, 4), (14, 4)])
def test_groups_lie_on_their_scales_and_images_keep_their_size(side, top) -> None:
    spec = Spec(Field("image", (1, side, side), vocab=17, range=(-1.0, 1.0)))
    model = nvae(spec)
    assert [tuple(shape) for shape in model.shapes] == [(2, top, top), (2, top, top), (2, 2 * top, 2 * top)]
    assert model.latent.shape == (2 * 2 * top**2 + 2 * (2 * top) ** 2,)
    model.eval()
    with torch.no_grad():
        assert model.decode(model.prior(2, Rng.rows([0, 1]))).shape == (2, 1, side, side)
        x = grid(2, spec)
        assert (
            model.encode(x).shape == (2, *model.latent.shape)
            and torch.isfinite(model.log_prob(x, Rng.rows([0, 1]))).all()
        )


def test_the_released_mnist_network_has_its_parameters() -> None:
    mnist = Spec(Field("image", (1, 28, 28), vocab=2, range=(0.0, 1.0)))
    with torch.device("meta"):
        model = NVAE.make({"likelihood": "bernoulli"}, mnist)
    assert sum(p.numel() for p in model.parameters()) == 33_363_134
    assert model.padding == (2, 2, 2, 2) and len(model.shapes) == 15
    assert tuple(model.shapes[0]) == (20, 4, 4) and tuple(model.shapes[-1]) == (20, 8, 8)


def test_cells_change_the_side_and_the_width() -> None:
    x = torch.randn(2, 8, 6, 6, generator=torch.Generator().manual_seed(0))
    for inner in (0, 3):
        assert Cell(8, inner=inner)(x).shape == (2, 8, 6, 6)
        assert Cell(8, "down", inner)(x).shape == (2, 16, 3, 3)
        assert Cell(8, "up", inner)(x).shape == (2, 4, 12, 12)
    cell = Cell(8)
    torch.testing.assert_close(cell(x), x + 0.1 * cell.branch(x))


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(GencliError, match="each scale has at least 1"):
        nvae(groups=[2, 0])
    with pytest.raises(GencliError, match=r"nvae needs images, got points of shape \(2,\)"):
        nvae(Spec(Field("points", (2,))))


# ------------------------------------------------------------------------------------------------------------------ the loss


def test_balancing_is_the_released_formula_and_ends_with_the_warm_up() -> None:
    model = nvae(groups=[3, 2])
    kls = torch.rand(6, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([5.0, 0.1, 1.0, 20.0, 0.0])
    alpha = torch.tensor([1 / 3, 1 / 3, 1 / 3, 4 / 2, 4 / 2])
    alpha = alpha / alpha.min()
    each = kls.abs().mean(0, keepdim=True) + 0.01
    expected = each / alpha * each.sum()
    expected = (expected / expected.mean(1, keepdim=True))[0]
    torch.testing.assert_close(model.balance(kls, 0.5), expected)
    assert float(model.balance(kls, 0.5).mean()) == pytest.approx(1)
    assert model.balance(kls, 1.0).tolist() == [1.0] * 5
    assert nvae(groups=[3, 2], balance=False).balance(kls, 0.5).tolist() == [1.0] * 5


def test_the_loss_is_made_of_its_parts() -> None:
    x = grid(5)
    model = settled(nvae(kl_warmup=8), x)
    with torch.no_grad():
        late = model.loss({"x": x}, turn(5, 8))
        torch.testing.assert_close(late["loss"], late["recon"] + late["kl"])
        torch.testing.assert_close(late["kl"], late["kl_1"] + late["kl_2"] + late["kl_3"])
        early = model.loss({"x": x}, turn(5, 0))
        torch.testing.assert_close(early["loss"], early["recon"])
        smooth = nvae(kl_warmup=8, spectral=0.5)
        smooth.load_state_dict(model.state_dict(), strict=False)
        penalised = smooth.eval().loss({"x": x}, turn(5, 8))
    torch.testing.assert_close(penalised["loss"], late["loss"] + 0.5 * penalised["rough"])
    assert penalised["rough"] > 5 and "rough" not in late


# ----------------------------------------------------------------------------------------------------- sampling, and bounds


def test_a_temperature_scales_every_groups_spread() -> None:
    x = grid(4)
    model = settled(nvae(), x)
    with torch.no_grad():
        z = model.prior(3, Rng.rows(range(3)).at("prior"))
        parts = model._split(z)
        by_hand = model.observed.mean(
            model.down(3, None, lambda i, p, q: p.mean + 0.6 * (0.5 * p.log_var).exp() * parts[i])
        )
        (frame,) = Prior.make({"temperature": 0.6}).frames(model, IMAGES, 3, Rng.rows(range(3)), {})
    torch.testing.assert_close(frame.x, by_hand)


def test_the_bound_rises_with_k_and_an_items_is_its_own() -> None:
    x = grid(48)
    model = settled(nvae(), x)
    assert isinstance(model, Likelihood) and isinstance(model, LatentVariable) and isinstance(model, Autoencoder)
    assert model.couples and model.likelihood == "bound" and model.estimate(7) == "IWAE-7"
    with torch.no_grad():
        bounds = [float(model.log_prob(x, Rng.batch("k", total=48), samples=k).mean()) for k in (1, 4, 16)]
        whole, part = (model.log_prob(x[:n], Rng.rows(range(n)), samples=2) for n in (5, 2))
    assert all(after > before for before, after in itertools.pairwise(bounds)), bounds
    torch.testing.assert_close(whole[:2], part, rtol=1e-5, atol=1e-3)


@pytest.mark.slow
def test_digits_are_learnt_better_than_by_any_model_without_a_latent(tmp_path) -> None:
    over = {
        "model": {"width": 8, "scale": 0.0, "spectral": 0.0},
        "train": {"steps": 800, "batch_size": 32, "save_every": 800},
    }
    tables = merge(smoke("nvae"), over)
    data = opened(tables["data"])
    run = Run.load(trained(tmp_path, tables))
    levels = {name: torch.from_numpy(data.split(name).x).long().flatten(1) * 16 // 255 for name in ("train", "test")}
    counts = torch.stack([(levels["train"] == v).sum(0) for v in range(17)]) + 0.5
    bar = float(-(counts / counts.sum(0)).log2().gather(0, levels["test"]).mean())
    torch.manual_seed(0)
    untrained = Run.build(tables, data.spec)
    value, control = (Bpd.make()(one, data.split("test"), Rng.batch("e", total=1)).value for one in (run, untrained))
    assert value < bar - 0.1 < bar + 0.5 < control, (value, bar, control)
