"""Distribution matching distillation: the gradient of a divergence in closed form, what learns and what stays, and learning."""

import math
from functools import cache

import pytest
import torch
from diffused import CIFAR, LABEL, MLP, POINTS, randomised
from saved import saved
from tiny import ends_as, session, table, trained, trainer
from torch import nn

from gencli import home, recipe
from gencli.bundle import Run
from gencli.config import choose, merge
from gencli.core import Field, Rng, Spec, Turn
from gencli.errors import GencliError
from gencli.models.diffusion._family import rows
from gencli.models.diffusion.dmd import Dmd
from gencli.samplers.ddim import Ddim
from gencli.samplers.heun import Heun
from gencli.samplers.renoise import Renoise

LINE = Spec(Field("points", (1,)))
EDM = {"name": "edm", "sigma_data": 1.0, "net": MLP}
M, S = 1.3, 0.7  # mean and deviation of the real law


def made(spec=LINE, **over):
    return Dmd.make({"denoiser": EDM, **over}, spec).double()


def turn(phase="generator", step=0, rows=64, steps=100):
    return Turn(phase, step, steps, Rng.batch("d", phase, step, total=rows))


def normal(mean, spread):
    """E[x0 | x] for data of N(mean, spread²)."""

    def denoise(x, sigma, **cond):
        s = rows(sigma, x)
        return (spread**2 * x + s**2 * mean) / (spread**2 + s**2)

    return denoise


def exactly(model, mean, spread, fake=True):
    """The model with a generator of N(mean, spread²), its exact scores, and those of the real law."""
    model.made = lambda noise, cond: mean + spread * noise
    model.teaching = lambda *args: normal(M, S)
    if fake:
        model.fake.denoise = normal(mean.detach(), spread.detach())
    return model


def numbers(*values):
    return [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in values]


# --------------------------------------------------------------------------------------------------------------- the gradient


def test_with_exact_scores_the_gradient_is_that_of_the_divergence_of_diffused_laws():
    n, (mean, spread) = 200_000, numbers(-0.4, 0.9)
    model = exactly(made(teacher="exact", weighting="kl", regression=0.0), mean, spread)
    model({"x": torch.zeros(n, 1).double()}, turn(rows=n))["loss"].backward()
    (m, s), span = numbers(-0.4, 0.9), model.span
    fake, real = s**2 + span**2, S**2 + span**2
    divergence = ((real / fake).log() + (fake + (m - M) ** 2) / real - 1) / 2  # of one level
    divergence.mean().backward()
    assert float(mean.grad) == pytest.approx(float(m.grad), rel=0.01)
    assert float(spread.grad) == pytest.approx(float(s.grad), rel=0.01)
    assert len(span) == 960 and span[0] > 60 and span[-1] < 0.004, "0.02 to 0.98 of the time"


def test_it_vanishes_where_the_laws_are_the_same_and_only_there():
    for weighting in ("kl", "normalised"):
        mean, spread = numbers(M, S)
        model = exactly(made(teacher="exact", weighting=weighting, regression=0.0), mean, spread)
        losses = model({"x": torch.zeros(64, 1).double()}, turn())
        losses["loss"].backward()
        assert max(float(a.detach().abs().max()) for a in (losses["each"], mean.grad, spread.grad)) < 1e-12
        near, spread = numbers(M + 0.01, S)
        exactly(model, near, spread)({"x": torch.zeros(64, 1).double()}, turn())["loss"].backward()
        assert float(near.grad) > 1e-4, "downhill is towards the data"


def test_the_normalised_weight_is_the_papers():
    mean, spread = numbers(0.2, 0.5)
    spec = Spec(Field("points", (3,)))
    model = exactly(made(spec, teacher="exact", regression=0.0), mean, spread)
    x, rng = torch.randn(9, 3, dtype=torch.float64), Rng.batch("w", total=9)
    found = model.pull(x, {}, rng)
    sigma = model.span[rng.at("levels").integers((9,), 960)]
    noisy = x + rows(sigma, x) * rng.at("diffuse").normal(x.shape).double()
    real, fake = normal(M, S)(noisy, sigma), normal(mean, spread)(noisy, sigma)
    scores = [(a - noisy) / rows(sigma**2, x) for a in (fake, real)]
    weight = sigma**2 * 3 / (real - x).abs().sum(1)
    torch.testing.assert_close(found, (rows(weight, x) * (scores[0] - scores[1])).detach(), rtol=1e-6, atol=1e-9)


# -------------------------------------------------------------------------------------------------------------- who is trained


def test_each_network_learns_in_its_own_turn_and_the_real_one_never():
    model = made(POINTS, first=1, pairs=8)
    for net in (model.denoiser, model.fake, model.real):
        randomised(net.net)
    model.train()
    owned = {phase.name: list(phase.modules[0].parameters()) for phase in model.phases()}
    assert list(owned) == ["generator", "fake"] and not model.real.training
    batch = {"x": torch.randn(64, 2).double()}
    for name, parameters in owned.items():
        model.zero_grad()
        model(batch, turn(name, 1))["loss"].backward()
        mine = {id(p) for p in parameters}
        assert all((p.grad is not None) == (id(p) in mine) for p in model.parameters())
    assert not any(p.requires_grad for p in model.real.parameters())


def test_the_fake_is_trained_on_what_the_generator_makes_and_not_on_data():
    model = made(POINTS, first=1, pairs=8)
    randomised(model.net)
    randomised(model.fake.net, seed=1)
    found = model({"x": torch.zeros(64, 2).double()}, turn("fake", 1))["each"]
    other = model({"x": torch.ones(64, 2).double()}, turn("fake", 1))["each"]
    assert torch.equal(found, other)
    at = turn("fake", 1).rng
    noise, diffuse = (at.at(key).normal((64, 2)).double() for key in ("noise", "diffuse"))
    sigma = model.fake.draw_sigma(64, at.at("levels"))
    x = model.denoiser.denoise(80 * noise, torch.tensor(80.0).double()).detach()
    way = (model.fake.denoise(x + rows(sigma, x) * diffuse, sigma) - x).square().mean(1)
    torch.testing.assert_close(found, way * (sigma**2 + 1) / sigma**2, rtol=1e-6, atol=1e-9)


def test_without_a_teacher_the_trained_denoiser_becomes_all_three_and_its_paths_are_followed():
    tables = merge(recipe.load("dmd-toy2d", smoke=True), {"model": {"first": 2}, "train": {"steps": 4}})
    one = trainer(tables)
    model = one.model
    assert not model.pair_end.any() and model.phases()[0].restarts == (2,)
    shown = [one.take_step().losses for _ in range(2)]
    assert "generator/pull" not in shown[-1]
    for held in (model.real, model.fake):
        pairs = zip(held.state_dict().items(), model.denoiser.state_dict().values(), strict=True)
        assert all(torch.equal(a, b) for (key, a), b in pairs) or held is model.fake, "the fake has had its turn since"
    assert model.pair_end.any() and torch.isfinite(model.pair_end).all()
    kept = [p.clone() for p in model.real.parameters()]
    assert "generator/pull" in one.take_step().losses
    assert all(torch.equal(a, b) for a, b in zip(kept, model.real.parameters(), strict=True))


def test_one_batch_equals_two_micro_batches():
    grads = []
    for parts in (1, 2):
        tables = merge(recipe.load("dmd-toy2d", smoke=True), {"model": {"first": 1}})
        one = trainer(merge(tables, {"train": {"lr": 0.0, "clip": 0.0, "grad_accum": parts}}))
        for net in (one.model.denoiser, one.model.fake, one.model.real):
            randomised(net)
        one.step = 1
        one.take_step()
        grads.append({key: p.grad for key, p in one.model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys() and any(key.startswith("fake.") for key in grads[0])
    for key, value in grads[0].items():
        torch.testing.assert_close(grads[1][key], value, rtol=1e-4, atol=1e-5)


# -------------------------------------------------------------------------------------------------------------------- the pairs


def test_pairs_lie_on_the_paths_of_the_real_law():
    model = made(teacher="exact", pairs=300)
    model.teaching = lambda *args: normal(M, S)
    batches = iter(lambda: {"x": torch.zeros(64, 1)}, None)
    model.draw_pairs(batches, Rng.batch("p", total=1))
    noise = model.pair_noise
    assert float(noise.mean()) == pytest.approx(0, abs=0.15) and float(noise.std()) == pytest.approx(1, abs=0.1)
    ends, apart = M + S / math.sqrt(S**2 + 80**2) * (80 * noise - M), []
    for steps in (18, 72):
        object.__setattr__(model.config, "pair_steps", steps)
        model.follow_paths()
        sampled = Heun.make({"steps": steps, "clip": False})
        levels, memory = sampled.levels(model.denoiser), {}
        *_, last = sampled.run(normal(M, S), 80 * noise, levels, Rng.batch(0, total=300), memory=memory)
        torch.testing.assert_close(model.pair_end, last.x, rtol=1e-9, atol=1e-9)
        apart.append(float((model.pair_end - ends).abs().max()))
    assert apart[1] < 0.01 and apart[0] > 8 * apart[1], "of the second order"
    model.made = lambda noise, cond: M + S / math.sqrt(S**2 + 80**2) * (80 * noise - M)
    assert float(model.regressed(64, Rng.batch("r", total=64)).max()) < 1e-3
    model.made = lambda noise, cond: torch.full_like(noise, M)
    assert float(model.regressed(64, Rng.batch("r", total=64)).mean()) == pytest.approx(S**2, rel=0.4)


# -------------------------------------------------------------------------------------------------------------------- sampling


def test_a_sample_is_one_call_and_a_second_is_refused():
    model, asked = made(), []
    randomised(model.net)
    whole = model.denoise
    model.denoise = lambda x, sigma, **cond: asked.append(float(sigma)) or whole(x, sigma)
    sampler = Renoise.make({"steps": 1})
    *_, last = sampler.frames(model, LINE, 5, Rng.rows(range(5)), {})
    assert asked == [80.0] and sampler.evaluations(model, LINE) == 1
    noise = Rng.rows(range(5)).at("start").normal((5, 1)).double()
    torch.testing.assert_close(last.x, model.made(noise, {}))
    with pytest.raises(GencliError, match="renoise: steps is 2, the model has 1 noise levels"):
        list(Renoise.make({"steps": 2}).frames(model, LINE, 5, Rng.rows(range(5)), {}))
    with pytest.raises(GencliError, match="kind 'endpoint'"):
        Ddim.make().check(model)
    assert Run(model, [], LINE, LINE, {}).default_sampler() == "renoise"


# -------------------------------------------------------------------------------------------------------------------- learning


class Fitted(nn.Module):
    """A denoiser of one Gaussian, whose mean and deviation are learned by EDM's loss."""

    def __init__(self, mean, spread):
        super().__init__()
        self.mean, self.spread = (nn.Parameter(torch.tensor(value)) for value in (mean, spread))

    def denoise(self, x, sigma, **cond):
        return normal(self.mean, self.spread)(x, sigma)

    def draw_sigma(self, n, rng):
        return (1.2 * rng.normal((n,)).double() - 1.2).exp()

    def errors(self, data, noise, sigma, cond):
        error = (self.denoise(data + rows(sigma, data) * noise, sigma) - data).square()
        return (rows((1 + sigma**2) / sigma**2, data) * error).mean(1)


@pytest.mark.parametrize("follows", [True, False])
def test_a_generator_on_a_line_finds_the_datas_law_if_its_own_score_is_learned(follows):
    model = Dmd.make({"teacher": "exact", "regression": 0.0, "denoiser": EDM}, LINE)
    mean, spread = torch.tensor(-1.0, requires_grad=True), torch.tensor(0.3, requires_grad=True)
    exactly(model, mean, spread, fake=False)
    model.fake = Fitted(-1.0, 0.3)
    weights = {"generator": ([mean, spread], 0.05), "fake": (model.fake.parameters(), 0.1)}
    movers = {name: torch.optim.Adam(each, rate, (0.9, 0.99)) for name, (each, rate) in weights.items()}
    steps, batch = 600, {"x": torch.zeros(256, 1)}
    for step in range(steps):
        for name, mover in movers.items():
            mover.param_groups[0]["lr"] = mover.defaults["lr"] * min(1, 2 - 2 * step / steps)
            loss = model(batch, turn(name, step, 256))["loss"]
            mover.zero_grad()
            loss.backward()
            if name == "generator" or follows:
                mover.step()
    mean, spread = mean.detach(), spread.detach()
    if follows:
        assert float(mean) == pytest.approx(M, abs=0.05) and float(spread) == pytest.approx(S, abs=0.1)
    else:
        assert abs(float(mean) - M) > 0.5, "what it was is no measure of what it is"


CORNERS = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])


def four_corners(x, sigma):
    """E[x0 | x] for four Gaussians of deviation 0.15 at the corners of a square."""
    s, centres = rows(sigma, x), CORNERS.to(x)
    variance = 0.15**2 + s**2
    shares = (-(x[:, None] - centres).square().sum(-1) / (2 * variance)).softmax(1)
    means = (0.15**2 * x[:, None] + s[..., None] ** 2 * centres) / variance[..., None]
    return (shares[..., None] * means).sum(1)


@cache
@torch.enable_grad()
def learned(steps=300):
    torch.manual_seed(0)
    net = {"name": "denoising-mlp", "width": 64, "layers": 2}
    near = {"distance": "pseudo-huber", "regression": 1.0}
    model = Dmd.make({"teacher": "exact", **near, "denoiser": {**EDM, "net": net}}, POINTS)
    model.teaching = lambda *args: four_corners
    model.draw_pairs(iter(lambda: {"x": torch.zeros(250, 2)}, None), Rng.batch("p", total=1))
    model.follow_paths()
    movers = {phase.name: torch.optim.Adam(phase.modules[0].parameters(), 3e-3) for phase in model.phases()}
    for step in range(steps):
        for name, mover in movers.items():
            mover.param_groups[0]["lr"] = 3e-3 * (1 - step / steps)
            loss = model({"x": torch.zeros(128, 2)}, turn(name, step, 128))["loss"]
            mover.zero_grad()
            loss.backward()
            mover.step()
    return model.eval()


@torch.no_grad()
def misses(made):
    """The share of points that lie four deviations from every corner, and how unevenly the corners are met."""
    away = torch.cdist(made.float(), CORNERS)
    met = away.argmin(1).bincount(minlength=4) / len(made)
    return float((away.min(1).values > 0.6).float().mean()), float(met.max() - met.min())


def test_one_step_finds_all_modes():
    *_, last = Renoise.make().frames(learned(), POINTS, 2000, Rng.batch(7, total=2000), {})
    lost, uneven = misses(last.x)
    assert lost < 0.1 and uneven < 0.1
    noise = 80 * torch.randn(2000, 2, generator=torch.Generator().manual_seed(0)).double()
    assert misses(four_corners(noise, torch.tensor([80.0])))[0] > 0.9, "one call of a denoiser lies between the corners"


# ------------------------------------------------------------------------------------------------------------ from a teacher


@pytest.fixture
def teacher(tmp_path, monkeypatch):
    monkeypatch.setattr(home, "run_folders", lambda: [tmp_path])
    return saved(tmp_path, table("ddpm"))


def student(run, **over):
    few = {"pairs": 12, "pair_steps": 2}
    return merge(table("ddpm"), {"model": {"name": "dmd", "teacher": run.name, **few, **over}})


def test_all_begin_with_the_teachers_weights_and_samples_need_it_no_more(teacher, tmp_path):
    made = session(tmp_path, student(teacher, guidance=2.0), name="student")
    assert made.config["teacher"]["run"] == teacher.name
    one = made.trainer(made.train)
    one.initialise()
    theirs, own = Run.load(teacher).model, made.run.model
    for key, value in theirs.state_dict().items():
        assert torch.equal(own.denoiser.state_dict()[key], value) and torch.equal(own.fake.state_dict()[key], value)
    assert own.pair_label.unique().numel() > 2 and float(own.pair_end.std()) > 0
    for _ in made.events():
        pass
    frozen = own.taught.teacher
    for key, value in theirs.state_dict().items():
        assert torch.equal(frozen.state_dict()[key], value)
    assert not any(p.requires_grad for p in frozen.parameters())
    from gencli.evaluation.generate import Request, samples

    (teacher / "model.safetensors").unlink()
    (teacher / "config.json").unlink()
    loaded = Run.load(made.folder)
    assert samples(loaded, Request(range(3), {"label": torch.arange(3)})).shape == (3, 1, 8, 8)


def test_a_resumed_student_is_bit_equal(teacher, tmp_path):
    ends_as(trained(tmp_path, student(teacher), name="whole"), student(teacher), 3)


def test_what_has_no_score_is_refused(teacher, tmp_path):
    flow = merge(table("ddpm"), {"model": {"name": "flow-matching", "net": table("ddpm")["model"]["net"]}})
    done = saved(tmp_path, student(teacher), name="done")
    others = table("ddpm")["model"]
    wide = merge(others, {"net": {"width": 16}})
    for over, says in (
        ({"teacher": done.name}, "dmd trains a denoiser, dmd has jumped to the end already"),
        ({"teacher": done.name, "denoiser": others}, "cannot teach: its dmd is a consistency function"),
        ({"denoiser": wide}, f"is not that of run {teacher.name}"),
        ({"teacher": "", "denoiser": {**flow["model"], "coupling": "optimal"}}, "has none: its estimate is no mean"),
    ):
        with pytest.raises(GencliError, match=says):
            list(session(tmp_path, student(teacher, **over)).events())


def test_the_papers_recipe_begins_with_edms_network():
    table = recipe.load("dmd-cifar10")
    with torch.device("meta"):
        model = choose("models", table["model"]).build(Spec(CIFAR.x, {"label": LABEL}))
    for net in (model.denoiser, model.fake):
        assert sum(p.numel() for p in net.parameters()) == 55_735_299 - 9 * 128, "with classes, without augmentations"
    assert model.pair_end.shape == (100_000, 3, 32, 32) and model.pair_label.dtype == torch.long
    config, train = model.config, table["train"]
    assert (config.regression, config.pair_steps, config.distance) == (0.25, 18, "perceptual")
    assert (train["lr"], train["weight_decay"], train["clip"], train["warmup"]) == (5e-5, 0.01, 10.0, 500)
