"""Consistency trajectory models: exact identities of the jump, closed forms on Gaussian data, γ-sampling, and learning."""

import copy
import itertools
from functools import cache

import pytest
import torch
from diffused import MLP, POINTS, randomised
from fitting import fit
from saved import saved
from tiny import ends_as, session, table
from torch import nn

from gencli import home
from gencli.bundle import Run
from gencli.config import merge
from gencli.core import Rng, Turn
from gencli.errors import GencliError
from gencli.models.diffusion._family import rows
from gencli.models.diffusion.consistency import Consistency
from gencli.models.diffusion.ctm import Ctm, jump
from gencli.samplers.renoise import Renoise

EDM = {"name": "edm", "net": MLP}
S = 0.7  # standard deviation of Gaussian data


def made(**over):
    return Ctm.make({"denoiser": EDM, **over}, POINTS).double()


def turn(step=0, rows=64, steps=100):
    return Turn("main", step, steps, Rng.batch("c", step, total=rows))


def noise(n=64, seed=0):
    return torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def levels(*values):
    return torch.tensor(values, dtype=torch.float64)


class Solved(nn.Module):
    """g of the paths of Gaussian data, told ¼ log s; told `wrong` it is their denoiser wherever it jumps to."""

    process, levels, sigma_min, sigma_max, wrong = "ve", None, 0.002, 80.0, False

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def prepared(self, batch, rng):
        return batch["x"], {}

    def noise_like(self, data, cond, rng):
        return rng.normal(data.shape).to(data)

    def start(self, noise, sigma):
        return sigma * noise

    def denoise(self, x, sigma, number, **cond):
        t = torch.as_tensor(sigma).double().reshape(-1, 1)
        s = t if self.wrong else (4 * number).exp()
        a, b = (S**2 + s**2).sqrt(), (S**2 + t**2).sqrt()
        return S**2 * (t + s) / (b * (t * a + s * b)) * x

    @staticmethod
    def posterior(x, sigma, **cond):
        return rows(S**2 / (S**2 + sigma**2), x) * x


def solved(**over):
    model = made(score_weight=0.0, **over)
    model.denoiser, model.target = Solved(), Solved()
    model.score_errors = lambda data, cond, rng: torch.zeros(len(data), dtype=torch.float64)
    return model


def moved(model, x, here, there):
    return jump(x, here, there, model.toward(x, here, there))


def exact(x, here, there):
    return ((S**2 + there**2) / (S**2 + here**2)).sqrt() * x


# ------------------------------------------------------------------------------------------------------------------- the jump


@pytest.mark.parametrize("denoiser", [EDM, {"name": "ddpm", "net": MLP}, {"name": "flow-matching", "net": MLP}])
def test_a_jump_to_where_it_is_changes_nothing_and_begins_as_the_denoiser(denoiser):
    model = made(denoiser=denoiser)
    randomised(model.net)
    x = noise(5)
    for sigma in levels(0.002, 0.3, 20.0):
        assert torch.equal(moved(model, x, sigma, sigma), x)
        assert (moved(model, x, sigma, sigma / 2) - x).abs().max() > 1e-5
    assert (model.toward(x, levels(2.0)[0], 0.1) - model.toward(x, levels(2.0)[0], 1.0)).abs().max() > 1e-3
    nn.init.zeros_(model.net.number.weight)
    plain = model.toward(x, levels(2.0)[0], 2.0)
    assert torch.equal(model.toward(x, levels(2.0)[0], 0.1), plain), "deaf to where it jumps"


def test_of_an_edm_it_is_the_papers_formula_with_a_network_that_knows_both_levels():
    model = made()
    randomised(model.net)
    x, t, s = noise(4), levels(0.01, 0.5, 3.0, 80.0), levels(0.002, 0.5, 0.1, 10.0)
    high = t[:, None]
    raw = model.net(x / (high**2 + 0.25).sqrt(), t.log() / 4, number=(s.log() / 4)[:, None])
    g = 0.25 / (high**2 + 0.25) * x + high * 0.5 / (high**2 + 0.25).sqrt() * raw
    wanted = s[:, None] / high * x + (1 - s[:, None] / high) * g
    torch.testing.assert_close(moved(model, x, t, s), wanted, rtol=1e-12, atol=1e-12)
    least = torch.full_like(t, 0.002)
    torch.testing.assert_close(model.denoise(x, t), moved(model, x, t, least), rtol=1e-12, atol=1e-12)


def test_for_gaussian_data_jumps_compose_and_the_one_of_no_length_is_the_denoiser():
    model, x = solved(), noise()
    for t, u, s in ((80.0, 3.0, 0.01), (5.0, 0.5, 0.4), (0.3, 0.1, 0.002)):
        t, u, s = levels(t, u, s)
        straight = moved(model, 3 * x, t, s)
        assert (moved(model, moved(model, 3 * x, t, u), u, s) - straight).abs().max() < 1e-6
        assert (straight - exact(3 * x, t, s)).abs().max() < 1e-6
        torch.testing.assert_close(model.toward(x, u, u), Solved.posterior(x, u), rtol=1e-9, atol=1e-9)
    wrong = solved()
    wrong.denoiser.wrong = True
    t, u, s = levels(80.0, 3.0, 0.01)
    apart = moved(wrong, moved(wrong, 3 * x, t, u), u, s) - moved(wrong, 3 * x, t, s)
    assert apart.abs().max() > 1e-3, "jumps by a denoiser do not compose"


# ------------------------------------------------------------------------------------------------------------------- the loss


def losses(model, count=2048):
    with torch.no_grad():
        return float(model.loss({"x": S * noise(count)}, turn(rows=count))["loss"])


def test_the_exact_jumps_loss_vanishes_as_levels_are_added_and_anothers_does_not(monkeypatch):
    alone = [losses(solved(intervals=n, solver_steps=3)) for n in (10, 20, 40)]
    assert all(a > 10 * b for a, b in itertools.pairwise(alone)), "Heun's error, squared"
    monkeypatch.setattr(Ctm, "teaching", lambda self, *args: Solved.posterior)
    right, wrong = (solved(intervals=40, solver_steps=3, teacher="exact") for _ in range(2))
    assert losses(right) == pytest.approx(alone[-1]), "its own denoiser is the teacher's"
    wrong.denoiser.wrong = wrong.target.wrong = True
    assert losses(wrong) > 100 * losses(right)


def test_levels_are_in_order_and_all_of_them_are_met():
    model = made(intervals=6, solver_steps=3)
    high, middle, low, visited = model.drawn(4000, turn(rows=4000).rng, noise(1))
    assert bool(((low <= middle) & (middle < high)).all()) and len(visited) == 4
    assert torch.equal(visited[0], high) and torch.equal(visited[-1], middle)
    index = {float(level): i for i, level in enumerate(model.grid)}
    pairs = {(index[float(t)], index[float(s)], index[float(u)]) for t, s, u in zip(high, low, middle, strict=True)}
    wanted = {(t, s, u) for t in range(1, 7) for s in range(t) for u in range(max(s, t - 3), t)}
    assert pairs == wanted
    x = noise(4000)
    found = model.path(x, visited, {})
    one = model.path(x[:1], [level[:1] for level in visited], {})
    torch.testing.assert_close(found[:1], one, rtol=1e-12, atol=1e-12)


def test_the_second_term_is_the_denoisers_own_loss():
    model = made(score_weight=0.5)
    randomised(model.net)
    nn.init.zeros_(model.net.number.weight)
    given, one = {"x": noise()}, turn()
    losses = model.loss(given, one)
    rng = one.rng.at("score")
    sigma, n = model.denoiser.draw_sigma(64, rng.at("levels")), rng.at("noise").normal((64, 2)).double()
    s = rows(sigma, n)
    told = model.denoiser.denoise(given["x"] + s * n, sigma, number=torch.zeros(64, 1).double())
    weight = (s**2 + 0.25) / (s * 0.5) ** 2
    torch.testing.assert_close(losses["score"], (weight * (told - given["x"]).square()).mean())
    torch.testing.assert_close(losses["loss"], losses["consistency"] + 0.5 * losses["score"].float())


def test_the_target_has_no_gradient_and_follows_as_an_average():
    model = made(target_decay=0.9)
    randomised(model.net, seed=1)
    before = [p.clone() for p in model.target.parameters()]
    model.loss({"x": noise()}, turn())["loss"].backward()
    assert all(p.grad is None and not p.requires_grad for p in model.target.parameters())
    assert all(p.grad is not None for p in model.denoiser.parameters())
    model.after_step(turn())
    for old, average, now in zip(before, model.target.parameters(), model.denoiser.parameters(), strict=True):
        torch.testing.assert_close(average.detach(), 0.9 * old + 0.1 * now.detach())


# -------------------------------------------------------------------------------------------------------------------- sampling


def drawn(model, seed=0, n=4000, **settings):
    sampler = Renoise.make({"clip": False, **settings})
    *_, last = sampler.frames(model, POINTS, n, Rng.batch(seed, total=n), {})
    return last.x


def test_without_noise_put_back_every_number_of_steps_ends_at_the_same_points():
    model, start = solved(), 80 * Rng.batch(0, total=4000).at("start").normal((4000, 2)).double()
    wanted = exact(start, torch.tensor(80.0), torch.tensor(0.002))
    for steps in (1, 2, 5):
        torch.testing.assert_close(drawn(model, steps=steps, gamma=0.0), wanted, rtol=1e-6, atol=1e-6)
    assert (drawn(model, steps=2, gamma=0.5) - wanted).abs().max() > 0.1


def test_with_gamma_one_it_is_multistep_consistency_sampling():
    class Plain:  # the same function without its jumps elsewhere
        def __init__(self, model):
            self.model = model

        def __getattr__(self, name):
            if name == "toward":
                raise AttributeError(name)
            return getattr(self.model, name)

    model = made()
    randomised(model.net)
    once = drawn(model, n=50, steps=3, gamma=1.0)
    assert torch.equal(once, drawn(Plain(model), n=50, steps=3))
    near = drawn(model, n=50, steps=3, gamma=1 - 1e-14)
    torch.testing.assert_close(near, once, rtol=1e-5, atol=1e-5)
    assert (drawn(model, n=50, steps=3, gamma=0.5) - once).abs().max() > 1e-2


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_every_gamma_keeps_the_datas_spread_and_a_step_is_one_call(gamma):
    model, asked = solved(), []
    whole = model.denoiser.denoise
    model.denoiser.denoise = lambda x, sigma, **cond: asked.append(float(sigma)) or whole(x, sigma, **cond)
    x = drawn(model, steps=4, gamma=gamma)
    assert len(asked) == 4 and float(x.std()) == pytest.approx(S, rel=0.03)


def test_what_cannot_work_is_refused():
    with pytest.raises(GencliError, match=r"gamma 0\.5: consistency jumps to the end"):
        Renoise.make({"gamma": 0.5}).check(Consistency.make({"denoiser": EDM}, POINTS))
    with pytest.raises(GencliError, match="intervals 20: the denoiser has 20 levels"):
        made(intervals=20, denoiser={"name": "ddpm", "timesteps": 20, "net": MLP})
    with pytest.raises(GencliError, match="progressive-distillation is a student already"):
        made(denoiser={"name": "progressive-distillation", "denoiser": {"name": "ddpm", "net": MLP}})


# ------------------------------------------------------------------------------------------------------------- from a teacher


def test_a_student_begins_with_its_teachers_weights_and_resumes_bit_for_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(home, "run_folders", lambda: [tmp_path])
    teacher = saved(tmp_path, table("ddpm"))
    few = {"name": "ctm", "teacher": teacher.name, "intervals": 4, "solver_steps": 1, "guidance": 2.0}
    tables = merge(table("ddpm"), {"model": few})
    whole = session(tmp_path, tables)
    whole.trainer(whole.train).initialise()
    theirs, own, x = Run.load(teacher).model, whole.run.model.eval(), torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        told = {"label": torch.arange(3)}
        found = own.toward(x, torch.tensor(2.0), 0.3, **told)
        assert torch.equal(found, theirs.denoise(x, torch.tensor(2.0), **told))
    pairs = zip(own.target.parameters(), own.denoiser.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    for _ in whole.events():
        pass
    ends_as(whole.folder, tables, 3)


# --------------------------------------------------------------------------------------------------------------------- learning

CORNERS = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])


def posterior(x, sigma):
    """E[x0 | x] for four Gaussians of deviation 0.15 at the corners of a square."""
    s = rows(sigma, x)
    variance, centres = 0.15**2 + s**2, CORNERS.to(x)
    weights = (-(x[:, None] - centres).square().sum(-1) / (2 * variance)).softmax(1)
    means = (0.15**2 * x[:, None] + s[..., None] ** 2 * centres) / variance[..., None]
    return (weights[..., None] * means).sum(1)


@cache
def learned(steps=300):
    torch.manual_seed(0)
    denoiser = {"name": "edm", "sigma_data": 1.0, "net": {"name": "denoising-mlp", "width": 64, "layers": 2}}
    config = {"intervals": 12, "solver_steps": 2, "distance": "pseudo-huber", "target_decay": 0.9, "score_weight": 0.2}
    model = Ctm.make({**config, "denoiser": denoiser, "teacher": "exact"}, POINTS)
    model.teaching = lambda *args: posterior

    def loss(step):
        if step:
            model.after_step(turn(step - 1, 256, steps))
        rng = Rng.batch("corners", step, total=256)
        x = CORNERS[rng.at("which").integers((256,), 4)] + 0.15 * rng.at("noise").normal((256, 2))
        return model({"x": x}, turn(step, 256, steps))["loss"]

    fit(model.denoiser.parameters(), loss, steps, 4e-3)
    return model.eval()


@torch.no_grad()
def misses(model, **settings):
    """The share of points that lie four deviations from every corner, and how unevenly the corners are met."""
    away = torch.cdist(drawn(model, seed=7, n=2000, **settings).float(), CORNERS)
    met = away.argmin(1).bincount(minlength=4) / 2000
    return float((away.min(1).values > 0.6).float().mean()), float(met.max() - met.min())


def test_one_jump_and_several_find_all_modes():
    model = learned()
    found = [misses(model, steps=steps, gamma=gamma) for steps, gamma in ((1, 1.0), (2, 1.0), (4, 0.0))]
    deaf = copy.deepcopy(model)
    deaf.g = lambda denoiser, x, sigma, end, cond: posterior(x, sigma.reshape(-1).expand(len(x)))
    assert all(lost < 0.15 and uneven < 0.12 for lost, uneven in found)
    assert misses(deaf, steps=1)[0] > 0.9, "the denoiser alone lies between the corners"
