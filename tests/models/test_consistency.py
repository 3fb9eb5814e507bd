"""Consistency models: an exact boundary, closed forms on Gaussian data, and learning in one step with and without a teacher."""

import copy
import itertools
import math
from functools import cache

import pytest
import torch
from diffused import MLP, POINTS, SPEC, counted, randomised
from fitting import fit
from saved import saved
from tiny import ends_as, resumed, session, table, trained
from torch import nn

from gencli import home, recipe
from gencli.bundle import Run
from gencli.config import merge
from gencli.core import Rng, Turn
from gencli.errors import GencliError
from gencli.models.diffusion._family import rows
from gencli.models.diffusion.consistency import Consistency
from gencli.samplers.renoise import Renoise

EDM = {"name": "edm", "net": MLP}
S = 0.7  # standard deviation of Gaussian data


def made(over=None, spec=POINTS):
    return Consistency.make({"denoiser": EDM, **(over or {})}, spec).double()


def turn(step=0, steps=100, rows=64, key=0):
    return Turn("main", step, steps, Rng.batch("c", key, total=rows))


class Solved(nn.Module):
    """The denoiser that makes f the exact end of the paths of Gaussian data; `posterior` is their E[x0 | x]."""

    process, levels, sigma_min, sigma_max, training = "ve", None, 0.002, 80.0, True

    def __init__(self, model):
        super().__init__()
        self.weight, self.model = nn.Parameter(torch.zeros(())), [model]

    def prepared(self, batch, rng):
        return batch["x"], {}

    def noise_like(self, data, cond, rng):
        return rng.normal(data.shape).to(data)

    def denoise(self, x, sigma, **cond):
        sigma, data, least = torch.as_tensor(sigma).double(), self.model[0].config.sigma_data, self.sigma_min
        past = sigma - least
        gain = past / sigma
        rest = data**2 / (past**2 + data**2) - gain * data**2 / (sigma**2 + data**2)
        end = ((S**2 + least**2) / (S**2 + sigma**2)).sqrt()
        return rows(torch.where(gain > 0, (end - rest) / gain, 0), x) * x

    def start(self, noise, sigma):
        return sigma * noise

    @staticmethod
    def posterior(x, sigma, **cond):
        return rows(S**2 / (S**2 + sigma**2), x) * x


def solved(**over):
    model = made({"discretisation": "fixed", "neighbours": "uniform", "weighting": "uniform", "distance": "l2", **over})
    model.denoiser = Solved(model)
    return model


def exact_end(x, sigma, least=0.002):
    return rows(((S**2 + least**2) / (S**2 + sigma**2)).sqrt(), x) * x


# ------------------------------------------------------------------------------------------------------------ the function


@pytest.mark.parametrize("denoiser", [EDM, {"name": "ddpm", "net": MLP}, {"name": "flow-matching", "net": MLP}])
def test_at_the_least_level_it_is_the_identity_exactly(denoiser):
    model = made({"denoiser": denoiser, "most_levels": 40})
    randomised(model.net)
    x = torch.randn(5, 2, dtype=torch.float64)
    least = torch.tensor(model.sigma_min, dtype=torch.float64)
    assert torch.equal(model.denoise(x, least), x)
    assert (model.denoise(x, least * 3) - x).abs().max() > 1e-4


def test_of_an_edm_it_is_the_papers_formula():
    model = made({"sigma_data": 0.5})
    randomised(model.net)
    x, sigma = torch.randn(6, 2, dtype=torch.float64), torch.tensor([0.003, 0.05, 0.7, 3.0, 20.0, 80.0]).double()
    s, past = rows(sigma, x), rows(sigma, x) - 0.002
    raw = model.net(x / (s**2 + 0.25).sqrt(), sigma.log() / 4)
    wanted = 0.25 / (past**2 + 0.25) * x + past * 0.5 / (s**2 + 0.25).sqrt() * raw
    torch.testing.assert_close(model.denoise(x, sigma), wanted, rtol=1e-12, atol=1e-12)


def test_for_gaussian_data_the_closed_form_agrees_with_itself_along_exact_paths():
    model, noise = solved(), torch.randn(64, 2, dtype=torch.float64)
    levels = torch.tensor([0.002, 0.01, 0.3, 2.0, 30.0, 80.0], dtype=torch.float64)
    path = [noise * (S**2 + s**2).sqrt() for s in levels]
    ends = [model.denoise(x, s) for x, s in zip(path, levels, strict=True)]
    assert max((end - path[0]).abs().max() for end in ends) < 1e-6
    means = [Solved.posterior(x, s) for x, s in zip(path, levels, strict=True)]
    assert max((mean - path[0]).abs().max() for mean in means) > 0.1, "a denoiser does not"


def losses(model, count):
    with torch.no_grad():
        data = S * torch.randn(count, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        return float(model.loss({"x": data}, turn(rows=count))["loss"])


def test_the_exact_functions_loss_vanishes_as_levels_are_added_and_anothers_does_not(monkeypatch):
    training = [losses(solved(most_levels=n), 4096) for n in (20, 80, 320)]
    assert all(a > 10 * b for a, b in itertools.pairwise(training)), "as 1/N²"
    monkeypatch.setattr(Consistency, "teaching", lambda self, *args: Solved.posterior)
    distilled = [losses(solved(most_levels=n, teacher="exact"), 4096) for n in (20, 80)]
    assert distilled[1] < 1e-7 < distilled[0] < training[0]
    wrong = solved(most_levels=80, teacher="exact")
    wrong.denoiser.denoise = Solved.posterior
    assert losses(wrong, 4096) > 1000 * distilled[1]


# ----------------------------------------------------------------------------------------------------------------- training


def test_the_target_has_no_gradient_and_follows_as_an_average():
    model = made({"discretisation": "fixed", "most_levels": 10, "target_decay": 0.9})
    randomised(model.net)
    batch = {"x": torch.randn(64, 2, dtype=torch.float64)}
    model.after_step(turn(0))
    assert all(torch.equal(a, b) for a, b in zip(model.target.parameters(), model.denoiser.parameters(), strict=True))
    randomised(model.net, seed=1)
    before = [p.clone() for p in model.target.parameters()]
    model.loss(batch, turn(1))["loss"].backward()
    assert all(p.grad is None and not p.requires_grad for p in model.target.parameters())
    assert all(p.grad is not None for p in model.denoiser.parameters())
    model.after_step(turn(1))
    for old, average, now in zip(before, model.target.parameters(), model.denoiser.parameters(), strict=True):
        torch.testing.assert_close(average.detach(), 0.9 * old + 0.1 * now.detach())


def test_without_an_average_the_gradient_goes_through_the_noisier_point_alone():
    model = made({"discretisation": "fixed", "most_levels": 10, "weighting": "uniform", "distance": "l2"})
    randomised(model.net)
    batch, seen = {"x": torch.randn(64, 2, dtype=torch.float64)}, []
    whole = model.denoiser.denoise
    model.denoiser.denoise = lambda x, sigma, **cond: seen.append((torch.is_grad_enabled(), sigma)) or whole(x, sigma)
    model.loss(batch, turn())["loss"].backward()
    (target, low), (online, high) = seen
    assert online and not target and bool((low < high).all())


def test_the_number_of_levels_and_the_decay_are_the_papers():
    growing = made({"discretisation": "growing", "least_levels": 2, "most_levels": 150, "target_decay": 0.9})
    assert [growing.intervals(turn(k, 1000)) for k in (0, 500, 1000)] == [
        1,
        math.ceil(math.sqrt((151**2 - 4) / 2 + 4) - 1),
        150,
    ]
    assert growing.decay(turn(0, 1000)) == 0, "the average begins with the first step"
    assert growing.decay(turn(1000, 1000)) == pytest.approx(math.exp(2 * math.log(0.9) / 150))
    doubling = made({"least_levels": 10, "most_levels": 1280})
    counts = [doubling.intervals(turn(k, 400_000)) for k in (0, 49_999, 50_000, 100_000, 399_999)]
    assert counts == [10, 10, 20, 40, 1280]
    grid = doubling.grid(10)
    assert len(grid) == 11 and float(grid[0]) == 0.002 and float(grid[-1]) == 80.0
    chances, steps = doubling.chances(grid), (grid.log() + 1.1) / (2 * math.sqrt(2))
    torch.testing.assert_close(chances, torch.erf(steps).diff() / (torch.erf(steps[-1]) - torch.erf(steps[0])))


def test_the_distances_are_what_they_are_called():
    a, b = torch.randn(2, 3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    square = (a - b).flatten(1).square()
    wanted = {
        "l1": square.sqrt().mean(1),
        "l2": square.mean(1),
        "pseudo-huber": (square.sum(1) + (0.00054 * 8) ** 2).sqrt() - 0.00054 * 8,
    }
    net = {"name": "unet", "width": 8, "mults": (1,), "blocks": 1, "attention": ()}
    for name in ("l1", "l2", "pseudo-huber", "perceptual"):
        model = Consistency.make({"denoiser": {"name": "edm", "net": net}, "distance": name}, SPEC)
        found = model.apart(a, b)
        assert found.shape == (3,) and float(model.apart(a, a).abs().max()) < 1e-6
        if name in wanted:
            torch.testing.assert_close(found, wanted[name])
        else:
            assert float(found.min()) > 0 and "target" not in model.state_dict()


# ----------------------------------------------------------------------------------------------------------------- sampling


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_k_steps_are_k_calls_and_one_is_the_end_of_pure_noise(steps):
    model, asked = solved(), []
    whole = model.denoise
    model.denoise = lambda x, sigma, **cond: asked.append(float(sigma)) or whole(x, sigma)
    sampler = Renoise.make({"steps": steps, "clip": False})
    *_, last = sampler.frames(model, POINTS, 4000, Rng.batch(0, total=4000), {})
    assert len(asked) == steps == sampler.evaluations(model, POINTS) and asked[0] == 80.0
    assert asked == sorted(asked, reverse=True)
    assert float(last.x.std()) == pytest.approx(S, rel=0.03), "the data's own spread"
    if steps == 1:
        noise = 80 * Rng.batch(0, total=4000).at("start").normal((4000, 2)).double()
        torch.testing.assert_close(last.x, exact_end(noise, torch.tensor(80.0).double()))


def test_a_denoiser_that_estimates_a_mean_is_refused_and_it_is_refused_elsewhere():
    from gencli.models.diffusion.edm import Edm
    from gencli.samplers.ancestral import Ancestral
    from gencli.samplers.ddim import Ddim

    with pytest.raises(GencliError, match="wrong for a denoiser whose estimate is of kind 'mean'"):
        Renoise.make().check(Edm.make({"net": MLP}, POINTS))
    for sampler in (Ancestral, Ddim):
        assert not sampler.suits(Consistency) and sampler.suits(Edm) and Renoise.suits(Consistency)
        with pytest.raises(GencliError, match="kind 'endpoint'"):
            sampler.make().check(made())
    run = Run(made(), [], POINTS, POINTS, {})
    assert run.default_sampler() == "renoise"


# ----------------------------------------------------------------------------------------------------------------- learning


CORNERS = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
LEARN = {
    "sigma_data": 1.0,
    "least_levels": 8,
    "most_levels": 64,
    "denoiser": {"name": "edm", "sigma_data": 1.0, "net": {"name": "denoising-mlp", "width": 64, "layers": 2}},
}


class FourCorners:
    """E[x0 | x] for four Gaussians of deviation 0.15 at the corners of a square."""

    @staticmethod
    def posterior(x, sigma):
        s = rows(sigma, x)
        variance = 0.15**2 + s**2
        centres = CORNERS.to(x)
        weights = (-(x[:, None] - centres).square().sum(-1) / (2 * variance)).softmax(1)
        means = (0.15**2 * x[:, None] + s[..., None] ** 2 * centres) / variance[..., None]
        return (weights[..., None] * means).sum(1)


def corners(n, seed):
    rng = Rng.batch("corners", seed, total=n)
    return CORNERS[rng.at("which").integers((n,), 4)] + 0.15 * rng.at("noise").normal((n, 2))


@cache
def learned(teacher, steps=400):
    torch.manual_seed(0)
    model = Consistency.make({**LEARN, "teacher": "exact" if teacher else ""}, POINTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Consistency, "teaching", lambda self, *args: FourCorners.posterior)
        loss = lambda step: model({"x": corners(256, step)}, turn(step, steps, 256, step))["loss"]  # noqa: E731
        fit(model.parameters(), loss, steps, 3e-3)
    return model.eval()


@torch.no_grad()
def misses(model, steps=1):
    """The share of points that lie four deviations from every corner, and how unevenly the corners are met."""
    *_, last = Renoise.make({"steps": steps}).frames(model, POINTS, 2000, Rng.batch(7, total=2000), {})
    away = torch.cdist(last.x.float(), CORNERS)
    met = away.argmin(1).bincount(minlength=4) / 2000
    return float((away.min(1).values > 0.6).float().mean()), float(met.max() - met.min())


@pytest.mark.parametrize("teacher", [False, True])
def test_one_step_finds_all_modes(teacher):
    lost, uneven = misses(learned(teacher))
    assert lost < 0.15 and uneven < 0.12
    mean = copy.deepcopy(learned(teacher))
    mean.denoise = lambda x, sigma, **cond: FourCorners.posterior(x, sigma.reshape(1))
    assert misses(mean)[0] > 0.9, "one call of a denoiser lies between the corners"


# ------------------------------------------------------------------------------------------------------------ from a teacher


@pytest.fixture
def teacher(tmp_path, monkeypatch):
    monkeypatch.setattr(home, "run_folders", lambda: [tmp_path])
    return saved(tmp_path, table("ddpm"))


def student(teacher, **over):
    few = {"discretisation": "fixed", "most_levels": 6}
    return merge(table("ddpm"), {"model": {"name": "consistency", "teacher": teacher.name, **few, **over}})


def test_a_student_begins_with_its_teachers_weights_and_is_drawn_from_without_it(teacher, tmp_path):
    made = session(tmp_path, student(teacher, guidance=2.0), name="student")
    assert made.recipe["model"]["denoiser"]["name"] == "ddpm" and made.config["teacher"]["run"] == teacher.name
    one = made.trainer(made.train)
    one.initialise()
    theirs, own = Run.load(teacher).model, made.run.model
    for key, value in theirs.state_dict().items():
        assert torch.equal(own.denoiser.state_dict()[key], value)
    for _ in made.events():
        pass
    from gencli.evaluation.generate import Request, samples

    (teacher / "model.safetensors").unlink()
    (teacher / "config.json").unlink()
    loaded = Run.load(made.folder)
    assert samples(loaded, Request(range(3), {"label": torch.arange(3)})).shape == (3, 1, 8, 8)


def test_a_resumed_student_is_bit_equal_and_needs_the_same_teacher(teacher, tmp_path):
    part = ends_as(trained(tmp_path, student(teacher), name="whole"), student(teacher), 3)
    weights = (teacher / "model.safetensors").read_bytes()
    (teacher / "model.safetensors").write_bytes(weights[:-4] + b"\0\0\0\1")
    with pytest.raises(GencliError, match=f"was taught by {teacher.name} with weights .* they are now"):
        resumed(part, steps=7)
    (teacher / "config.json").unlink()
    with pytest.raises(GencliError, match=f"no run '{teacher.name}'"):
        resumed(part, steps=7)


def test_a_run_that_cannot_teach_is_refused(teacher, tmp_path):
    flat = saved(tmp_path, table("vae"))
    done = saved(tmp_path, student(teacher), name="done")
    wide = saved(tmp_path, table("ddpm", {"data": {"image_size": 12}}), name="wide")
    for name, says in (
        ("nobody", "no run 'nobody'"),
        (flat.name, "trains a denoiser, vae is none"),
        (done.name, "trains a denoiser, consistency has jumped"),
        (wide.name, r"run wide makes image of shape \(1, 12, 12\)"),
    ):
        tables = student(teacher)
        tables["model"]["teacher"] = name
        with pytest.raises(GencliError, match=says):
            list(session(tmp_path, tables).events())
    tables = student(teacher, denoiser=table("ddpm")["model"])
    for name, says in (
        (flat.name, "is no denoiser"),
        (done.name, "cannot teach: its consistency is a consistency function"),
    ):
        tables["model"]["teacher"] = name
        with pytest.raises(GencliError, match=says):
            list(session(tmp_path, tables).events())


@pytest.mark.parametrize(
    ("over", "says"),
    [
        ({"least_levels": 20, "most_levels": 10}, "least-levels 20 is above most-levels 10"),
        ({"target_decay": 0.9}, "levels that double"),
        ({"denoiser": {"name": "ddpm", "timesteps": 20, "net": MLP}, "most_levels": 20}, "most-levels 20"),
    ],
)
def test_settings_that_cannot_work_are_refused(over, says):
    with pytest.raises(GencliError, match=says):
        made({"most_levels": 10, **over})


def test_the_papers_network_is_edms_without_augmentations():
    for name in ("consistency-cifar10", "consistency-distillation-cifar10"):
        assert recipe.load(name)["model"]["denoiser"]["net"]["embedding"] == "fourier"
    assert counted("consistency-distillation-cifar10", counted.__globals__["CIFAR"])[0] == 56_397_827 - 9 * 256
