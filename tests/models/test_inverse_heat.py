"""Inverse heat dissipation: the heat equation, the loss, and where sampling starts."""

import itertools
import math

import pytest
import scipy.fft
import torch

from gencli import recipe
from gencli.config import choose
from gencli.core import Field, LatentVariable, Rng, Spec, Turn
from gencli.errors import GencliError
from gencli.models.diffusion._heat import apply, blurs, cosines, survivors
from gencli.models.diffusion.inverse_heat import InverseHeat

NET = {"name": "unet", "width": 4, "mults": (1,), "blocks": 1, "attention": ()}
SPEC = Spec(Field("image", (2, 8, 12), vocab=256, range=(0.0, 1.0)))


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def shaken(**settings):
    model = InverseHeat.make({"net": NET, "timesteps": 6, "blur_max": 8.0, "kept": 40, **settings}, SPEC)
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) * 0.3)
    return model.eval()


def heat(x, std):
    """F of images by one blur of `std` pixels."""
    sides = [blurs(side, torch.tensor([std], dtype=torch.float64))[0] for side in x.shape[2:]]
    return apply(sides[0], x, sides[1])


# --------------------------------------------------------------------------------------------------------- the equation


def test_the_cosines_are_scipys():
    x = numbers(8, 12)
    ours = cosines(8) @ x @ cosines(12).T
    assert (ours - torch.from_numpy(scipy.fft.dctn(x.numpy(), norm="ortho"))).abs().max() < 1e-12
    assert (cosines(12) @ cosines(12).T - torch.eye(12)).abs().max() < 1e-12


def test_blurs_compose_by_their_times_and_keep_the_mean():
    x = numbers(3, 2, 8, 12)
    for s, t in ((0.5, 1.0), (2.0, 3.0), (0.0, 1.5)):
        both = heat(heat(x, s), t)
        assert (both - heat(x, math.hypot(s, t))).abs().max() < 1e-12  # times are half the squares
        assert (both.mean((2, 3)) - x.mean((2, 3))).abs().max() < 1e-12
    assert torch.equal(heat(x, 0.0), x)


def test_after_a_long_time_only_the_mean_is_left():
    x = numbers(3, 2, 8, 12)
    spread = [float(heat(x, std).std((2, 3)).max()) for std in (1.0, 4.0, 16.0, 64.0)]
    assert spread[0] > spread[1] > spread[2] > spread[3] and spread[3] < 1e-12


def test_it_is_the_heat_equation():
    """dF/dτ = the second difference's continuous limit: each cosine decays at the rate of its squared frequency."""
    side, std = 16, 1.3
    for i in (1, 4, 9):
        wave = cosines(side)[i].reshape(1, 1, 1, side).expand(1, 1, side, side)
        left = math.exp(-((math.pi * i / side) ** 2) * std**2 / 2)
        assert (heat(wave, std) - left * wave).abs().max() < 1e-12


def test_survivors_are_the_cosines_that_a_blur_leaves():
    for side, std in ((16, 3.0), (32, 24.0), (8, 0.5)):
        left = torch.exp(-((torch.arange(side) * math.pi / side) ** 2) * std**2 / 2)
        assert survivors(side, std, 1e-3) == int((left >= 1e-3).sum())


# ------------------------------------------------------------------------------------------------------------ the model


def test_the_blurs_are_in_geometric_progression_from_none():
    model = shaken(blur_min=0.5)
    x = torch.rand(7, 2, 8, 12, generator=torch.Generator().manual_seed(0))
    made = model.blurred(x, torch.arange(7))
    assert torch.equal(made[0], x[0])
    for k in range(1, 7):
        std = 0.5 * (8.0 / 0.5) ** ((k - 1) / 5)
        assert (made[k : k + 1] - heat(x[k : k + 1].double(), std)).abs().max() < 1e-5


def test_the_loss_compares_with_the_step_before():
    """A network that takes the blur of its step back, but not the noise, is left with the noise."""
    model = shaken(sigma=0.01)
    x = torch.rand(500, 2, 8, 12, generator=torch.Generator().manual_seed(0))

    def perfect(u, k):
        return u + model.blurred(x, k - 1) - model.blurred(x, k)

    model.less_blurred = perfect
    losses = model({"x": x}, Turn("main", 0, 1, Rng.batch(0, total=500)))
    assert float(losses["loss"]) == pytest.approx(2 * 8 * 12 * 0.01**2, rel=0.02)
    assert losses["each"].shape == (500,) and torch.allclose(losses["loss"], losses["each"].mean())


def test_every_step_is_trained_and_the_network_adds_to_what_it_sees():
    model, seen = shaken(), []
    handle = model.net.register_forward_hook(lambda module, given, out: seen.append(given[1]))
    model({"x": torch.rand(200, 2, 8, 12)}, Turn("main", 0, 1, Rng.batch(0, total=200)))
    handle.remove()
    assert set(seen[0].tolist()) == set(range(1, 7))
    u, k = torch.rand(3, 2, 8, 12), torch.tensor([1, 3, 6])
    assert torch.allclose(model.less_blurred(u, k) - u, model.net(u, k.float()), atol=1e-6)


def test_sampling_starts_from_blurred_training_images_and_noise():
    model = shaken(delta=0.05)
    data = torch.rand(40, 2, 8, 12, generator=torch.Generator().manual_seed(0))
    model.initialise(iter([{"x": data[:25]}, {"x": data[25:]}]), 40, Rng.batch(0, total=1))
    blurriest = model.blurred(data, torch.full((40,), 6))
    z = model.prior(2000, Rng.batch(1, total=2000))
    clean = model.blurriest(z["which"])
    nearest = torch.cdist(clean.double().flatten(1), blurriest.double().flatten(1)).min(1)
    assert nearest.values.max() < 1e-3 and len(nearest.indices.unique()) == 40
    assert nearest.indices.bincount().max() < 2000 / 40 * 1.7, "each as often as the others"
    first = next(model.walk(z))
    assert float((first - clean).std()) == pytest.approx(0.05, rel=0.01)


def test_each_step_adds_noise_of_its_own_but_the_last():
    model = shaken(delta=0.05)
    model.less_blurred = lambda u, k: u
    z = model.prior(50, Rng.batch(0, total=50))
    states = list(model.walk(z))
    steps = [float((b - a).std()) for a, b in itertools.pairwise(states)]
    assert len(states) == 7 and steps[-1] == 0 and all(step == pytest.approx(0.05, rel=0.05) for step in steps[:-1])
    added = torch.stack([b - a for a, b in itertools.pairwise([torch.zeros_like(states[0]), *states[:-1]])])
    assert (torch.corrcoef(added.flatten(1)) - torch.eye(6)).abs().max() < 0.05


def test_a_sample_is_a_function_of_its_latent_and_the_last_stage():
    model = shaken(timesteps=60)
    assert isinstance(model, LatentVariable)
    z = model.prior(2, Rng.rows([3, 4]))
    with torch.no_grad():
        once, again, stages = model.decode(z), model.decode(z), model.stages(z)
        alone = model.decode(model.prior(1, Rng.rows([4])))
    assert torch.equal(once, again) and torch.equal(stages[-1], once) and 20 <= len(stages) <= 32
    assert torch.equal(stages[0], next(model.walk(z)))
    assert torch.allclose(alone, once[1:], rtol=1e-4, atol=1e-4)


def test_what_cannot_be_is_refused():
    with pytest.raises(GencliError, match="inverse-heat blurs images, the data are points"):
        InverseHeat.make({"net": NET}, Spec(Field("points", (2,))))
    with pytest.raises(GencliError, match=r"blur_max 0\.4 is not above"):
        shaken(blur_max=0.4)


def test_the_cifar10_recipe_is_the_official_network():
    spec = Spec(Field("image", (3, 32, 32), vocab=256, range=(0.0, 1.0)))
    with torch.device("meta"):
        model = choose("models", recipe.load("inverse-heat-cifar10")["model"]).build(spec)
    assert sum(p.numel() for p in model.parameters()) == 61_060_867
    assert model.config.delta == 1.25 * model.config.sigma and len(model.rows) == 201
