"""Progressive distillation: its target is two steps of DDIM, and few steps of a student are as good as many of its teacher."""

from functools import cache

import pytest
import torch
from diffused import MLP, POINTS, randomised
from saved import saved
from tiny import hashes, resumed, session, table
from torch import nn

from gencli import home
from gencli.bundle import Run
from gencli.config import merge
from gencli.core import Phase, Rng, Turn
from gencli.errors import GencliError
from gencli.models.diffusion._family import rows
from gencli.models.diffusion.progressive_distillation import ProgressiveDistillation
from gencli.samplers.ddim import Ddim
from gencli.training.optim import rate_of
from gencli.training.settings import TrainConfig

DENOISERS = {
    "v": {"name": "ddpm", "prediction": "v", "schedule": "cosine", "net": MLP},
    "eps": {"name": "ddpm", "net": MLP},
    "edm": {"name": "edm", "net": MLP},
    "flow": {"name": "flow-matching", "net": MLP},
}


def made(denoiser="v", **over):
    return ProgressiveDistillation.make({"denoiser": DENOISERS[denoiser], **over}, POINTS).double()


def turn(step=0, rows=64, steps=100):
    return Turn("main", step, steps, Rng.batch("p", step, total=rows))


# ----------------------------------------------------------------------------------------------------------------- the target


@pytest.mark.parametrize("denoiser", DENOISERS)
def test_one_step_with_the_target_is_two_steps_of_the_teacher(denoiser):
    model, ddim = made(denoiser, teacher_steps=16), Ddim.make()
    randomised(model.teacher.net)
    grid, generator = model.grids[0], torch.Generator().manual_seed(0)
    for i in range(0, 16, 2):
        here, middle, there = grid[i : i + 3]
        x = torch.randn(6, 2, dtype=torch.float64, generator=generator) * (1 + here**2).sqrt()
        between = ddim.step(model.teacher.denoise, x, here, middle, {}, Rng.batch(0, total=6))
        wanted = ddim.step(model.teacher.denoise, between, middle, there, {}, Rng.batch(0, total=6))
        levels = (here.expand(6), middle.expand(6), there.expand(6))
        target = model.two_steps(x, *levels, {})
        found = ddim.step(lambda x, sigma, target=target: target, x, here, there, {}, Rng.batch(0, total=6))
        assert (found - wanted).abs().max() <= 1e-12 * x.abs().max()
        once = ddim.step(model.teacher.denoise, x, here, there, {}, Rng.batch(0, total=6))
        assert (once - wanted).abs().max() > 1e-8 * x.abs().max(), "one step of the teacher is another"
        naive = (wanted - there / here * x) / (1 - there / here)
        torch.testing.assert_close(target, naive, rtol=1e-6, atol=1e-6)


def test_a_students_levels_are_those_that_ddim_visits():
    model = made(teacher_steps=64, student_steps=4)
    assert [len(grid) - 1 for grid in model.grids] == [64, 32, 16, 8]
    for grid in model.grids:
        n = (len(grid) - 1) // 2
        assert torch.equal(grid[::2], Ddim.make({"steps": n}).levels(model))


def test_the_weight_snr_plus_one_makes_it_the_error_of_v():
    model = made(weighting="snr-plus-1")
    x0, off, n = torch.randn(3, 5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.01, 0.3, 1.0, 5.0, 80.0], dtype=torch.float64)
    way, x = model.denoiser.formulation, x0 + rows(sigma, x0) * n
    guess = way.target(x0, n, sigma) + off  # a prediction of v that is wrong by `off`
    apart = (model.denoiser.estimate_x0(x, sigma, guess) - x0).square()
    torch.testing.assert_close(rows(model.weight(sigma), x0) * apart, off.square(), rtol=1e-9, atol=1e-12)
    truncated = made().weight(sigma)
    torch.testing.assert_close(truncated, torch.tensor([1e4, 1 / 0.09, 1.0, 1.0, 1.0], dtype=torch.float64))


# ---------------------------------------------------------------------------------------------------------------- the halvings


def test_the_student_becomes_the_teacher_at_each_halving_and_only_then():
    model = made(first=3, halving=2, teacher_steps=8, student_steps=2)
    assert [model.halving(step) for step in range(9)] == [-1, -1, -1, 0, 0, 1, 1, 1, 1]
    assert model.phases()[0].restarts == (3, 5)
    for step in range(9):
        randomised(model.denoiser.net, seed=step)
        model.after_step(turn(step))
        pairs = zip(model.teacher.parameters(), model.denoiser.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs) == (step in (2, 4))
    steps = [float(model.loss({"x": torch.randn(64, 2).double()}, turn(step)).get("steps", 0)) for step in (2, 3, 5, 8)]
    assert steps == [0, 4, 2, 2]


def test_the_learning_rate_falls_once_in_each_halving():
    phase, train = (
        made(first=4, halving=2, teacher_steps=8).phases()[0],
        TrainConfig(steps=12, lr=1.0, schedule="linear"),
    )
    rates = [rate_of(phase, train, step) for step in range(12)]
    assert rates == [1.0, 0.75, 0.5, 0.25, 1.0, 0.5, 1.0, 0.5, 1.0, 0.75, 0.5, 0.25], "the last has what is left"
    plain = TrainConfig(steps=4, lr=1.0, schedule="linear", warmup=2)
    assert [rate_of(Phase("main"), plain, step) for step in range(4)] == [0.5, 1.0, 1.0, 0.5]


def test_the_teacher_has_no_gradient_and_drops_nothing():
    model = made(first=1, halving=1, teacher_steps=4)
    model.teacher.extra = nn.Dropout()
    model.train()
    assert model.denoiser.training and not model.teacher.extra.training
    randomised(model.net)
    model.loss({"x": torch.randn(64, 2).double()}, turn(1))["loss"].backward()
    assert all(p.grad is None and not p.requires_grad for p in model.teacher.parameters())
    assert all(p.grad is not None for p in model.denoiser.parameters())
    assert [len(phase.modules) for phase in model.phases()] == [1]


@pytest.fixture
def teacher(tmp_path, monkeypatch):
    monkeypatch.setattr(home, "run_folders", lambda: [tmp_path])
    return saved(tmp_path, table("ddpm"))


def student(teacher, **over):
    few = {"teacher_steps": 16, "student_steps": 4, "halving": 3}
    return merge(table("ddpm"), {"model": {"name": "progressive-distillation", "teacher": teacher.name, **few, **over}})


def test_a_student_begins_equal_to_its_teacher_and_resumes_bit_for_bit_across_a_halving(teacher, tmp_path):
    whole = session(tmp_path, merge(student(teacher, guidance=2.0), {"train": {"ema": 0.0, "schedule": "linear"}}))
    one = whole.trainer(whole.train)
    one.initialise()
    theirs, own, x = Run.load(teacher).model, whole.run.model.eval(), torch.randn(3, 1, 8, 8)
    told = {"label": torch.arange(3)}
    with torch.no_grad():
        assert torch.equal(own.denoise(x, torch.tensor(2.0), **told), theirs.denoise(x, torch.tensor(2.0), **told))
    for _ in whole.events():
        pass
    for stop in (2, 4):  # within the first halving, and after it
        part = session(tmp_path, merge(whole.recipe, {"train": {"steps": 6, "save_every": 1}}), name="part")
        for event in part.events():
            if event.kind == "saved" and event.step == stop:
                part.asked = 2
            if event.kind == "stopped":
                assert event.step <= stop + 1
        resumed(part.folder)
        assert hashes(part.folder) == hashes(whole.folder)


def test_what_cannot_be_halved_is_refused(teacher, tmp_path):
    for over, says in (
        ({"teacher_steps": 24, "student_steps": 1}, "teacher-steps 24 cannot be halved down to student-steps 1"),
        ({"teacher_steps": 4, "student_steps": 4}, "cannot be halved"),
        ({"teacher_steps": 2048}, "the denoiser has 1000 levels"),
    ):
        with pytest.raises(GencliError, match=says):
            made(**over)
    other = merge(table("ddpm"), {"model": {"net": {"width": 16}}})["model"]
    with pytest.raises(GencliError, match=f"is not that of run {teacher.name}"):
        list(session(tmp_path, student(teacher, denoiser=other)).events())


# --------------------------------------------------------------------------------------------------------------------- learning

CORNERS = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
FIRST, HALVING = 300, 80


@cache
def learned():
    """From nothing to one step: a denoiser of four Gaussians of deviation 0.15, then four halvings."""
    torch.manual_seed(0)
    net = {"name": "denoising-mlp", "width": 64, "layers": 2}
    config = {"first": FIRST, "halving": HALVING, "teacher_steps": 16, "denoiser": {**DENOISERS["v"], "net": net}}
    model = ProgressiveDistillation.make(config, POINTS)
    optimiser, kept = torch.optim.Adam(model.denoiser.parameters(), 3e-3), None
    for step in range(FIRST + 4 * HALVING):
        place, length = (step - FIRST) % HALVING if step >= FIRST else step, HALVING if step >= FIRST else FIRST
        optimiser.param_groups[0]["lr"] = 3e-3 * (1 - place / length)
        rng = Rng.batch("corners", step, total=256)
        x = CORNERS[rng.at("which").integers((256,), 4)] + 0.15 * rng.at("noise").normal((256, 2))
        loss = model({"x": x}, turn(step, 256))["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        model.after_step(turn(step))
        if step == FIRST - 1:
            kept = {key: value.clone() for key, value in model.denoiser.state_dict().items()}
    return model.eval(), kept


@torch.no_grad()
def misses(model, steps):
    """The share of points that lie four deviations from every corner."""
    *_, last = Ddim.make({"steps": steps, "clip": False}).frames(model, POINTS, 2000, Rng.batch(7, total=2000), {})
    return float((torch.cdist(last.x.float(), CORNERS).min(1).values > 0.6).float().mean())


def test_one_step_of_the_student_finds_the_modes_that_one_of_the_first_teacher_misses():
    model, first = learned()
    once = misses(model, 1)
    model.denoiser.load_state_dict(first)
    many, crude = misses(model, 16), misses(model, 1)
    assert many < 0.1 and once < 0.2 and crude > 0.9


def test_one_command_trains_the_denoiser_and_halves_it(tmp_path):
    tables = {"model": {"first": 2, "halving": 2, "teacher_steps": 4, "denoiser": table("ddpm")["model"]}}
    made = session(tmp_path, merge(table("ddpm"), merge(tables, {"model": {"name": "progressive-distillation"}})))
    steps = [event.values.get("steps") for event in made.events() if event.kind == "step"]
    assert steps == [None, None, 2, 2, 1, 1]
