"""Cold diffusion: the degradations, and which algorithm ends at the image."""

import pytest
import torch
from torch import nn

from gencli import recipe
from gencli.config import choose
from gencli.core import Field, LatentVariable, Rng, Spec, Turn
from gencli.errors import GencliError
from gencli.models.diffusion._degradations import Degradation, kernels
from gencli.models.diffusion.cold_diffusion import ColdDiffusion
from gencli.samplers.ddim import Ddim
from gencli.samplers.prior import Prior

NET = {"name": "unet", "width": 4, "mults": (1,), "blocks": 1, "attention": ()}
SPEC = Spec(Field("image", (2, 8, 12), vocab=256, range=(-1.0, 1.0)))
NAMES = ("blur", "pixelate", "mask")


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def shaken(spec=SPEC, **settings):
    model = ColdDiffusion.make({"net": NET, "timesteps": 6, "kernel_last": 3.0, **settings}, spec)
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) * 0.3)
    return model.double().eval()


def every_step(model, image):
    """D(x, t) of one image for t = 0 … T."""
    steps = torch.arange(model.degrade.steps + 1)
    colour = torch.tensor([[0.25, -0.5]], dtype=torch.float64).expand(len(steps), 2)
    return model.degrade(image.expand(len(steps), *image.shape[1:]), steps, colour)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_done_at_zero_and_one_colour_is_left_at_the_end(name):
    image = numbers(1, 2, 8, 12)
    made = every_step(shaken(degradation=name), image)
    assert torch.equal(made[:1], image)
    left = torch.tensor([0.25, -0.5]).double() if name == "mask" else image.mean((2, 3))[0]
    assert (made[-1] - left[:, None, None]).abs().max() < 1e-6
    spread = made.var((2, 3)).sum(1)
    assert (spread.diff() < 1e-9).all() and (spread.diff() < -1e-3).sum() >= 4, "less is left at every step"


def test_the_blur_is_kernel_after_kernel():
    """Of a point in the middle of a large field: a Gaussian whose variance is the sum of the kernels'."""
    side, stds = 64, kernels(5, 1.0, 3.0, "exponential")
    point = torch.zeros(1, 1, side, side)
    point[..., 32, 32] = 1
    degrade = Degradation("blur", (side, side), 5, stds)
    for t in range(1, 5):
        made = degrade(point, torch.tensor([t]), torch.zeros(1, 1))[0, 0].double()
        place = torch.arange(side).double() - 32
        assert float((made.sum(0) * place**2).sum()) == pytest.approx(float(stds[:t].square().sum()), rel=1e-4)
    assert stds[[0, 4]].tolist() == pytest.approx([1, 3]) and torch.allclose(stds[1:] / stds[:-1], stds[1] / stds[0])


def test_pixels_of_powers_of_two_are_means_of_squares():
    degrade = Degradation("pixelate", (8, 8), 3, kernels(3, 1, 1, "linear"))
    image = numbers(1, 1, 8, 8)
    for t in range(4):
        size = 2**t
        squares = nn.functional.avg_pool2d(image, size).repeat_interleave(size, 2).repeat_interleave(size, 3)
        assert (degrade(image, torch.tensor([t]), torch.zeros(1, 1)) - squares).abs().max() < 1e-6


class Straight(nn.Module):
    """D(x, s) = x + s e."""

    def __init__(self, steps, e):
        super().__init__()
        self.steps, self.e = steps, e

    def forward(self, x, t, colour):
        return x + t.reshape(-1, 1, 1, 1) * self.e


def test_algorithm_two_ends_at_the_image_whatever_the_network_says_and_algorithm_one_does_not():
    image, e = numbers(3, 2, 8, 12, seed=1), numbers(3, 2, 8, 12, seed=2)
    apart = {}
    for algorithm in ("improved", "naive"):
        model = shaken(algorithm=algorithm)
        model.degrade = Straight(6, e)
        x = image + 6 * e
        with torch.no_grad():
            for s in range(6, 0, -1):
                x = model.improve(x, s, torch.zeros(3, 2))
        apart[algorithm] = float((x - image).abs().max())
    assert apart["improved"] < 1e-9 and apart["naive"] > 0.1


class Noising(nn.Module):
    """D(x, s) = √ᾱ x + √(1 − ᾱ) n with the noise estimated at the current step."""

    def __init__(self, table):
        super().__init__()
        self.table, self.steps, self.now = table, len(table) - 1, None

    def forward(self, x0, t, colour):
        x, s = self.now
        here, there = self.table[s], self.table[t].reshape(-1, 1, 1, 1)
        noise = (x - here.sqrt() * x0) / (1 - here).sqrt()
        return there.sqrt() * x0 + (1 - there).sqrt() * noise


class AsDenoiser:
    """The restoration network in the coordinates of denoisers."""

    meaning, device = "mean", torch.device("cpu")

    def __init__(self, model, table):
        self.model, self.table, self.spec = model, table, model.spec
        self.levels = (1 / table[1:] - 1).sqrt().flip(0)

    def denoise(self, x, sigma, **cond):
        step = len(self.levels) - int((self.levels - sigma).abs().argmin())
        return self.model.restore(x / (1 + sigma**2).sqrt(), torch.full((len(x),), step))

    def start(self, noise, sigma):
        return noise * (1 + sigma**2).sqrt()


def test_with_noise_as_the_degradation_it_is_ddim():
    model, table = shaken(), torch.linspace(1.0, 0.05, 7, dtype=torch.float64)
    noise = numbers(3, 2, 8, 12, seed=3)
    model.degrade = Noising(table)
    x = noise
    for s in range(6, 0, -1):
        model.degrade.now = (x, s)
        x = model.improve(x, s, torch.zeros(3, 2))
    other = AsDenoiser(model, table)
    sampler = Ddim.make({"steps": 6, "clip": False, "noise_schedule": "model"})
    levels = torch.cat([other.levels, other.levels.new_zeros(1)])
    *_, last = sampler.run(other.denoise, other.start(noise, levels[0]), levels, Rng.batch(0, total=3))
    assert (x - last.x).abs().max() < 1e-9


def test_the_start_has_the_colours_of_the_training_images():
    generator = torch.Generator().manual_seed(0)
    root = torch.tensor([[0.3, 0.0], [0.2, 0.1]])
    colours = torch.tensor([0.1, -0.2]) + torch.randn(3000, 2, generator=generator) @ root.T
    data = iter([{"x": colours[i : i + 500, :, None, None].expand(-1, -1, 8, 12)} for i in range(0, 3000, 500)])
    model = shaken(noise=0.01)
    model.initialise(data, 3000, Rng.batch(0, total=1))
    first = next(model.walk(model.prior(4000, Rng.batch(1, total=4000)))).double()
    made = first.mean((2, 3))
    assert (made.mean(0) - colours.mean(0)).abs().max() < 0.02
    assert (made.T.cov() - colours.double().T.cov()).abs().max() < 0.01
    assert float((first - made[:, :, None, None]).std()) == pytest.approx(0.01, rel=0.02)


def test_colours_of_the_mask_are_spread_over_the_middle_of_the_range():
    model = shaken(degradation="mask", noise=0.0)
    first = next(model.walk(model.prior(4000, Rng.batch(1, total=4000))))[:, :, 0, 0].double()
    assert float(first.min()) > -0.5 and float(first.max()) < 0.5
    assert float((first < 0.25).double().mean()) == pytest.approx(0.75, abs=0.02)


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_is_a_function_of_its_latent_and_the_last_stage(name):
    model = shaken(degradation=name, timesteps=50)
    assert isinstance(model, LatentVariable)
    z = model.prior(2, Rng.rows([3, 4]))
    with torch.no_grad():
        once, again, stages = model.decode(z), model.decode(z), model.stages(z)
        *_, frame = Prior.make().frames(model, model.spec, 2, Rng.rows([3, 4]), {})
    assert torch.equal(once, again) and torch.equal(stages[-1], once) and 20 <= len(stages) <= 27
    assert torch.equal(stages[0], next(model.walk(z))) and frame.x.shape == once.shape


def test_the_loss_is_the_mean_absolute_error_of_the_restored_image():
    model = shaken()
    model.restore = lambda x, t: torch.zeros_like(x)
    x = numbers(6, 2, 8, 12)
    losses = model({"x": x}, Turn("main", 0, 1, Rng.batch(0, total=6)))
    assert torch.allclose(losses["each"], x.abs().mean((1, 2, 3))) and torch.allclose(losses["loss"], x.abs().mean())


def test_every_step_is_trained_and_the_network_is_told_it():
    model, seen = shaken(), []
    model.degrade.register_forward_hook(lambda module, given, out: seen.append(given[1]))
    model.net.register_forward_hook(lambda module, given, out: seen.append(given[1]))
    model({"x": numbers(200, 2, 8, 12)}, Turn("main", 0, 1, Rng.batch(0, total=200)))
    assert set(seen[0].tolist()) == set(range(1, 7)) and torch.equal(seen[1], (seen[0] - 1).float())


def test_points_are_refused():
    with pytest.raises(GencliError, match="cold-diffusion degrades images, the data are points"):
        ColdDiffusion.make({"net": NET}, Spec(Field("points", (2,))))


def test_the_cifar10_recipe_has_the_authors_kernels_and_network():
    spec = Spec(Field("image", (3, 32, 32), vocab=256, range=(-1.0, 1.0)))
    model = choose("models", recipe.load("cold-diffusion-cifar10")["model"])
    stds = kernels(50, model.config.kernel_first, model.config.kernel_last, model.config.kernel_growth)
    assert torch.allclose(stds, torch.arange(50).double() / 100 + 0.35)
    with torch.device("meta"):
        assert sum(p.numel() for p in model.build(spec).parameters()) == 35_746_307
