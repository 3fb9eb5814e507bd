"""Layers that keep the magnitude of what passes, and whose outputs depend on the direction of their weights alone."""

import math

import pytest
import torch

from gencli.nn.magnitude import (
    LogVariance,
    MPFourier,
    MPLayer,
    mp_cat,
    mp_silu,
    mp_sum,
    normalise_weights,
    unit_magnitude,
)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def magnitude(x):
    return float(x.detach().square().mean().sqrt())


def test_every_layer_keeps_unit_magnitude():
    torch.manual_seed(9)  # not what the inputs are drawn from
    x, y, maps = normal(2000, 200), normal(2000, 50, seed=1), normal(4, 64, 34, 34, seed=2)
    made = {
        "linear": MPLayer(200, 300)(x),
        "convolution": MPLayer(64, 96, kernel=3)(maps)[..., 1:-1, 1:-1],  # padding is less
        "silu": mp_silu(x),
        "sum": mp_sum(x[:, :50], y, 0.3),
        "cat": mp_cat(x, y, 0.3),
        "waves": MPFourier(200)(torch.linspace(-2, 1, 500)),
        "pixel norm": unit_magnitude(7 * maps + 3, [1]),
    }
    assert {name: magnitude(h) for name, h in made.items()} == pytest.approx(dict.fromkeys(made, 1), abs=0.02)
    plain = torch.nn.functional.silu(x)
    assert magnitude(plain) < 0.9 and magnitude(0.7 * x[:, :50] + 0.3 * y) < 0.9  # what these correct


def test_the_parts_of_a_cat_contribute_as_asked_whatever_their_width():
    a, b = normal(500, 200), normal(500, 20, seed=1)
    made = mp_cat(a, b, 0.3)
    left, right = made[:, :200].square().sum(), made[:, 200:].square().sum()
    assert float((right / left).sqrt()) == pytest.approx(0.3 / 0.7, rel=0.05)
    assert made.shape == (500, 220)
    halved = mp_sum(a, a.flip(0), 0.5)
    assert torch.allclose(halved, (a + a.flip(0)) / math.sqrt(2), atol=1e-6)


@pytest.mark.parametrize("kernel", [None, 3])
def test_outputs_depend_on_the_direction_of_weights_alone(kernel):
    layer = MPLayer(6, 5, kernel)
    x = normal(3, 6) if kernel is None else normal(3, 6, 4, 4)
    plain = layer(x)
    w = layer.weight / layer.weight.square().flatten(1).mean(1).sqrt().reshape(-1, *[1] * (layer.weight.ndim - 1))
    w = w / math.sqrt(w[0].numel())
    expected = x @ w.T if kernel is None else torch.nn.functional.conv2d(x, w, padding=1)
    assert (plain - expected).abs().max() < 1e-3
    assert torch.allclose(layer(x, gain=0.5), 0.5 * plain, atol=1e-6)
    with torch.no_grad():
        layer.weight.mul_(torch.arange(1.0, 6.0).reshape(-1, *[1] * (layer.weight.ndim - 1)))
    assert (layer(x) - plain).abs().max() < 1e-3
    layer(x).pow(3).sum().backward()
    along = (layer.weight * layer.weight.grad).flatten(1).sum(1)
    assert along.abs().max() < 1e-3 * layer.weight.grad.abs().max()  # a step never shortens a weight


def test_forced_normalisation_keeps_stored_weights_at_one_where_training_lets_them_grow():
    def trained(forced):
        torch.manual_seed(0)
        net = torch.nn.Sequential(MPLayer(8, 16), torch.nn.Sequential(MPLayer(16, 4)))
        optimiser = torch.optim.Adam(net.parameters(), lr=0.1)
        for step in range(100):
            optimiser.zero_grad()
            net(normal(32, 8, seed=step)).sub(1).square().mean().backward()
            optimiser.step()
            if forced:
                normalise_weights(net)
        return [magnitude(p) for p in net.parameters()]

    assert all(m == pytest.approx(1, abs=1e-3) for m in trained(forced=True))
    assert min(trained(forced=False)) > 1.2


def test_normalising_leaves_the_function_and_new_weights_are_normalised():
    torch.manual_seed(0)
    net = torch.nn.Sequential(MPLayer(8, 16), MPLayer(16, 4))
    assert all(magnitude(p) == pytest.approx(1, abs=1e-3) for p in net.parameters())
    with torch.no_grad():
        for weight in net.parameters():
            weight.mul_(5)
    x = normal(3, 8)
    before = net(x)
    normalise_weights(net)
    assert (net(x) - before).abs().max() < 1e-3


def test_waves_are_fixed_and_tell_levels_apart():
    torch.manual_seed(0)
    waves = MPFourier(64)
    assert not list(waves.parameters()) and set(waves.state_dict()) == {"frequency", "phase"}
    level = torch.linspace(-1.6, 1.1, 50)
    made = waves(level)
    expected = math.sqrt(2) * torch.cos(level[:, None] * waves.frequency + waves.phase)
    assert torch.allclose(made, expected, atol=1e-6)
    assert (torch.cdist(made, made) + 99 * torch.eye(50)).min() > 1
    assert 4.5 < waves.frequency.std() < 8  # 2π


def test_log_variance_is_a_trainable_function_of_the_level():
    torch.manual_seed(0)
    uncertain = LogVariance(32)
    level = torch.linspace(-1.6, 1.1, 64)
    optimiser = torch.optim.Adam(uncertain.parameters(), lr=0.05)
    start = uncertain(level)
    assert start.shape == (64,) and start.std() > 0.1
    for _ in range(60):  # the loss of a Gaussian whose variance is exp(level): the minimum of L / u² + log u² is L
        optimiser.zero_grad()
        log = uncertain(level)
        (level.exp() / log.exp() + log).mean().backward()
        optimiser.step()
        uncertain.linear.normalise()
    assert (uncertain(level) - level).abs().mean() < 0.7 * (start - level).abs().mean()
