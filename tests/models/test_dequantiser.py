"""The variational dequantiser: a bijection of bins, bounds under a known probability, the bound that training raises."""

import itertools
import math

import pytest
import torch
from flow_laws import descend, keeps_every_law, shaken, tells_its_volume

from gencli import registry
from gencli.bundle import Run
from gencli.core import Field, Rng, Spec
from gencli.errors import GencliError
from gencli.metrics.bpd import Bpd
from gencli.models.flow._dequantiser import Dequantiser, level_and_noise, placed, redrawn

TINY = Field("image", (1, 1, 2), vocab=3, range=(0.0, 1.0))
IMAGE = Field("image", (1, 4, 4), vocab=17, range=(0.0, 1.0))
LEARNED = {"dequantiser": "variational", "dequantiser_width": 8}
FLOWS = {
    "realnvp": {"scales": 2, "couplings": 1, "norm": "none", "penalty": 0.0, "net": {"name": "mlp", "width": 8}},
    "glow": {"levels": 1, "steps": 1, "net": {"name": "glow-net", "width": 8}},
    "nice": {"couplings": 2, "net": {"name": "mlp", "width": 8}},
    "maf": {"layers": 2, "hidden": [16]},
    "nsf": {"layers": 2, "bins": 4},
    "ffjord": {"solver": "rk4", "steps": 4, "gradient": "direct", "divergence": "exact"},
}


def flow(name, field=IMAGE, seed=0, **settings):
    torch.manual_seed(seed)
    return registry.load("models", name).make({**FLOWS.get(name, {}), **settings}, Spec(field))


def spread_out(levels, field, *key):
    """Levels with even noise, as the codec draws it."""
    return redrawn(placed(levels, torch.full_like(levels, 0.5), field), field, Rng.batch(*key, total=len(levels)))


def pictures(n, field=IMAGE, seed=0):
    levels = torch.randint(field.vocab, (n, *field.shape), generator=torch.Generator().manual_seed(seed)).double()
    return spread_out(levels, field, "pictures", seed)


# ------------------------------------------------------------------------------------------------------- bins and bijections


def test_the_dequantiser_maps_every_bin_to_itself_and_back():
    made, x = shaken(Dequantiser(IMAGE, 8, "flow"), 0.2), pictures(5)
    there, _ = made(x)
    level, noise = level_and_noise(x, IMAGE)
    level_there, noise_there = level_and_noise(there, IMAGE)
    assert torch.equal(level, level_there) and (noise - noise_there).abs().max() > 0.2
    torch.testing.assert_close(made.inverse(there), x, rtol=0, atol=1e-11)
    tells_its_volume(lambda v: made(v), x[:2], atol=1e-8)


def test_what_lies_in_no_bin_stays():
    made = shaken(Dequantiser(IMAGE, 8, "flow"), 0.2)
    x = pictures(2)
    x[0, 0, 0, 0], x[1, 0, 3, 3] = -0.3, 1.2
    back = made.inverse(x)
    assert back[0, 0, 0, 0] == -0.3 and back[1, 0, 3, 3] == 1.2 and not torch.equal(back, x)


@pytest.mark.parametrize("name", [name for name in FLOWS if name != "ffjord"])  # whose inverse is a solver's
def test_every_flow_keeps_its_laws_with_a_learned_dequantiser(name):
    keeps_every_law(flow(name, **LEARNED), pictures(2))


@pytest.mark.parametrize("name", FLOWS)
def test_at_first_it_is_uniform_dequantisation(name):
    even, learned = flow(name).double().eval(), flow(name, **LEARNED).double().eval()
    assert any("dequantiser" in key for key in learned.state_dict())
    learned.load_state_dict(even.state_dict(), strict=False)
    x, rng = pictures(4), Rng.rows(range(4))
    torch.testing.assert_close(learned.log_prob(x, rng), even.log_prob(x, rng), rtol=0, atol=1e-9)
    moved = shaken(learned.dequantiser, 0.2) and learned.log_prob(x, rng)
    assert (moved - even.log_prob(x, rng)).abs().min() > 1e-3


# ------------------------------------------------------------------------------------------------------- a known probability


def known():
    """A density of 1×2 pixels, all nine pictures of three levels, and log P of each: differences of normal integrals."""
    model = flow("linear-flow", TINY, form="permutation", **LEARNED)
    scaling, _ = model.net.layers
    with torch.no_grad():
        scaling.log_scale.copy_(torch.tensor([0.3, 0.9]))
        scaling.bias.copy_(torch.tensor([1.0, -0.7]))
    model = model.double().eval().requires_grad_(False)
    edges = torch.logit(0.5 + 0.9 * (torch.arange(4, dtype=torch.float64) / 3 - 0.5))[:, None]
    below = torch.special.ndtr(edges * scaling.log_scale.exp() + scaling.bias)  # (4 edges, 2 numbers)
    levels = torch.tensor(list(itertools.product(range(3), repeat=2)))
    exact = (below[1:] - below[:-1]).log()[levels, torch.arange(2)].sum(1)
    return model, levels.double().view(-1, *TINY.shape), exact


def bounds(model, levels, draws, samples=1):
    """The mean over draws of log p, as a probability of levels, and its standard error, each `(9,)`."""
    x = spread_out(levels.repeat(draws, 1, 1, 1), TINY, "draw", samples)
    nats = model.log_prob(x, Rng.batch("more", total=len(x)), samples).view(draws, -1) - TINY.size * math.log(3)
    return nats.mean(0), nats.std(0) / math.sqrt(draws)


def test_bounds_lie_under_the_known_probability_and_rise_with_samples():
    model, levels, exact = known()
    shaken(model.dequantiser, 0.1)
    gaps = []
    for samples in (1, 4, 16):
        mean, error = bounds(model, levels, 200, samples)
        assert (mean < exact + 4 * error).all()
        gaps.append(float((exact - mean).mean()))
    assert gaps[0] > 2 * gaps[1] > 4 * gaps[2] > 0, gaps
    assert model.estimate(4) == "variational dequantiser, IWAE-4" and not flow("nice").estimate(1)
    assert flow("nice").estimate(2) == "uniform dequantiser, IWAE-2"


def test_training_the_dequantiser_alone_closes_the_gap_that_even_noise_leaves():
    model, levels, exact = known()
    p = exact.exp() / exact.exp().sum()
    even = float(p @ (exact - bounds(model, levels, 400)[0]))
    model.float().dequantiser.requires_grad_(True)
    drawn = torch.multinomial(p, 120 * 64, replacement=True, generator=torch.Generator().manual_seed(0)).view(120, 64)
    descend(model, lambda step: spread_out(levels[drawn[step]].float(), TINY, "train", step), 120, 2e-2, 64)
    learned = float(p @ (exact - bounds(model.double(), levels, 400)[0]))
    assert 0 < learned < 0.3 * even, (learned, even)


def test_eval_bpd_states_the_dequantiser():
    table = {"model": {"name": "maf", **FLOWS["maf"], **LEARNED}}
    data = registry.load("data", "digits").make({"image_size": 8, "unconditional": True})
    run = Run.build(table, data.spec)
    value = Bpd.make({"samples": 2})(run, data.split("test"), Rng.batch("e", total=1), n=4)
    assert value.note == "variational dequantiser, IWAE-2, dequantised bound, 1 draw" and value.kind == "bound"


def test_points_have_no_grey_levels():
    with pytest.raises(GencliError, match="the data of maf are points of shape"):
        flow("maf", Field("points", (2,)), **LEARNED)
