"""Glow: the laws of a flow, actnorm set by data, the released parameter counts, and digits."""

import math

import flow_laws as laws
import pytest
import torch
from tiny import smoke, trainer
from torch.nn import functional as F

from gencli import recipe
from gencli.core import Field, Rng, Spec
from gencli.errors import GencliError
from gencli.models.flow.glow import Glow, Step
from gencli.nn.actnorm import ActNorm

IMAGES = Spec(Field("image", (1, 8, 8), vocab=17, range=(0.0, 1.0)))
SMALL = Spec(Field("image", (2, 4, 4), vocab=17, range=(0.0, 1.0)))
NET = {"name": "glow-net", "width": 6}


def made(spec=SMALL, seed=0, **settings):
    torch.manual_seed(seed)
    return laws.shaken(Glow.make({"levels": 2, "steps": 2, "net": NET, **settings}, spec), size=0.05)


def images(n, spec=SMALL, seed=0):
    return torch.rand(n, *spec.x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("additive", [False, True])
def test_there_and_back_again_through_all_levels(additive):
    model, x = made(additive=additive), images(3)
    z, _ = model.forward_flow(x)
    torch.testing.assert_close(model.inverse(z), x, rtol=0, atol=1e-9)
    assert z.shape == x.shape and (z - x).abs().max() > 0.1
    stages = model.stages(z)
    assert len(stages) == 1 + 2 * 2 and all(state.shape == x.shape for state in stages)


@pytest.mark.parametrize("additive", [False, True])
def test_the_volume_is_that_of_the_jacobian(additive):
    model = made(additive=additive)
    laws.tells_its_volume(model.forward_flow, images(2), atol=1e-7)
    assert (model.forward_flow(images(2))[1].diff().abs() > 1e-6).all(), (
        "scales depend on the image, of the prior at least"
    )


def test_the_prior_of_what_leaves_depends_on_what_stays():
    model = made()
    z, _ = model.forward_flow(images(2))
    swapped = z.clone()
    corners = (slice(None), slice(None), slice(0, None, 2))  # the inner half is the first rows of every square
    swapped[corners] = z[corners].flip(0)
    gained = model.inverse(swapped)
    assert not torch.allclose(gained, model.inverse(z))


def test_what_leaves_first_are_the_lower_rows_of_every_square():
    level = made().levels_of_latent()
    assert (level[:, 1::2] == 0).all() and (level[:, 0::2] == 1).all()
    assert made(levels=1).levels_of_latent().unique().tolist() == [0]


def test_actnorm_gives_the_first_batch_mean_zero_and_deviation_one():
    torch.manual_seed(0)
    model = Glow.make({"levels": 2, "steps": 2, "net": NET}, IMAGES)
    x = images(300, IMAGES).float()
    outputs = {}
    norms = {name: module for name, module in model.named_modules() if isinstance(module, ActNorm)}
    batches = iter([{"x": x[:200]}, {"x": x[200:]}])
    for name, norm in norms.items():
        norm.register_forward_hook(lambda module, ins, out, name=name: outputs.update({name: out.detach()}))
    model.initialise(batches, 300, Rng.batch("i", total=1))
    assert not any(norm.fitting for norm in norms.values())
    assert len(norms) == 2 * 2 * 3 and set(outputs) == set(norms)
    for name, out in outputs.items():
        std, mean = torch.std_mean(out, dim=(0, 2, 3), correction=0)
        assert mean.abs().max() < 1e-4 and (std - 1).abs().max() < 1e-2, name


def test_a_norm_folded_into_a_convolution_is_the_norm():
    torch.manual_seed(0)
    norm, x = ActNorm(3).double(), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    for p in norm.parameters():
        p.data = torch.randn_like(p) / 3
    narrow, wide = torch.randn(3, 3, 3, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    torch.testing.assert_close(F.conv2d(x, *norm.after(narrow)), norm(F.conv2d(x, narrow)))
    weight, bias = norm.before(wide)
    torch.testing.assert_close(F.conv2d(x, weight[..., None, None], bias), F.conv2d(norm(x), wide[..., None, None]))


def test_at_first_couplings_and_priors_are_as_the_paper_starts_them():
    torch.manual_seed(0)
    model = Glow.make({"levels": 1, "steps": 1, "net": NET}, SMALL).double()
    step = model.net.steps[0]
    assert isinstance(step, Step)
    torch.testing.assert_close(step.mix @ step.mix.T, torch.eye(8, dtype=torch.float64), rtol=0, atol=1e-6)
    _, log_det = model.forward_flow(images(2))
    whole = 16 * math.log(1 / (1 + math.exp(-2)))  # half of 32 numbers scaled by sigmoid(2); a rotation keeps volumes
    torch.testing.assert_close(
        log_det.detach(), torch.full((2,), whole, dtype=torch.float64), rtol=1e-5, atol=0
    )  # W starts in float32


@pytest.mark.parametrize(
    ("settings", "side", "count"),
    [
        ({}, 32, 44_603_604),
        ({"additive": True}, 32, 38_395_668),
        ({"steps": 48}, 32, 66_861_588),
        ({"steps": 48, "levels": 4}, 64, 112_377_540),
        ({"additive": True, "levels": 6}, 256, 175_099_620),
    ],
)
def test_the_released_parameter_counts(settings, side, count):
    values = {key: value for key, value in recipe.load("glow-cifar10")["model"].items() if key != "name"}
    with torch.device("meta"):
        model = Glow.make({**values, **settings}, Spec(Field("image", (3, side, side), vocab=256, range=(0.0, 1.0))))
    assert sum(p.numel() for p in model.parameters()) == count


def test_a_label_moves_the_density_and_the_samples():
    model = made(Spec(SMALL.x, {"label": Field("label", (), vocab=3)}), classes=True)
    x, labels = images(1).expand(3, -1, -1, -1), torch.arange(3)
    assert len(model.log_prob(x, Rng.rows(range(3)), label=labels).unique()) == 3
    z = torch.randn(1, *SMALL.x.shape, dtype=torch.float64).expand(3, -1, -1, -1)
    assert len(model.decode(z, label=labels)[:, 0, 0, 0].unique()) == 3


def test_data_that_do_not_fit_are_refused():
    with pytest.raises(GencliError, match=r"glow works on images .* got points of shape \(2,\)"):
        Glow.make({}, Spec(Field("points", (2,))))
    with pytest.raises(GencliError, match="image size 4×4 is not divisible by the network's stride 8"):
        Glow.make({"levels": 3}, SMALL)


def test_a_short_run_gains_most_of_a_bit_and_one_that_does_not_learn_gains_none():
    def bits(lr):
        table = smoke("glow")
        model = {"name": "glow", "levels": 2, "steps": 2, "net": {"name": "glow-net", "width": 16}}
        train = {**table["train"], "steps": 60, "batch_size": 64, "lr": lr, "warmup": 0, "schedule": "constant"}
        found = [float(step.losses["bits_per_dim"]) for step in trainer({**table, "model": model, "train": train})]
        return sum(found[:5]) / 5, sum(found[-5:]) / 5

    first, last = bits(2e-3)
    idle, still = bits(1e-9)
    assert last < first - 0.5 and abs(still - idle) < 0.1
