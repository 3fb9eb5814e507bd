"""Layers of style-based GANs: rates, modulation, filters, batch variation and augmentations, each against its formula."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gencli.core import Rng
from gencli.nn.bgc import _blits, _colours, _tint, bgc
from gencli.nn.diffaug import diffaug
from gencli.nn.equalised import EqualConv2d, EqualLinear, leaky, pixel_norm
from gencli.nn.fir import Fir
from gencli.nn.minibatch_std import minibatch_std
from gencli.nn.modulated import modulated
from gencli.nn.warp import blit, warp


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ------------------------------------------------------------------------------------------------------------------ equalised


def test_weights_start_normal_and_are_scaled_by_their_inputs_where_they_are_used() -> None:
    torch.manual_seed(0)
    conv, line = EqualConv2d(48, 64, 3, gain=math.sqrt(2)), EqualLinear(256, 300, gain=math.sqrt(2), rate=0.01)
    assert float(conv.weight.detach().std()) == pytest.approx(1, rel=0.02)
    torch.testing.assert_close(conv.scaled, conv.weight * math.sqrt(2 / (48 * 9)))
    assert float(line.weight.detach().std()) == pytest.approx(100, rel=0.02), (
        "so that a step of Adam changes it by less"
    )
    x = torch.randn(4000, 256)
    assert float(line(x).detach().var()) == pytest.approx(2, rel=0.05)
    assert float(leaky(torch.randn(100_000)).square().mean()) == pytest.approx(1.04, rel=0.02)
    biased = EqualLinear(256, 1, bias=1.0, rate=0.01)
    torch.testing.assert_close(biased(torch.zeros(1, 256)), torch.ones(1, 1))


def test_pixel_norm_makes_every_position_of_unit_size() -> None:
    x = 7 * normal(3, 5, 4, 4)
    torch.testing.assert_close(pixel_norm(x).square().mean(1), torch.ones(3, 4, 4).double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(F.cosine_similarity(pixel_norm(x), x), torch.ones(3, 4, 4).double())


# ------------------------------------------------------------------------------------------------------------------ modulation


@pytest.mark.parametrize("way", ["same", "up"])
@pytest.mark.parametrize("demodulate", [True, False])
def test_modulation_is_that_of_weights_of_each_items_own(way: str, demodulate: bool) -> None:
    x, weight, style = normal(3, 5, 4, 6), normal(7, 5, 3, 3, seed=1), 1 + normal(3, 5, seed=2)
    fir = Fir().double()
    convolve = fir.up if way == "up" else lambda h, w: F.conv2d(h, w, padding=1)
    each = weight[None] * style[:, None, :, None, None]  # (N, out, in, k, k), which the layer never makes
    if demodulate:
        each = each / (each.square().sum((2, 3, 4), keepdim=True) + 1e-8).sqrt()
    theirs = torch.cat([convolve(one[None], own) for one, own in zip(x, each, strict=True)])
    torch.testing.assert_close(modulated(x, weight, style, convolve, demodulate), theirs, rtol=1e-12, atol=1e-12)
    few = [t.requires_grad_() for t in (x[:2, :2, :2, :2].clone(), weight[:2, :2].clone(), style[:2, :2].clone())]
    assert torch.autograd.gradgradcheck(lambda *t: modulated(*t, convolve, demodulate), few), "as path lengths need it"


def test_demodulated_outputs_have_the_variance_of_their_inputs_whatever_the_style() -> None:
    x, weight, style = normal(64, 32, 8, 8), 3 * normal(16, 32, 3, 3, seed=1), 5 * normal(64, 32, seed=2)
    inner = modulated(x, weight, style, lambda h, w: F.conv2d(h, w))
    assert float(inner.var()) == pytest.approx(1, rel=0.03)
    plain = modulated(x, weight, style, lambda h, w: F.conv2d(h, w), demodulate=False)
    assert float(plain.var()) > 1000, "which is what demodulation removes"


class Sizes(TorchDispatchMode):
    """The most numbers of any tensor that is made inside."""

    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        self.most = max([self.most, *(t.numel() for t in tree_leaves(made) if isinstance(t, Tensor))])
        return made


def test_modulation_makes_no_weights_of_each_items_own() -> None:
    n, width = 64, 32
    x, weight, style = normal(n, width, 2, 2), normal(width, width, 3, 3), normal(n, width)
    x, weight, style = (t.requires_grad_() for t in (x, weight, style))
    with Sizes() as sizes:
        modulated(x, weight, style, lambda h, w: F.conv2d(h, w, padding=1)).sum().backward()
    assert sizes.most == max(x.numel(), weight.numel()), "an eightieth of 64 sets of weights, forth and back"


# --------------------------------------------------------------------------------------------------------------------- filters


def test_filters_are_zeros_a_blur_and_a_convolution_in_any_order() -> None:
    fir, x, weight = Fir().double(), normal(2, 3, 6, 4), normal(5, 3, 3, 3, seed=1)
    line = torch.tensor([1.0, 3.0, 3.0, 1.0]).double() / 8
    f = (line[:, None] * line).expand(3, 1, 4, 4)
    zeros = torch.zeros(2, 3, 12, 8).double()
    zeros[:, :, ::2, ::2] = x
    blurred = F.conv2d(F.pad(zeros, (2, 1, 2, 1)), 4 * f, groups=3)
    torch.testing.assert_close(fir.twice(x), blurred)
    up = F.conv2d(F.conv2d(F.pad(zeros, (6, 6, 6, 6)), 4 * f, groups=3), weight.flip(2, 3))
    torch.testing.assert_close(fir.up(x, weight), up[:, :, 3:-2, 3:-2][:, :, :12, :8], rtol=1e-12, atol=1e-12)
    down = F.conv2d(F.conv2d(F.pad(x, (2, 2, 2, 2)), f, groups=3), weight)[:, :, ::2, ::2]
    torch.testing.assert_close(fir.down(x, weight), down)
    flat = torch.ones(1, 3, 16, 16).double()
    torch.testing.assert_close(fir.twice(flat)[..., 2:-2, 2:-2], torch.ones(1, 3, 28, 28).double())
    pixel = torch.eye(3).double()[:, :, None, None]
    torch.testing.assert_close(fir.down(flat, pixel)[..., 1:-1, 1:-1], torch.ones(1, 3, 6, 6).double())


# ------------------------------------------------------------------------------------------------------------- batch variation


def test_batch_variation_is_a_loop_over_groups() -> None:
    x = normal(8, 3, 4, 5)
    made = minibatch_std(x, 4)
    torch.testing.assert_close(made[:, :3], x)
    for first in range(2):
        members = [first, first + 2, first + 4, first + 6]
        total = 0.0
        for channel in range(3):
            for row in range(4):
                for column in range(5):
                    values = [float(x[i, channel, row, column]) for i in members]
                    mean = sum(values) / 4
                    total += math.sqrt(sum((value - mean) ** 2 for value in values) / 4 + 1e-8)
        for i in members:
            torch.testing.assert_close(made[i, 3], torch.full((4, 5), total / 60).double())
    assert float(minibatch_std(x[:1].expand(8, -1, -1, -1), 4)[:, 3].max()) == pytest.approx(1e-4), "alike: only √10⁻⁸"
    assert minibatch_std(x[:3], 4).shape == (3, 4, 4, 5), "a batch of three is one group"


# --------------------------------------------------------------------------------------------------------------- augmentations


def rng(n: int, key: object = 0) -> Rng:
    return Rng.batch("augment", key, total=n)


@pytest.mark.parametrize("change", [bgc, diffaug])
@pytest.mark.parametrize("channels", [1, 3])
def test_augmentations_are_the_identity_at_zero_and_happen_as_often_as_p_says(change, channels: int) -> None:
    x = torch.rand(400, channels, 8, 8) * 2 - 1
    assert torch.equal(change(x, 0.0, rng(400)), x)
    shares = [float((change(x, p, rng(400)) == x).flatten(1).all(1).float().mean()) for p in (0.1, 0.3, 1.0)]
    assert 0.15 < shares[0] < 0.85 and shares[1] < shares[0] - 0.1 and shares[2] < 0.02
    half = change(x[200:], 0.5, Rng.batch("augment", 0, total=400, rows=range(200, 400)))
    torch.testing.assert_close(half, change(x, 0.5, rng(400))[200:], rtol=1e-5, atol=1e-5), "each image for itself"
    assert torch.isfinite(change(x, 1.0, rng(400))).all()


@pytest.mark.parametrize("change", [bgc, diffaug])
def test_augmentations_differentiate_twice(change) -> None:
    x, draw = normal(2, 1, 4, 4).requires_grad_(), rng(2, 5)
    assert torch.autograd.gradcheck(lambda x: change(x, 0.9, draw.at()), (x,))
    assert torch.autograd.gradgradcheck(lambda x: change(x, 0.9, draw.at()).square(), (x,))


def test_augmentation_hides_no_distribution_before_p_is_one() -> None:
    """Of four orientations of an image: what is seen is a matrix times what there is, which has an inverse if p < 1."""
    there, n = torch.tensor([0.7, 0.2, 0.1, 0.0]), 40_000
    turns = torch.multinomial(there, n, True, generator=torch.Generator().manual_seed(0))
    x = torch.tensor([[1.0, 2.0], [4.0, 3.0]]).expand(n, 1, 2, 2)
    x = torch.stack([x.rot90(k, (2, 3)) for k in range(4)])[turns, torch.arange(n)]
    u = rng(n).uniform((n, 8))
    u[:, [0, 2]] = 1.0  # quarter turns alone
    seen, first = {}, [float(torch.tensor([[1.0, 2.0], [4.0, 3.0]]).rot90(k)[0, 0]) for k in range(4)]
    for p in (0.6, 1.0):
        corner = blit(x, _blits(u, torch.tensor(p), torch.tensor([2.0, 2.0])))[:, 0, 0, 0]
        seen[p] = torch.stack([(corner == value).float().mean() for value in first])
    mixing = (1 - 0.6) * torch.eye(4) + 0.6 / 4
    torch.testing.assert_close(torch.linalg.solve(mixing, seen[0.6]), there, rtol=0, atol=0.03)
    torch.testing.assert_close(seen[1.0], torch.full((4,), 0.25), rtol=0, atol=0.02)


def test_colours_change_as_their_matrices_say() -> None:
    x, u, z = torch.rand(200, 3, 6, 6) * 2 - 1, torch.rand(200, 8), torch.randn(200, 4)
    u[:, :5] = torch.tensor([0.0, 0.0, 1.0, 0.0, 1.0])  # all but the turning over and the colourfulness
    _, colours = _colours(u, z, torch.tensor(0.5), True)
    made = _tint(x, colours)
    plus, times = 0.2 * z[:, 0], (0.5 * z[:, 1]).exp2()
    grey = (x.mean(1) + plus[:, None, None]) * times[:, None, None]
    torch.testing.assert_close(made.mean(1), grey, rtol=1e-4, atol=1e-5)
    spread = x - x.mean(1, keepdim=True)
    torch.testing.assert_close(
        (made - made.mean(1, keepdim=True)).square().sum(1),
        times[:, None, None] ** 2 * spread.square().sum(1),
        rtol=1e-3,
        atol=1e-4,
    )


def matrix(a: float, b: float, c: float, d: float, x: float = 0.0, y: float = 0.0) -> Tensor:
    return torch.tensor([[[a, b, x], [c, d, y], [0.0, 0.0, 1.0]]]).double()


def test_blits_copy_pixels_and_warps_undo_themselves() -> None:
    x = normal(1, 2, 8, 8)
    assert torch.equal(blit(x, matrix(-1, 0, 0, 1)), x.flip(3))
    assert torch.equal(blit(x, matrix(0, -1, 1, 0)), x.rot90(1, (2, 3)))
    moved = blit(x, matrix(1, 0, 0, 1, 2.0, -1.0))
    assert torch.equal(moved[..., 1:, :-2], x[..., :-1, 2:])
    assert torch.equal(moved[..., 1:, 6:], x[..., :-1, 6:].flip(3)), "mirrored about the edge"
    assert torch.equal(moved[..., 0, :-2], x[..., 0, 2:])
    inside = (..., slice(4, 12), slice(4, 12))
    grid = torch.arange(16).double()
    smooth = ((grid[:, None] * 0.5).sin() + (grid * 0.4).cos())[None, None]
    torch.testing.assert_close(warp(smooth, matrix(1, 0, 0, 1))[inside], smooth[inside], rtol=0, atol=1e-9)
    torch.testing.assert_close(warp(smooth, matrix(-1, 0, 0, 1))[inside], smooth.flip(3)[inside], rtol=0, atol=0.01)
    c, s = math.cos(0.6), math.sin(0.6)
    there = warp(smooth, matrix(c, -s, s, c))
    torch.testing.assert_close(warp(there, matrix(c, s, -s, c))[inside], smooth[inside], rtol=0, atol=0.05)
    assert (there - smooth)[inside].abs().max() > 0.5
