"""NCSN: its ladder, its loss, and what annealing is for."""

import math

import pytest
import torch
from torch import nn

from gencli import recipe
from gencli.config import choose
from gencli.core import Denoiser, Field, Rng, Spec, Turn
from gencli.errors import GencliError
from gencli.models.diffusion.ncsn import Ncsn
from gencli.samplers.annealed_langevin import AnnealedLangevin
from gencli.samplers.langevin import Langevin

NET = {"name": "unet", "width": 4, "mults": (1,), "blocks": 1, "attention": ()}
IMAGE = Spec(Field("image", (1, 4, 4), vocab=256, range=(0.0, 1.0)))
LINE = Spec(Field("points", (1, 1, 1)))


class Says(nn.Module):
    """A network that answers what it is told to and remembers what it was asked."""

    def __init__(self, answer):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.answer = answer

    def forward(self, x, level, **cond):
        self.asked = (x, level)
        return self.answer(x, level)


def mixture_score(x, sigma):
    """∇ log of 0.2 N(−5, 1) + 0.8 N(5, 1), smoothed by sigma."""
    variance = 1 + sigma**2
    near = torch.sigmoid(math.log(0.8 / 0.2) + 10 * x / variance)  # of the component at 5
    return (5 * (2 * near - 1) - x) / variance


def test_the_ladder_is_the_papers():
    levels = Ncsn.make({"net": NET}, IMAGE).levels
    assert levels.dtype == torch.float64 and len(levels) == 10
    assert levels[[0, 1, 2, 9]].tolist() == pytest.approx([1, 0.599484250318941, 0.3594, 0.01], rel=1e-4)
    assert torch.allclose(levels[:-1] / levels[1:], torch.full((9,), 1.6681005372000588, dtype=torch.float64))


def test_a_score_of_zero_costs_half_the_dimension_at_every_level():
    count = 4000
    for output in ("score", "noise"):
        model = Ncsn.make({"net": NET, "output": output}, IMAGE)
        model.net = Says(lambda x, level: torch.zeros_like(x))
        noise = torch.randn(count, 1, 4, 4, generator=torch.Generator().manual_seed(0))
        data = torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(1))
        for sigma in model.levels:
            each = model.errors(data, noise, sigma.expand(count), {})
            assert each.shape == (count,) and float(each.mean()) == pytest.approx(8, rel=0.03)


def test_the_true_score_of_one_image_costs_nothing():
    """That is −n/σ; the network says it, or σ times it."""
    data, noise = torch.rand(10, 1, 4, 4, dtype=torch.float64), torch.randn(10, 1, 4, 4, dtype=torch.float64)
    for output, said in (("score", lambda sigma: -noise / sigma), ("noise", lambda sigma: -noise)):
        model = Ncsn.make({"net": NET, "output": output}, IMAGE)
        sigma = model.levels.reshape(-1, 1, 1, 1)
        model.net = Says(lambda x, level, say=said, s=sigma: say(s))
        assert float(model.errors(data, noise, model.levels, {}).max()) < 1e-20
        assert float((model.denoise(data + sigma * noise, model.levels) - data).abs().max()) < 1e-12


def test_the_network_is_told_the_index_and_sees_images_between_minus_one_and_one():
    model = Ncsn.make({"net": NET}, IMAGE)
    model.net = Says(lambda x, level: torch.zeros_like(x))
    x = torch.rand(10, 1, 4, 4, dtype=torch.float64)
    model.denoise(x, model.levels)
    seen, level = model.net.asked
    assert level.tolist() == list(range(10)) and torch.allclose(seen, 2 * x - 1)
    model.denoise(x, model.levels * torch.tensor([1.25, 0.8] * 5, dtype=torch.float64))  # less than half a rung away
    assert model.net.asked[1].tolist() == list(range(10))


def test_the_start_is_uniform_noise():
    noise = torch.randn(20_000, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    start = Ncsn.make({"net": NET}, IMAGE).start(noise, torch.tensor(1.0)).flatten()
    assert float(start.min()) > 0 and float(start.max()) < 1
    for q in (0.1, 0.5, 0.9):
        assert float((start < q).double().mean()) == pytest.approx(q, abs=0.005)
    assert torch.equal(Ncsn.make({"net": NET}, LINE).start(noise, torch.tensor(2.0)), 2 * noise)


def test_annealing_finds_the_weights_of_far_modes_and_one_level_keeps_its_start():
    settings = {"net": NET, "noise_levels": 20, "sigma_begin": 20.0, "sigma_end": 0.1}
    model = Ncsn.make(settings, LINE)
    model.net = Says(lambda x, level: mixture_score(x, model.levels[level.long()].reshape(-1, 1, 1, 1)))
    assert isinstance(model, Denoiser)
    rng = Rng.batch("mixture", total=1000)
    *_, last = AnnealedLangevin.make({"inner": 40, "step_size": 0.2}).frames(model, LINE, 1000, rng, {})
    assert float((last.x > 0).double().mean()) == pytest.approx(0.8, abs=0.06)
    alone = Langevin.make({"steps": 300, "step_size": 0.2, "sigma": 0.1})
    start = rng.at("start").uniform((1000, 1, 1, 1), torch.float64) * 20 - 10
    *_, last = alone.run(model.denoise, start, alone.levels(model), rng)
    assert float((last.x > 0).double().mean()) == pytest.approx(0.5, abs=0.06), "as the start was"


def test_what_cannot_be_is_refused():
    with pytest.raises(GencliError, match="sigma_end 2"):
        Ncsn.make({"net": NET, "sigma_end": 2.0}, IMAGE)
    with pytest.raises(GencliError, match="norms for 10 levels, the model has 7") as caught:
        Ncsn.make({"net": {"name": "refinenet", "width": 4}, "noise_levels": 7}, IMAGE)
    assert caught.value.hint == "give --net.levels 7"


def test_the_cifar10_recipe_is_the_official_network():
    spec = Spec(Field("image", (3, 32, 32), vocab=256, range=(0.0, 1.0)))
    with torch.device("meta"):
        model = choose("models", recipe.load("ncsn-cifar10")["model"]).build(spec)
    assert sum(p.numel() for p in model.parameters()) == 30_117_635
    sampler = choose("samplers", recipe.load("ncsn-cifar10")["sample"]).build()
    assert sampler.config.step_size / 2 * 0.01**2 == pytest.approx(2e-5)
    assert len(sampler.levels(model)) - 1 == 1000


def test_every_level_is_drawn_equally_often():
    model = Ncsn.make({"net": NET, "noise_levels": 4}, IMAGE)
    drawn = model.draw_sigma(40_000, Rng.batch(0, total=40_000))
    counts = torch.stack([(drawn == level).sum() for level in model.levels])
    assert counts.sum() == 40_000 and (counts - 10_000).abs().max() < 450


def test_the_loss_is_the_mean_of_its_items():
    torch.manual_seed(0)
    model = Ncsn.make({"net": NET}, IMAGE)
    losses = model({"x": torch.rand(6, 1, 4, 4)}, Turn("main", 0, 1, Rng.batch(0, total=6)))
    assert losses["each"].shape == (6,) and torch.allclose(losses["loss"], losses["each"].mean())
