"""Improved DDPM: learned variances, what the hybrid loss trains, importance of levels, and official parameter counts."""

import math
from collections import deque

import pytest
import torch
from diffused import MLP, NET, POINTS, SPEC, Told, counted
from tiny import UNET, shaken, table, trainer
from torch import nn

from gencli.core import Field, Rng, Spec, Turn
from gencli.models.diffusion._chain import reverse_variances
from gencli.models.diffusion.iddpm import History, Iddpm
from gencli.nn.discretised import discretised_gaussian
from gencli.samplers.ancestral import Ancestral

CLASSES = {"label": Field("label", (), vocab=1000)}
LINE = Spec(Field("points", (1,)))


def images(side, cond=None, channels=3):
    return Spec(Field("image", (channels, side, side), vocab=256, range=(-1.0, 1.0)), cond or {})


@pytest.mark.parametrize(
    ("name", "side", "count"),
    [
        ("iddpm-cifar10", 32, 52_546_438),
        ("iddpm-imagenet64", 64, 121_063_942),
        ("iddpm-imagenet64-cond", 64, 273_049_350 + 4 * 192),  # and our row for "no class"
        ("iddpm-adm-imagenet64", 64, 295_904_454 + 4 * 192),
        ("iddpm-adm-imagenet128", 128, 421_529_606 + 4 * 256),
        ("iddpm-adm-imagenet256", 256, 553_838_086 + 4 * 256),
        ("iddpm-adm-imagenet512", 512, 558_997_638 + 4 * 256),
    ],
)
def test_parameter_counts_are_the_official_ones(name, side, count):
    cond = CLASSES if "adm" in name or "cond" in name else {}
    assert counted(name, images(side, cond))[0] == count


def test_with_dit_it_is_the_official_transformer():
    net = {"name": "dit", "patch": 2, "width": 1152, "depth": 28, "heads": 16}
    with torch.device("meta"):
        model = Iddpm.make({"net": net, "schedule": "linear"}, Spec(Field("latent", (4, 32, 32)), CLASSES))
    positions = sum(b.numel() for b in model.net.buffers())
    assert sum(p.numel() for p in model.parameters()) + positions == 675_129_632


def told(out, spec=SPEC, **settings):
    """A model whose network gives `out` channels' constants, the second half of them v's."""
    model = Iddpm.make({"net": NET if len(spec.x.shape) == 3 else MLP, "timesteps": 50, **settings}, spec)
    model.net = Told(lambda x, level, **cond: torch.cat([0.3 * x, torch.full_like(x, out)], 1), torch.float64)
    return model


@pytest.mark.parametrize(("out", "variance"), [(-1.0, "small"), (1.0, "large"), (-7.0, "small"), (7.0, "large")])
def test_v_of_0_and_1_are_exactly_the_two_known_variances_and_v_goes_no_further(out, variance):
    made = []
    for kind in ("learned", "auto", variance):
        sampler = Ancestral.make({"steps": 20, "variance": kind})
        *_, last = sampler.frames(told(out), SPEC, 6, Rng.batch(0, total=6), {})
        made.append(last.x)
    assert torch.equal(made[0], made[2]) and torch.equal(made[1], made[2])
    *_, between = Ancestral.make({"steps": 20}).frames(told(0.0), SPEC, 6, Rng.batch(0, total=6), {})
    assert not torch.equal(between.x, made[2])


def test_a_respaced_chain_keeps_the_cumulative_products_of_the_kept_steps():
    model = Iddpm.make({"net": MLP}, POINTS)
    levels = Ancestral.make({"steps": 250}).levels(model)
    beta, kept = [], 1.0
    for t in range(4000):  # the paper's β, one by one
        edge = [math.cos((u / 4000 + 0.008) / 1.008 * math.pi / 2) ** 2 for u in (t, t + 1)]
        beta.append(min(1 - edge[1] / edge[0], 0.999))
    table = []
    for b in beta:
        kept *= 1 - b
        table.append(kept)
    expected = torch.tensor(table[15::16], dtype=torch.float64).flip(0)
    assert torch.allclose(1 / (1 + levels[:-1] ** 2), expected, rtol=1e-7)


def gradient(**settings):
    """The gradient that the loss has for the two halves of the network's output."""
    model = Iddpm.make({"net": MLP, "timesteps": 20, "label_dropout": 0.0, **settings}, POINTS)
    out = torch.randn(64, 4, generator=torch.Generator().manual_seed(3)).requires_grad_()
    model.net = Told(out, torch.float32)
    batch = {"x": torch.randn(64, 2, generator=torch.Generator().manual_seed(4))}
    model(batch, Turn("main", 0, 1, Rng.batch(0, total=64)))["loss"].backward()
    return out.grad.chunk(2, dim=1)


def test_the_bound_in_the_hybrid_loss_does_not_move_the_mean():
    (mean, share), (alone, none) = gradient(vlb_weight=0.5), gradient(vlb_weight=0.0)
    assert torch.equal(mean, alone) and mean.abs().min() > 0
    assert (share != 0).any(1).all() and not none.any()
    moved, _ = gradient(loss="vlb")
    assert (moved != 0).all()


def test_the_loss_is_the_bound_in_bits_per_dimension():
    """Each step against torch.distributions in the paper's own coordinates, and the sum against `log_prob`."""
    model = Iddpm.make({"net": NET, "timesteps": 12, "prediction": "x0"}, SPEC)
    generator = torch.Generator().manual_seed(0)
    data = (torch.rand(1, 1, 4, 4, generator=generator, dtype=torch.float64) * 255).round() / 127.5 - 1
    guess = torch.rand(1, 1, 4, 4, generator=generator, dtype=torch.float64) - 0.5
    out = torch.rand(1, 1, 4, 4, generator=generator, dtype=torch.float64) * 2 - 1
    model.net = Told(torch.cat([guess, out], 1))
    table, v, total = 1 / (1 + model.levels.flip(0) ** 2), (out + 1) / 2, 0.0
    for t in range(12):
        sigma = model.levels.flip(0)[[t]]
        apart = guess - data
        made = model.bits(data, guess, apart, v, torch.tensor([t]), sigma) * 16 * math.log(2) / 12
        now, before = table[t], table[t - 1] if t else torch.tensor(1.0)
        beta = 1 - now / before
        if t:
            tilde = beta * (1 - before) / (1 - now)
            weight = before.sqrt() * beta / (1 - now)
            spread = (v * beta.log() + (1 - v) * tilde.log()).exp().sqrt()
            q, p = (torch.distributions.Normal(weight * m, s) for m, s in ((data, tilde.sqrt()), (guess, spread)))
            expected = torch.distributions.kl_divergence(q, p).sum()
        else:
            after = 1 - table[1] / table[0]
            spread = (v * beta.log() + (1 - v) * (after * (1 - table[0]) / (1 - table[1])).log()).exp().sqrt()
            expected = -discretised_gaussian(data, guess, spread, (-1.0, 1.0), 2 / 255).sum()
        assert float(made) == pytest.approx(float(expected), rel=1e-9), t
        total = total + expected
    terms = model.bound_terms(data, Rng.batch(0, total=1), samples=0)
    assert float(terms["steps"] + terms["decoder"]) == pytest.approx(float(total), rel=1e-9)


class Guess(nn.Module):
    """The exact noise prediction for data N(0, std²), and a learned v for each level."""

    def __init__(self, model, std):
        super().__init__()
        self.share = nn.Parameter(torch.zeros(len(model.levels), dtype=torch.float64))
        self.levels, self.std, self.scale = model.levels.flip(0), std, 1000 / len(model.levels)

    def forward(self, x, level, **cond):
        index = (level / self.scale).round().long()
        sigma = self.levels[index][:, None]
        return torch.cat(
            [(x * (1 + sigma**2).sqrt()) * sigma / (self.std**2 + sigma**2), self.share[index][:, None]], 1
        )


def test_learned_variances_of_gaussian_data_become_those_of_the_reverse_process():
    std, levels, count = 0.5, 8, 512
    model = Iddpm.make({"net": MLP, "timesteps": levels, "vlb_weight": 1.0}, LINE)
    model.net = Guess(model, std)
    optimiser = torch.optim.Adam(model.net.parameters(), lr=0.05, betas=(0.9, 0.99))
    for step in range(300):
        if step == 200:
            optimiser.param_groups[0]["lr"] = 0.005
        rng = Rng.batch("train", step, total=count)
        batch = {"x": std * rng.at("x").normal((count, 1)).double()}
        optimiser.zero_grad()
        model(batch, Turn("main", step, 300, rng))["loss"].backward()
        optimiser.step()
    t, s = model.levels[:-1], model.levels[1:]
    small, large = reverse_variances(t, s)
    true = small + (1 - s**2 / t**2) ** 2 / (1 / std**2 + 1 / t**2)  # and what is left to know about x_0
    learned = small * (large / small) ** ((model.net.share.detach().flip(0)[:-1] + 1) / 2)
    fair = (learned / true - 1).abs().max()
    middle = ((small * large).sqrt() / true - 1).abs().max()
    assert fair < 0.03 < 0.1 < middle, (fair, middle)


# -------------------------------------------------------------------------------------------------- importance of levels


def test_levels_are_drawn_by_the_root_mean_square_of_their_last_ten_losses():
    history, plain = History(5), [deque(maxlen=10) for _ in range(5)]
    generator = torch.Generator().manual_seed(0)
    for batch in range(9):
        step = torch.randint(5 if batch else 1, (17,), generator=generator)  # first one level alone, 17 times
        loss = torch.rand(17, generator=generator)
        history.add(step, loss)
        for t, value in zip(step.tolist(), loss.tolist(), strict=True):
            plain[t].append(value)
        if min(map(len, plain)) < 10:
            assert torch.allclose(history.chances(), torch.full((5,), 0.2).double())
    size = torch.tensor([(sum(v * v for v in each) / 10) ** 0.5 for each in plain], dtype=torch.float64)
    assert min(map(len, plain)) == 10
    assert torch.allclose(history.chances(), 0.999 * size / size.sum() + 0.001 / 5, rtol=1e-6)


def test_weights_make_levels_drawn_by_importance_count_evenly():
    model = Iddpm.make({"net": MLP, "timesteps": 4, "loss": "vlb"}, POINTS)
    for t, loss in enumerate((1.0, 2.0, 4.0, 13.0)):
        model.history.add(torch.full((10,), t), torch.full((10,), loss))
    count = 40_000
    step, weight = model._draw(count, Rng.batch(0, total=count))
    share = step.bincount(minlength=4) / count
    assert torch.allclose(share.double(), model.history.chances(), atol=0.01) and share[3] > 0.6
    each = torch.stack([weight[step == t].sum() for t in range(4)]) / count
    assert torch.allclose(each, torch.full((4,), 0.25), atol=0.02)


@pytest.mark.parametrize("parts", [4])
def test_every_row_is_remembered_once_however_the_batch_is_split(parts):
    net = {**UNET, "attention": []}
    made = []
    for split in (1, parts):
        one = trainer(
            {**table("ddpm"), "model": {"name": "iddpm", "loss": "vlb", "timesteps": 4, "net": net}}
            | {"train": {**table("ddpm")["train"], "grad_accum": split, "clip": 0.0}}
        )
        shaken(one.model)
        for _ in range(6):
            one.take_step()
        made.append(one.model.history)
    assert made[0].counts.sum() == 48 and (made[0].counts > 9).any()
    assert torch.equal(made[0].counts, made[1].counts)
    assert torch.allclose(made[0].losses, made[1].losses, rtol=1e-3, atol=1e-3)
