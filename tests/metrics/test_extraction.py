"""Extraction: tiled distances by their definition, planted and drawn copies found, new images not, membership by the loss."""

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from damage import noise
from evidence import beside_digits, digits, images, seen, split

from gencli.bundle import Run
from gencli.codecs.pixels import Pixels
from gencli.core import Model, Rng
from gencli.errors import GencliError
from gencli.metrics.extraction import Extraction, cliques, losses, tiled


def random_images(n, side=16, channels=1, seed=0):
    return torch.randint(256, (n, channels, side, side), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


def measured(evidence, **settings):
    return {value.name: value for value in Extraction.make(settings)(evidence)}


# ------------------------------------------------------------------------------------------------------------------ distances


@pytest.mark.parametrize(("side", "channels", "tiles"), [(16, 1, 4), (12, 3, 4), (10, 1, 3), (2, 1, 4)])
def test_the_distance_is_the_greatest_over_tiles(side, channels, tiles):
    a, b = random_images(5, side, channels), random_images(7, side, channels, 1)
    edges = sorted({round(i * side / tiles) for i in range(tiles + 1)})
    expected = np.zeros((5, 7))
    for top, bottom in itertools.pairwise(edges):
        for left, right in itertools.pairwise(edges):
            x, y = (part[:, :, top:bottom, left:right].double().numpy() / 255 for part in (a, b))
            rms = np.sqrt(((x[:, None] - y[None]) ** 2).mean((2, 3, 4)))
            expected = np.maximum(expected, rms)
    assert np.allclose(tiled(a, b, tiles), expected, atol=1e-12)


def test_equal_images_are_at_zero_and_one_changed_tile_counts_in_full():
    x = random_images(4)
    assert not np.diag(tiled(x, x)).any()
    y = x.clone()
    y[:, :, :4, :4] = 255 - y[:, :, :4, :4]
    one = tiled(x, y)
    assert np.allclose(np.diag(one), np.diag(tiled(x[:, :, :4, :4], y[:, :, :4, :4], 1)))
    assert np.allclose(np.diag(tiled(x, y, 1)), np.diag(one) / 4), "over the whole image it is spread thin"


def test_every_pair_of_a_clique_is_near_and_no_item_is_in_two():
    rng = np.random.default_rng(0)
    near = rng.random((60, 60)) < 0.5
    near |= near.T
    near[:12, :12] = True
    found = cliques(near, 3)
    assert found and max(map(len, found)) >= 8
    for members in found:
        assert all(near[a, b] for a in members for b in members if a != b)
    assert len(set(np.concatenate(found))) == sum(map(len, found))
    chain = np.eye(9, dtype=bool) | np.eye(9, k=1, dtype=bool) | np.eye(9, k=-1, dtype=bool)
    assert max(map(len, cliques(chain, 2))) == 2, "a chain is connected, but no clique"


# --------------------------------------------------------------------------------------------------------------- planted copies


def test_planted_copies_are_found_and_held_out_images_are_not():
    train, test = (torch.from_numpy(digits().split(name).x) for name in ("train", "test"))
    planted = noise(train[:32].repeat_interleave(5, 0), 5)
    made = measured(beside_digits(images(torch.cat([planted, test[85:]])), test=images(test[:85])))
    found = {row["training"] for row in made["extraction"].facts["extracted"]}
    assert len(found & set(range(32))) >= 0.9 * 32 and made["extraction"].value == len(found) <= 32
    assert made["extraction-share"].value == pytest.approx(160 / (160 + len(test[85:])), abs=0.01)
    fresh = measured(beside_digits(images(test[85:]), test=images(test[:85])))
    assert fresh["extraction"].value == 0 and fresh["extraction-share"].value < 0.01


def test_a_collapse_that_is_no_copy_is_suspected_and_not_extracted():
    one = torch.from_numpy(digits().split("test").x[3:4]).repeat(30, 1, 1, 1)
    made = measured(beside_digits(images(one)))
    assert made["extraction"].value == 0 and made["extraction"].facts["unmatched"] == 1


# --------------------------------------------------------------------------------------------------- a model, and what it knows


class ByHeart(Model):
    """The exact minimiser of the denoising loss over a few items: it has learnt them by heart."""

    meaning = "mean"
    levels = None
    sigma_min, sigma_max = 0.002, 80.0

    @dataclass(frozen=True)
    class Config:
        pass

    def __init__(self, items, spec):
        super().__init__(self.Config(), spec)
        self.items = torch.nn.Parameter(items, requires_grad=False)

    def loss(self, batch, turn):
        raise NotImplementedError

    def denoise(self, x, sigma, **cond):
        known = self.items.flatten(1).to(x)
        far = torch.cdist(x.flatten(1), known).square() / (2 * torch.as_tensor(sigma).to(x).reshape(-1, 1) ** 2)
        return ((-far).softmax(1) @ known).view_as(x)

    def start(self, noise, sigma):
        return sigma * noise


def run_of(model_of):
    pixels = Pixels.make()
    spec = pixels.spec(digits().spec)
    return Run(model_of(pixels, spec), [pixels], spec, digits().spec)


def by_heart(items):
    def make(pixels, spec):
        return ByHeart(pixels.encode({"x": torch.from_numpy(items.x)})["x"], spec)

    return run_of(make)


def test_a_model_that_learnt_sixteen_images_by_heart_gives_them_away():
    few = digits().split("train").only(np.arange(16) * 90)
    run = by_heart(few)
    x = run.sample(Rng.rows(range(160)), None, run.sampler("ddim", {"steps": 12}))["x"]
    made = measured(beside_digits(images(x), run, train=seen(few)))
    assert made["extraction"].value >= 0.9 * 16 and made["extraction-share"].value > 0.95
    assert made["membership-auc"].value > 0.99


def test_a_model_that_learnt_nothing_tells_nobody():
    from gencli.models.diffusion.ddpm import Ddpm

    net = {"name": "unet", "width": 8, "mults": [1], "blocks": 1, "attention": []}

    def make(pixels, spec):
        torch.manual_seed(0)
        model = Ddpm.make({"net": net}, spec).eval()
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.05 * torch.randn_like(p))
        return model

    auc = Extraction.make({"draws": 2}).membership(beside_digits(images(digits().split("test").x), run_of(make)))
    assert auc.value == pytest.approx(0.5, abs=0.05) and auc.interval[0] < 0.5 < auc.interval[1]
    assert auc.facts["sigma"] == pytest.approx(0.35, rel=0.02)


def test_the_loss_of_an_item_depends_on_no_other():
    few = digits().split("train").only(np.arange(8) * 30)
    run, test = by_heart(few), digits().split("test")
    whole, parts = (losses(run, test, 5, 12, 0.4, 2, batch) for batch in (12, 5))
    assert np.allclose(whole, parts, rtol=1e-5) and len(whole) == 12
    assert not np.allclose(whole, losses(run, test, 6, 12, 0.4, 2, 12), rtol=1e-3)


def test_samples_of_another_size_are_refused():
    with pytest.raises(GencliError, match=r"the samples are \(1, 8, 8\)"):
        Extraction.make()(beside_digits(images(np.zeros((9, 1, 8, 8), np.uint8)), test=split("test")))
