"""The first diffusion model, of bits: its marginals, its posterior, its bound, and samples as functions of noise."""

import math

import pytest
import torch
from torch import nn

from gencli.core import Denoiser, Field, LatentVariable, Likelihood, Rng, Spec, Turn
from gencli.errors import GencliError
from gencli.models.diffusion.dpm2015_binomial import Dpm2015Binomial

BIT = Spec(Field("points", (1,), vocab=2, range=(0.0, 1.0)))
IMAGE = Spec(Field("image", (1, 4, 4), vocab=2, range=(0.0, 1.0)), {"label": Field("label", (), vocab=3)})
MLP = {"name": "denoising-mlp", "width": 8, "layers": 1}
UNET = {"name": "unet", "width": 8, "mults": (1, 2), "blocks": 1, "attention": ()}
CHANCE = 0.8  # of a one in the data


def column(value):
    return torch.tensor([[value]], dtype=torch.float64)


class ExactBit(nn.Module):
    """What the network must add so that p(x_{t−1} | x_t) is that of a bit which is 1 in CHANCE of the data."""

    def __init__(self, model):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.count = model.config.timesteps

    def forward(self, x, level, **cond):
        before = 1 - (level * self.count / 1000).round() / self.count  # a_{t−1}, told t − 1
        return torch.logit(before * CHANCE + (1 - before) / 2)[:, None]


def exact(**settings):
    model = Dpm2015Binomial.make({"net": MLP, "timesteps": 12, **settings}, BIT)
    model.net = ExactBit(model)
    return model


def test_it_offers_what_its_entry_says():
    model = Dpm2015Binomial.make({"net": UNET}, IMAGE)
    assert isinstance(model, LatentVariable) and isinstance(model, Likelihood) and not isinstance(model, Denoiser)


def test_iterating_the_flips_of_a_bit_gives_the_closed_form():
    model = Dpm2015Binomial.make({"net": MLP, "timesteps": 20}, BIT)
    for start in (0.0, 1.0):
        one = start
        for t in range(1, 21):
            beta = 1 / (20 - t + 1)
            one = one * (1 - beta) + beta / 2
            kept = float(model.kept(torch.tensor(float(t), dtype=torch.float64)))
            assert one == pytest.approx(kept * start + (1 - kept) / 2, abs=1e-6)
            u = (torch.arange(10_000, dtype=torch.float64)[:, None] + 0.5) / 10_000
            noised = model.noised(torch.full_like(u, start), torch.full((10_000,), float(t)).double(), u)
            assert float(noised.mean()) == pytest.approx(one, abs=1e-4)
    assert one == 0.5, "nothing is left"


def test_the_posterior_is_bayes_rule_on_two_neighbouring_steps():
    model = Dpm2015Binomial.make({"net": MLP, "timesteps": 20}, BIT)
    for t in (1, 2, 11, 20):
        beta, before = 1 / (20 - t + 1), 1 - (t - 1) / 20
        for x0 in (0.0, 1.0):
            joint = {}
            for a in (0, 1):
                p = before * x0 + (1 - before) / 2
                for b in (0, 1):
                    one = (1 - beta) * a + beta / 2
                    joint[a, b] = (p if a else 1 - p) * (one if b else 1 - one)
            for b in (0, 1):
                if joint[0, b] + joint[1, b]:
                    made = model.posterior(column(x0), column(float(b)), torch.tensor([float(t)], dtype=torch.float64))
                    assert float(made) == pytest.approx(joint[1, b] / (joint[0, b] + joint[1, b]), abs=1e-12)


def test_with_the_exact_reverse_step_the_bound_is_the_log_probability():
    model, count = exact(), 240
    u = (torch.arange(count, dtype=torch.float64)[:, None] + 0.5) / count
    for bit in (0.0, 1.0):
        total = 0.0
        with torch.no_grad():
            for t in range(1, 13):  # x_t takes its two values as often as it should: thresholds are multiples of 1/24
                step = torch.full((count,), float(t), dtype=torch.float64)
                total += float(model.nats(torch.full_like(u, bit), step, u).mean())
        log_p = math.log(CHANCE if bit else 1 - CHANCE)
        assert total == pytest.approx(-log_p, abs=1e-6)
    fine, rng = exact(timesteps=4), Rng.batch(0, total=40_000)
    with torch.no_grad():
        drawn = fine.log_prob(torch.ones(40_000, 1), rng, samples=1)
    assert float(drawn.mean()) == pytest.approx(math.log(CHANCE), abs=4 * float(drawn.std()) / 200)


def test_the_loss_is_the_bound_in_bits_per_dimension():
    torch.manual_seed(0)
    model = Dpm2015Binomial.make({"net": UNET, "timesteps": 6}, IMAGE).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
        x = (torch.rand(1, 1, 4, 4) < 0.5).float().expand(6000, 1, 4, 4)
        label = torch.full((6000,), 1)
        each = model({"x": x, "label": label}, Turn("main", 0, 1, Rng.batch(1, total=6000)))["each"]
        whole = -model.log_prob(x[:400], Rng.batch(2, total=400), samples=0, label=label[:400]) / (16 * math.log(2))
    error = float(each.std()) / 6000**0.5 + float(whole.std()) / 20
    assert abs(float(each.mean() - whole.mean())) < 4 * error and float(whole.mean()) > 0.9


def test_samples_of_the_exact_chain_have_the_datas_frequency_and_are_functions_of_their_noise():
    model, count = exact(), 8000
    z = model.prior(count, Rng.rows(range(count))).double()
    with torch.no_grad():
        made = model.decode(z)
        assert torch.equal(made, model.decode(z)) and set(made.unique().tolist()) == {0.0, 1.0}
        assert torch.equal(made[:3], model.decode(z[:3]))
        assert float(made.mean()) == pytest.approx(CHANCE, abs=4 * (CHANCE * (1 - CHANCE) / count) ** 0.5)
        stages = model.stages(z)
        assert len(stages) == 13 and float(stages[0].mean()) == pytest.approx(0.5, abs=0.03)
        assert (model.decode(z[:50] * 0) == 1).all(), "at temperature 0 every bit is the likelier one"


def test_data_that_are_no_bits_are_refused():
    for field, says in (
        (Field("image", (1, 4, 4), vocab=256, range=(-1.0, 1.0)), "of 256 values"),
        (Field("points", (2,)), "without a grid"),
    ):
        with pytest.raises(GencliError, match=f"needs zeros and ones.*{says}"):
            Dpm2015Binomial.make({"net": MLP}, Spec(field))
