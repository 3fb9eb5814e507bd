"""Rectified flow, straightened: on points whose right answers are known, and from a run on disk."""

from functools import cache

import pytest
import torch
from diffused import POINTS
from fitting import fit
from saved import saved
from tiny import session, table

from gencli import home
from gencli.core import Rng, Turn
from gencli.errors import GencliError
from gencli.models.diffusion.rectified_flow import RectifiedFlow, transported
from gencli.samplers.euler import Euler

NET = {"name": "denoising-mlp", "width": 64, "layers": 2}
PAIRS = 1024


class Corners:
    """E[x_0 | x] for four Gaussians of deviation 0.15 at the corners of a square, in any level; the velocity's closed form."""

    levels, sigma_min, sigma_max = None, 1e-3, 1000.0
    centres = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)

    def sigma_at(self, u):
        tau = (1 - u.double()).clamp(min=1e-3)
        return (1 - tau) / tau

    def denoise(self, x, sigma, **cond):
        variance = 0.15**2 + sigma**2
        weights = (-(x[:, None] - self.centres).square().sum(-1) / (2 * variance)).softmax(1)
        means = (0.15**2 * x[:, None] + sigma**2 * self.centres) / variance
        return (weights[..., None] * means).sum(1)

    def start(self, noise, sigma):
        return noise * (1 + sigma**2).sqrt()


def pairs(seed=0, count=PAIRS):
    return transported(Corners(), {}, Rng.rows(range(seed, seed + count)), POINTS)


@cache
def straightened():
    """A network trained on the pairs that the exact field makes."""
    torch.manual_seed(0)
    model = RectifiedFlow.make({"reflow": "corners", "pairs": PAIRS, "net": NET}, POINTS)
    noise, made = pairs()
    model.pairs_noise.copy_(noise)
    model.pairs_data.copy_(made)
    batch, steps = {"x": torch.zeros(256, 2)}, 900
    loss = lambda step: model(batch, Turn("main", step, steps, Rng.batch(0, step, total=256)))["loss"]  # noqa: E731
    fit(model.parameters(), loss, steps, 4e-3)
    return model.eval()


@torch.no_grad()
def flown(model, noise, steps):
    sampler = Euler.make({"steps": steps})
    levels = sampler.levels(model)
    *_, last = sampler.run(model.denoise, model.start(noise, levels[0]), levels, Rng.batch(0, total=len(noise)))
    return last.x


@torch.no_grad()
def bend(model, noise, made):
    """E ∫ ‖(x_1 − n) − v(x_t, t)‖² dt along straight lines between pairs."""
    total = 0.0
    for tau in torch.linspace(0.05, 0.95, 10, dtype=torch.float64):
        x = tau * made + (1 - tau) * noise
        estimate = model.denoise(x / tau, (1 - tau) / tau)
        total += float((made - noise - (estimate - x) / (1 - tau)).square().sum(1).mean())
    return total / 10


def test_for_independent_noise_the_velocity_is_the_conical_paths():
    """E[x_1 − n | x_t] by Monte Carlo near a point, against the closed form of the exact denoiser."""
    rng, count, tau = Rng.batch("mc", total=400_000), 400_000, 0.6
    data = Corners.centres[rng.at("which").integers((count,), 4)] + 0.15 * rng.at("data").normal((count, 2)).double()
    noise = rng.at("noise").normal((count, 2)).double()
    x = tau * data + (1 - tau) * noise
    for point in torch.tensor([[0.5, 0.3], [-0.2, 0.7]], dtype=torch.float64):
        near = (x - point).norm(dim=1) < 0.06
        seen = (data - noise)[near].mean(0)
        estimate = Corners().denoise(point[None] / tau, torch.tensor((1 - tau) / tau))[0]
        assert ((estimate - point) / (1 - tau) - seen).abs().max() < 0.06


def test_after_reflow_paths_are_straighter_one_step_is_close_to_many_and_transport_costs_no_more():
    model = straightened()
    noise, made = pairs(seed=PAIRS, count=512)
    assert bend(model, noise, made) < 0.5 * bend(Corners(), noise, made)
    one, many = (flown(model, noise, steps) for steps in (1, 100))
    spread = many.square().sum(1).mean().sqrt()
    assert (one - many).square().sum(1).mean().sqrt() < 0.05 * spread * 2
    crude = flown(Corners(), noise, 1)
    assert (crude - made).square().sum(1).mean().sqrt() > 0.5 * spread, "one step of the first flow is far off"
    free = made[torch.randperm(len(made), generator=torch.Generator().manual_seed(0))]
    assert (many - noise).square().sum() < (free - noise).square().sum()


def test_pairs_are_drawn_from_a_run_once_and_resume_with_it(tmp_path, monkeypatch):
    monkeypatch.setattr(home, "run_folders", lambda: [tmp_path])
    teacher = saved(tmp_path, table("ddpm"))
    own = {
        "model": {"name": "rectified-flow", "reflow": teacher.name, "pairs": 12, "net": table("ddpm")["model"]["net"]}
    }
    tables = {**table("ddpm"), **own}
    made = session(tmp_path, tables)
    for _ in made.events():
        pass
    model = made.run.model
    assert model.meaning == "transport" and model.pairs_noise.std() > 0.8
    assert model.pairs_label.tolist() == [i % 10 for i in range(12)]
    again = session(tmp_path, tables)
    for _ in again.events():
        pass
    assert torch.equal(again.run.model.pairs_data, model.pairs_data)
    from safetensors.torch import load_file

    assert not any(key.startswith("pairs_") for key in load_file(made.folder / "model.safetensors"))


def test_a_run_that_cannot_teach_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(home, "run_folders", lambda: [tmp_path])
    flow, other = saved(tmp_path, table("vae")), saved(tmp_path, table("ddpm"))
    for name, says in ((flow.name, "no denoiser"), (other.name, "wanted are points"), ("nobody", "nobody")):
        model = RectifiedFlow.make({"reflow": name, "pairs": 2, "net": NET}, POINTS)
        with pytest.raises(GencliError, match=says):
            model.initialise(iter(()), 1, Rng.batch(0, total=1))
