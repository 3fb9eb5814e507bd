"""EDM's preconditioning, its training distribution, its augmentations, and official parameter counts."""

import math

import pytest
import torch
from diffused import CIFAR, MLP, NET, POINTS, SPEC, Told, counted

from gencli.core import Field, Rng, Spec, Turn
from gencli.errors import GencliError
from gencli.models.diffusion.edm import Edm
from gencli.nn.augment import geometric
from gencli.samplers._likelihood import flow_log_prob


@pytest.mark.parametrize(("name", "count"), [("edm-cifar10", 55_733_891), ("edm-ncsnpp-cifar10", 56_397_827)])
def test_parameter_counts_are_the_official_ones(name, count):
    parameters, buffers = counted(name, CIFAR)
    assert parameters == count or parameters + buffers == count


def test_network_inputs_and_targets_have_unit_variance_at_every_level():
    model = Edm.make({"net": NET}, SPEC)
    model.net = Told(lambda x, level, **cond: torch.zeros_like(x), torch.float32)
    n = 40_000
    data = Rng.batch("data", total=n).normal((n, 1, 4, 4)).double() * 0.5
    for sigma in (0.002, 0.05, 0.5, 3.0, 80.0):
        level = torch.full((n,), sigma, dtype=torch.float64)
        noise = Rng.batch("noise", total=n).normal(data.shape).double()
        model.denoise(data + sigma * noise, level)
        assert float(model.net.asked[0].var()) == pytest.approx(1.0, abs=0.01)
        assert float(model.formulation.target(data, noise, level).var()) == pytest.approx(1.0, abs=0.01)
        assert torch.allclose(model.net.asked[1].double(), level.log() / 4, atol=1e-6)


def test_the_loss_is_the_papers_weighted_error_of_the_denoiser():
    torch.manual_seed(0)
    model = Edm.make({"net": NET, "label_dropout": 0.0}, SPEC)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    batch = {"x": torch.rand(8, 1, 4, 4) * 2 - 1, "label": torch.arange(8)}
    turn = Turn("main", 0, 1, Rng.batch(0, total=8))
    sigma = model.draw_sigma(8, turn.rng.at("levels"))
    noise = turn.rng.at("noise").normal((8, 1, 4, 4))
    s = sigma.reshape(-1, 1, 1, 1)
    weight = (s**2 + 0.25) / (s * 0.5) ** 2
    error = model.denoise((batch["x"] + s * noise).double(), sigma, label=batch["label"]) - batch["x"]
    assert torch.allclose(model(batch, turn)["each"].double(), (weight * error**2).mean((1, 2, 3)), rtol=1e-4)


def test_levels_are_drawn_log_normally():
    drawn = Edm.make({"net": NET}, SPEC).draw_sigma(20_000, Rng.batch(1, total=20_000)).log()
    assert float(drawn.mean()) == pytest.approx(-1.2, abs=0.03) and float(drawn.std()) == pytest.approx(1.2, abs=0.03)


def test_the_density_of_gaussian_data_is_the_closed_form():
    """The exact denoiser inside the model: F that makes D the posterior mean of N(0, 1/4)."""
    model = Edm.make({"net": MLP}, POINTS)
    model.net = Told(lambda x, level, **cond: x * 0, torch.float64)  # D = c_skip x is exact for data of deviation σd
    x = Rng.batch("x", total=6).normal((6, 2)).double() * 0.5
    exact = torch.distributions.Normal(0.0, 0.5).log_prob(x).sum(1)
    made, calls = flow_log_prob(model, x, Rng.rows(range(6)), divergence="exact")
    assert (made - exact).abs().max() < 5e-3 and float(calls.min()) > 5
    probed = model.log_prob(x, Rng.rows(range(6)))
    assert (probed - exact).abs().max() < 5e-3, "the divergence of a linear map is the same for every probe"


# ------------------------------------------------------------------------------------------------------- augmentations


def test_no_augmentation_is_the_identity_or_a_mirror():
    x = torch.rand(40, 1, 8, 8)
    made, labels = geometric(x, 0.0, Rng.batch(0, total=40))
    flipped = labels[:, 0] > 0
    assert 8 < int(flipped.sum()) < 32 and not labels[:, 1:].any()
    assert torch.allclose(made[~flipped], x[~flipped], atol=1e-5)
    assert torch.allclose(made[flipped], x[flipped].flip(-1), atol=1e-5)


def test_augmentations_move_images_as_their_labels_say():
    rows, columns = torch.meshgrid(torch.arange(33.0) - 16, torch.arange(33.0) - 16, indexing="ij")
    spot = (-(rows**2 + (columns - 8) ** 2) / 4).exp()  # to the right of the middle
    x = spot.expand(400, 1, 33, 33)
    made, labels = geometric(x, 1.0, Rng.batch(1, total=400))
    peak = made[:, 0].flatten(1).argmax(1)
    seen = torch.stack([peak % 33 - 16, peak // 33 - 16], 1).double()
    mirror, _, size, cos, sin, wide, high, right, down = labels.double().T
    angle, axis = torch.atan2(sin, cos + 1), torch.atan2(high, wide)
    stretch = torch.hypot(wide, high)
    p = torch.stack([8 * (1 - 2 * mirror) * 2 ** (0.2 * size), torch.zeros(400)], 1)

    def turned(p, a):
        return torch.stack([a.cos() * p[:, 0] - a.sin() * p[:, 1], a.sin() * p[:, 0] + a.cos() * p[:, 1]], 1)

    p, shift = turned(turned(p, angle), -axis), 0.125 * 33 * torch.stack([right, down], 1)
    wished = []
    for sign in (1, -1):  # as in the authors' code a stretching and its inverse along one axis have the same label
        along = torch.stack([2 ** (0.2 * sign * stretch), 2 ** (-0.2 * sign * stretch)], 1)
        wished.append(turned(p * along, axis) + shift)
    off = torch.stack([(seen - place).abs().amax(1) for place in wished]).amin(0)
    p = torch.stack(wished).abs().amax((0, 2))
    inside = p < 9  # else its mirror image is seen too
    assert inside.sum() > 100
    assert off[inside].quantile(0.7) < 0.6, "mirrored edges disturb a few"


def test_the_network_is_told_in_training_and_sees_no_augmentation_when_sampling():
    net = {"name": "song-unet", "width": 8, "mults": (1, 2), "blocks": 1, "attention": (), "dropout": 0.0}
    model = Edm.make({"net": net, "augment": 0.5}, SPEC)
    told, real = [], model.net.forward

    def watched(x, level, **cond):
        told.append(cond.get("augment"))
        return real(x, level, **cond)

    model.net.forward = watched
    batch = {"x": torch.rand(16, 1, 4, 4), "label": torch.arange(16) % 10}
    model.train()(batch, Turn("main", 0, 1, Rng.batch(0, total=16)))
    assert told[0].shape == (16, 9) and told[0].any()
    model.eval().denoise(torch.rand(2, 1, 4, 4), torch.tensor(1.0))
    assert told[1] is None or not told[1].any()


def test_what_cannot_be_is_refused():
    with pytest.raises(GencliError, match=r"augment 0.5 needs images"):
        Edm.make({"net": MLP, "augment": 0.5}, POINTS)
    with pytest.raises(GencliError, match="cannot take the condition 'augment'"):
        Edm.make({"net": NET, "augment": 0.5}, SPEC)
    with pytest.raises(GencliError, match="sigma_min 90"):
        Edm.make({"net": NET, "sigma_min": 90.0}, SPEC)


def test_an_image_among_the_conditions_is_concatenated_and_its_absence_is_zeros():
    spec = Spec(SPEC.x, {"image": Field("image", (3, 4, 4), range=(-1.0, 1.0)), **SPEC.cond})
    model = Edm.make({"net": NET}, spec).eval()
    assert model.net.conv_in.in_channels == 4
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * 0.1)
    x, sigma = torch.rand(2, 1, 4, 4), torch.tensor(math.e)
    absent = model.denoise(x, sigma)
    assert torch.equal(absent, model.denoise(x, sigma, image=torch.zeros(2, 3, 4, 4)))
    assert (absent - model.denoise(x, sigma, image=torch.ones(2, 3, 4, 4))).abs().max() > 1e-3
