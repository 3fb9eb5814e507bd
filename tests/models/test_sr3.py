"""SR3: what the network sees and is told, the law of the levels, the exact posterior of Gaussian images, learning digits."""

import math

import numpy as np
import pytest
import torch
from diffused import NET, Told, randomised
from PIL import Image
from tiny import opened, smoke, trainer

from gencli import recipe
from gencli.bundle import Run
from gencli.config import merge
from gencli.core import Field, Rng, Spec, Turn
from gencli.data._resize import resize
from gencli.errors import GencliError
from gencli.evaluation.conditions import encoded
from gencli.evaluation.generate import Request, samples
from gencli.guidance._base import Guidance
from gencli.metrics.reconstruction import psnr
from gencli.metrics.translation import Translation, enlarged
from gencli.models.diffusion.sr3 import Sr3
from gencli.samplers.ancestral import Ancestral
from gencli.samplers.ddim import Ddim
from gencli.training.session import resolve


def images(side=8, small=4, channels=1):
    def field(size):
        return Field("image", (channels, size, size), vocab=256, range=(-1.0, 1.0))

    return Spec(field(side), {"image": field(small), "label": Field("label", (), vocab=3)})


def made(side=8, small=4, channels=1, **settings):
    torch.manual_seed(0)
    model = Sr3.make({"net": {**NET, "attention": ()}, **settings}, images(side, small, channels))
    randomised(model.net)
    return model


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ------------------------------------------------------------------------------------ what the network sees, and is told


def test_colours_are_six_channels_the_second_three_the_image_enlarged_as_pillow_does_at_every_level():
    model = made(channels=3)
    assert model.net.conv_in.in_channels == 6
    model.net = Told(lambda x, level, **cond: torch.zeros_like(x[:, :3]))
    x, image = normal(3, 3, 8, 8), normal(3, 3, 4, 4, seed=1)
    for sigma in (0.0, 0.01, 1.0, 100.0):
        model.denoise(x, torch.tensor(sigma, dtype=torch.float64), image=image)
        seen, level, cond = model.net.asked
        torch.testing.assert_close(seen[:, :3], x / math.sqrt(1 + sigma**2))
        for item in range(3):
            for plane in range(3):
                large = Image.fromarray(image[item, plane].float().numpy()).resize((8, 8), Image.Resampling.BICUBIC)
                torch.testing.assert_close(seen[item, 3 + plane].float(), torch.from_numpy(np.asarray(large).copy()))
        torch.testing.assert_close(level, torch.full((3,), 1000 / math.sqrt(1 + sigma**2), dtype=torch.float64))
        assert list(cond) == ["label"], "the null label"


def test_an_image_of_the_sides_of_x_stays_as_it_is():
    model, image = made(8, 8), normal(2, 1, 8, 8)
    model.net = Told(lambda x, level, **cond: torch.zeros_like(x[:, :1]))
    model.denoise(normal(2, 1, 8, 8, seed=1), torch.tensor(1.0), image=image)
    torch.testing.assert_close(model.net.asked[0][:, 1:], image, rtol=1e-6, atol=1e-6)


def test_the_level_is_drawn_evenly_within_a_bin_and_all_bins_are_as_likely():
    model, n, bins = made(timesteps=8, beta_first=0.01, beta_last=0.5), 16_000, 8
    root = np.sqrt(np.concatenate([[1.0], np.cumprod(1 - np.linspace(0.01, 0.5, bins))]))
    drawn = 1 / np.sqrt(1 + model.draw_sigma(n, Rng.batch("levels", total=n)).numpy() ** 2)
    place = np.searchsorted(-root, -drawn) - 1  # √ᾱ_t ≤ drawn < √ᾱ_{t−1}
    assert place.min() == 0 and place.max() == bins - 1
    assert np.abs(np.bincount(place) - n / bins).max() < 5 * math.sqrt(n / bins)
    within = np.sort((root[place] - drawn) / (root[place] - root[place + 1]))
    assert within.min() >= 0 and within.max() <= 1
    assert np.abs(within - (np.arange(n) + 0.5) / n).max() < 1.63 / math.sqrt(n), "Kolmogorov's bound of 1 %"
    by_index = np.sqrt(1 / (1 + 1 / drawn**2 - 1))
    assert np.abs(np.sort(by_index) - np.linspace(root[-1], 1, n)).max() > 0.02, "which is not evenly over all"


def test_shares_and_levels_are_inverse_and_the_ends_are_the_schedules():
    model = made()
    u = torch.linspace(0, 1, 777, dtype=torch.float64)
    torch.testing.assert_close(model.share_at(model.sigma_at(u)), u, rtol=0, atol=1e-8)
    assert float(model.sigma_at(torch.zeros(1))) == 0.0
    kept = torch.linspace(1e-6, 0.01, 2000, dtype=torch.float64).neg().add(1).cumprod(0)
    assert model.sigma_max == pytest.approx(float((1 / kept[-1] - 1).sqrt()))
    assert model.sigma_min == pytest.approx(float((1 / kept[0] - 1).sqrt()))


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_the_loss_is_the_papers_in_its_own_coordinates(norm):
    model = made(norm=norm).double()
    batch = {"x": normal(4, 1, 8, 8).tanh(), "image": normal(4, 1, 4, 4, seed=1).tanh(), "label": torch.arange(4) % 3}
    turn = Turn("main", 0, 1, Rng.batch("t", total=4))
    each = model.eval()(batch, turn)["each"]
    root = 1 / (1 + model.draw_sigma(4, turn.rng.at("levels")) ** 2).sqrt()
    noise = turn.rng.at("noise").normal((4, 1, 8, 8)).double()
    r = root[:, None, None, None]
    noisy = r * batch["x"] + (1 - r**2).sqrt() * noise
    large = torch.nn.functional.interpolate(batch["image"], size=(8, 8), mode="bicubic", antialias=True)
    error = noise - model.net(torch.cat([noisy, large], 1), 1000 * root, label=batch["label"])
    wanted = error.abs() if norm == "l1" else error.square()
    torch.testing.assert_close(each, wanted.mean((1, 2, 3)), rtol=1e-6, atol=1e-6)


# ------------------------------------------------------------------------------------------------------------ Gaussian images


class Gaussian:
    """Images N(m, S) of 4×4 and their reductions c = A x: E[x | c] = m + K (c − A m), of covariance P."""

    def __init__(self):
        place = torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0)).double()
        self.mean = 0.3 * normal(16, seed=3)
        self.spread = 0.25 * (-torch.cdist(place, place) / 2).exp()
        rows = torch.kron(torch.eye(2, dtype=torch.float64), torch.full((1, 2), 0.5, dtype=torch.float64))
        self.small = torch.kron(rows, rows)  # (4, 16): means of 2×2 pixels
        self.gain = self.spread @ self.small.T @ torch.linalg.inv(self.small @ self.spread @ self.small.T)
        self.left = self.spread - self.gain @ self.small @ self.spread

    def given(self, c):
        return self.mean + (c - self.mean @ self.small.T) @ self.gain.T

    def network(self, model, blind=False):
        """E[n | x_t, c] from what the network is shown: x_t, the enlarged image, and √ᾱ."""
        tall = model.get_buffer("tall").double()
        back = torch.linalg.pinv(torch.kron(tall, tall))

        def answer(x, level, **cond):
            root = float(level[0]) / 1000
            sigma = math.sqrt(1 / root**2 - 1)
            noisy, large = x[:, :1].flatten(1) / root, x[:, 1:].flatten(1)
            mean, spread = (self.mean, self.spread) if blind else (self.given(large @ back.T), self.left)
            shrink = spread @ torch.linalg.inv(spread + sigma**2 * torch.eye(16, dtype=torch.float64))
            kept = mean + (noisy - mean) @ shrink.T
            return ((noisy - kept) / sigma).unflatten(1, (1, 4, 4))

        return Told(answer)


@pytest.mark.parametrize("blind", [False, True])
def test_samples_of_gaussian_images_have_the_posterior_of_their_small_image(blind):
    law, n = Gaussian(), 1500
    model = made(4, 2)
    model.net = law.network(model, blind)
    c = (law.mean + normal(16, seed=5) @ torch.linalg.cholesky(law.spread).T) @ law.small.T
    image = c.reshape(1, 1, 2, 2).expand(n, -1, -1, -1)
    sampler = Ancestral.make({"steps": 250, "variance": "large", "clip": False})
    *_, last = sampler.frames(model, model.spec, n, Rng.batch("s", total=n), {"image": image})
    x = last.x.flatten(1)
    error = (law.left.diagonal().clamp(min=1e-9) / n).sqrt()
    off = ((x.mean(0) - law.given(c)) / error).abs()
    wide = (torch.cov(x.T) - law.left).norm() / law.left.norm()
    if blind:
        assert off.max() > 30 and wide > 1
    else:
        assert off.max() < 3 and wide < 0.1, (off, wide)


# -------------------------------------------------------------------------------------------------------------------- digits


def test_digits_reduce_to_the_small_images_that_they_were_drawn_from():
    train = {"steps": 150, "batch_size": 16, "lr": 8e-3, "warmup": 5}
    table = merge(smoke("sr3"), {"data": {"image_size": "8", "factor": 2}, "train": train})
    one, data = trainer(table), opened(resolve(table)["data"])
    small = data.split("test").batch(torch.arange(48))["image"]

    def score(drawn):
        return float(psnr(small, torch.from_numpy(resize(drawn.numpy(), 4))).mean())

    def made_of(given):
        return samples(one.run, Request(range(48), encoded(one.run, {"image": given}), Ddim.make({"steps": 10})))

    with one.average.worn_by(one.run.model):
        untrained = score(made_of(small))
    for _ in one:
        pass
    with one.average.worn_by(one.run.model):
        right, wrong = score(made_of(small)), score(made_of(small.roll(1, 0)))
    mean = torch.from_numpy(data.split("train").x).float().mean(0).round().byte().expand(48, -1, -1, -1)
    controls = (wrong, untrained, score(mean))
    assert right > 18 > max(controls), (right, controls)


def test_translation_measures_it_beside_the_enlarged_image():
    tables = smoke("sr3")
    run = Run.build(tables, opened(tables["data"]).spec)
    run.config["recipe"] = tables
    run.model.eval()
    items = opened(tables["data"]).split("test")
    values = {v.name: v.value for v in Translation.make({})(run, items, Rng.batch("t", total=1), 12, 5)}
    again = {v.name: v.value for v in Translation.make({})(run, items, Rng.batch("t", total=1), 12, 64)}
    assert values == {name: pytest.approx(value, abs=1e-3) for name, value in again.items()}
    raw = items.batch(torch.arange(12) * len(items) // 12)
    assert values["psnr of copies"] == pytest.approx(float(psnr(raw["x"], enlarged(raw["image"], raw["x"])).mean()))


# --------------------------------------------------------------------------------------------------------- recipes and refusals


def test_the_recipe_of_faces_has_the_third_partys_constants():
    table = resolve(recipe.load("sr3-faces"))
    model, train, data = table["model"], table["train"], table["data"]
    net = model["net"]
    assert (net["width"], list(net["mults"]), net["blocks"], list(net["attention"])) == (64, [1, 2, 4, 8, 8], 2, [16])
    assert (net["dropout"], model["timesteps"], model["beta_first"], model["beta_last"]) == (0.2, 2000, 1e-6, 0.01)
    assert (train["lr"], train["steps"], data["image_size"], data["factor"]) == (1e-4, 1_000_000, "128", 8)
    field = Field("image", (3, 128, 128), vocab=256, range=(-1.0, 1.0))
    with torch.device("meta"):
        built = Sr3.make(
            {k: v for k, v in model.items() if k != "name"}, Spec(field, {"image": images(128, 16, 3).cond["image"]})
        )
    assert built.net.conv_in.in_channels == 6


def test_any_set_of_images_is_reduced_and_pairs_are_taken_as_they_are():
    def data(**table):
        return resolve({"model": {"name": "sr3", "net": NET}, "data": table})["data"]

    assert data(name="digits", image_size="16") == data(name="reduced", of="digits", image_size="16")
    assert data(name="folder", path="x")["of"] == "folder" and data(name="folder", path="x")["path"] == "x"
    assert data(name="edges")["name"] == "edges"


@pytest.mark.parametrize(
    ("settings", "spec", "words"),
    [
        ({}, Spec(images().x), "the data have none to enlarge"),
        ({}, Spec(images().x, {"image": images(16).x}), "sr3 needs images no larger"),
        ({"beta_first": 0.5}, images(), "beta_first 0.5 is above beta_last 0.01"),
        ({"level": 0.2, "augment": 0.1}, images(), "level 0.2 is above augment 0.1"),
        ({"truncated": True, "augment": 0.1}, images(), "stop nowhere"),
    ],
)
def test_what_cannot_be_is_refused(settings, spec, words):
    with pytest.raises(GencliError, match=words):
        Sr3.make({"net": NET, **settings}, spec)


def test_without_an_image_nothing_is_drawn():
    with pytest.raises(GencliError, match="none is given") as error:
        made().denoise(torch.zeros(1, 1, 8, 8), torch.tensor(1.0))
    assert "--input" in error.value.hint


def test_guidance_drops_the_class_and_keeps_the_image():
    model = made()
    x, sigma = normal(2, 1, 8, 8), torch.tensor(1.0, dtype=torch.float64)
    cond = {"image": normal(2, 1, 4, 4, seed=1), "label": torch.arange(2)}
    sampler = Ddim.make({"steps": 2, "clip": False})
    guided = sampler.denoiser(model, model.spec, cond, Guidance.of(3.0), {})(x, sigma)
    told, free = model.denoise(x, sigma, **cond), model.denoise(x, sigma, image=cond["image"])
    torch.testing.assert_close(guided, free + 3 * (told - free))
    assert not torch.allclose(told, free)
