"""Guided distillation: one call of the student says what two of its teacher do, at every strength of guidance."""

from functools import cache

import pytest
import torch
from diffused import MLP, Told, randomised
from fitting import fit
from saved import saved
from tiny import ends_as, session, table

from gencli import home
from gencli.bundle import Run
from gencli.config import merge
from gencli.core import Field, Rng, Spec, Turn
from gencli.errors import GencliError
from gencli.evaluation.generate import Request, cost, resolved, samples
from gencli.guidance._base import Guidance
from gencli.guidance.cfg import guided
from gencli.models.diffusion._family import rows
from gencli.models.diffusion.ddpm import Ddpm
from gencli.models.diffusion.guided_distillation import GuidedDistillation
from gencli.samplers.ddim import Ddim

SPEC = Spec(Field("points", (2,)), {"label": Field("label", (), vocab=4)})
DENOISER = {"name": "ddpm", "prediction": "v", "schedule": "cosine", "net": MLP}


def made(**over):
    return GuidedDistillation.make({"denoiser": DENOISER, "first": 1, **over}, SPEC).double()


def turn(step=1, rows=64, steps=100):
    return Turn("main", step, steps, Rng.batch("g", step, total=rows))


def batch(n=64):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 2, dtype=torch.float64, generator=generator)
    return {"x": x, "label": torch.randint(4, (n,), generator=generator)}


# ------------------------------------------------------------------------------------------------------------------ the target


def test_the_loss_of_the_exact_combination_is_zero_and_no_other_students_is():
    model = made()
    randomised(model.teacher.net)
    exact = {0.0: 0.0}
    for wrong in (0.0, 0.01):
        model.denoise = lambda x, sigma, guidance, wrong=wrong, **cond: model.guided(x, sigma, guidance + wrong, **cond)
        exact[wrong] = float(model.loss(batch(), turn())["loss"])
    assert exact[0.0] == 0 and exact[0.01] > 1e-8
    model.denoise = lambda x, sigma, guidance, **cond: model.guided(x, sigma, 0 * guidance, **cond)
    assert float(model.loss(batch(), turn())["loss"]) > 1e-3, "the teacher without guidance"


def test_the_target_is_classifier_free_guidance_with_a_strength_of_its_own_for_each_item():
    model, given = made(), batch(5)
    randomised(model.teacher.net)
    sigma, w = torch.tensor([0.1, 0.5, 1.0, 5.0, 50.0]).double(), torch.tensor([0.0, 0.3, 1.0, 2.5, 4.0]).double()
    found = model.guided(given["x"], sigma, w, label=given["label"])
    for i in range(5):
        x, label, none = given["x"][i : i + 1], given["label"][i : i + 1], torch.zeros(1, 1).double()

        def teacher(x, sigma, none=none, **cond):
            return model.teacher.denoise(x, sigma, number=none, **cond)

        with_it, without = teacher(x, sigma[i], label=label), teacher(x, sigma[i])
        torch.testing.assert_close(found[i : i + 1], (1 + w[i]) * with_it - w[i] * without, rtol=1e-12, atol=1e-12)
        sampled = guided(teacher, {"label": label}, float(1 + w[i]))(x, sigma[i])
        torch.testing.assert_close(found[i : i + 1], sampled, rtol=1e-12, atol=1e-12)


def test_strengths_are_even_over_their_range_and_labels_stay():
    model = made(w_min=0.5, w_max=3.0).train()
    _, cond = model.prepared(batch(4000), turn(rows=4000).rng)
    w = cond["guidance"].sort().values
    even = 0.5 + 2.5 * (torch.arange(4000) + 0.5) / 4000
    assert (w - even).abs().max() < 0.1 and bool((cond["label"] < 4).all())


def test_the_weight_is_the_truncated_signal_to_noise_ratio():
    model, given = made(), batch()
    model.guided = lambda x, sigma, guidance, **cond: x
    model.denoise = lambda x, sigma, guidance, **cond: x + 1
    each, sigma = model.loss(given, turn())["each"], model.denoiser.draw_sigma(64, turn().rng.at("levels"))
    torch.testing.assert_close(each, torch.where(sigma < 1, 1 / sigma**2, 1.0))


# ----------------------------------------------------------------------------------------------------------------- the student


@pytest.mark.parametrize("net", ["unet", "denoising-mlp"])
def test_what_the_student_says_depends_on_the_strength_once_it_has_learned(net):
    image = Spec(Field("image", (1, 4, 4), vocab=256, range=(-1.0, 1.0)), SPEC.cond)
    sizes = {"name": "unet", "width": 8, "mults": (1, 2), "blocks": 1, "attention": ()} if net == "unet" else MLP
    model = GuidedDistillation.make({"denoiser": {**DENOISER, "net": sizes}}, image).double()
    for key, weight in model.denoiser.named_parameters():
        if not key.startswith("net.number."):
            torch.nn.init.normal_(weight, std=0.3)
    x, label = torch.randn(3, 1, 4, 4, dtype=torch.float64), torch.arange(3)

    def said(w):
        return model.denoise(x, torch.tensor(1.0), label=label, guidance=torch.tensor(w))

    assert torch.equal(said(0.0), said(4.0)), "its map starts at zero"
    randomised(model.net)
    assert (said(0.0) - said(0.1)).abs().max() > 1e-4 and (said(3.0) - said(4.0)).abs().max() > 1e-3
    torch.testing.assert_close(model.denoise(x, torch.tensor(1.0), label=label), said(0.0))
    rowwise = model.denoise(x, torch.tensor(1.0), label=label, guidance=torch.tensor([0.0, 2.0, 4.0]))
    torch.testing.assert_close(rowwise[2], said(4.0)[2])


def test_a_step_is_one_call_where_the_teachers_is_two():
    student, teacher = made(), Ddpm.make({"net": MLP}, SPEC).double()
    label, sampler = torch.arange(4), Ddim.make({"steps": 5})
    for model, calls in ((student, 5), (teacher, 10)):
        seen = []
        net = Told(lambda x, level, seen=seen, **cond: seen.append(cond.get("number")) or 0.1 * x)
        (student.denoiser if model is student else teacher).net = net
        run = Run(model, [], SPEC, SPEC, {})
        request = resolved(run, Request(range(4), {"label": label}, sampler, 3.0, micro=4))
        list(sampler.frames(model, SPEC, 4, Rng.batch(0, total=4), {"label": label}, request.guidance))
        assert len(seen) == calls == cost(run, request)[1]
        if model is student:
            assert all(torch.equal(w, torch.full((4, 1), 2.0)) for w in seen), "w is the scale less 1"


@pytest.mark.parametrize(
    ("guidance", "says"),
    [
        (Guidance(6.0), r"guidance 6: the run was taught scales from 1 to 5"),
        (Guidance(0.0), r"guidance 0: the run was taught"),
        (Guidance(2.0, interval=(0.1, 1.0)), "it can be told a scale only"),
        (Guidance(2.0, guide=object()), "it can be told a scale only"),
    ],
)
def test_guidance_that_it_cannot_be_told_is_refused(guidance, says):
    with pytest.raises(GencliError, match=says):
        list(Ddim.make().frames(made(), SPEC, 1, Rng.batch(0, total=1), {"label": torch.arange(1)}, guidance))


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(GencliError, match="w-min 3 is above w-max 2"):
        made(w_min=3.0, w_max=2.0)
    with pytest.raises(GencliError, match="have none that can be left out"):
        GuidedDistillation.make({"denoiser": DENOISER}, Spec(Field("points", (2,))))
    with pytest.raises(GencliError, match="progressive-distillation has a teacher's"):
        made(denoiser={"name": "progressive-distillation", "denoiser": DENOISER})


# ------------------------------------------------------------------------------------------------------------- from a teacher


@pytest.fixture
def teacher(tmp_path, monkeypatch):
    monkeypatch.setattr(home, "run_folders", lambda: [tmp_path])
    return saved(tmp_path, table("ddpm"))


def student(teacher, name="guided-distillation", **over):
    return merge(table("ddpm"), {"model": {"name": name, "teacher": teacher.name, **over}})


def test_a_student_begins_as_its_teacher_and_resumes_bit_for_bit(teacher, tmp_path):
    whole = session(tmp_path, student(teacher))
    whole.trainer(whole.train).initialise()
    theirs, own, x = Run.load(teacher).model, whole.run.model.eval(), torch.randn(3, 1, 8, 8)
    label, w = torch.arange(3), torch.tensor(3.0)
    with torch.no_grad():
        found = own.denoise(x, torch.tensor(2.0), label=label, guidance=w)
        assert torch.equal(found, theirs.denoise(x, torch.tensor(2.0), label=label))
        double = theirs.denoise(x, torch.tensor(2.0))
        pulled = own.guided(x, torch.tensor(2.0), w.expand(3), label=label)
        torch.testing.assert_close(pulled, 4 * found - 3 * double, rtol=1e-4, atol=1e-4)
    for _ in whole.events():
        pass
    assert float(own.net.number.weight.detach().abs().max()) > 0, "it has begun to listen"
    ends_as(whole.folder, student(teacher), 3)


def test_the_steps_of_a_student_are_halved_with_every_strength_at_once(teacher, tmp_path):
    first = session(tmp_path, student(teacher), name="first")
    for _ in first.events():
        pass
    few = {"teacher_steps": 8, "student_steps": 2, "halving": 3}
    second = session(tmp_path, student(first.folder, "progressive-distillation", **few), name="second")
    seen, model = [], second.run.model
    whole = model.denoiser.denoiser.predict
    model.denoiser.denoiser.predict = lambda x, s, **cond: seen.append(cond["number"]) or whole(x, s, **cond)
    for event in second.events():
        if event.kind == "step" and event.step == 1:
            assert len(set(seen[0].flatten().tolist())) == 8, "each item has its own"
    run = Run.load(second.folder)
    assert run.model.scales == (1.0, 5.0)
    for part in run.model.modules():
        if isinstance(part, torch.nn.Linear):
            torch.nn.init.normal_(part.weight, std=0.3)
    asked, few = {"label": torch.arange(2)}, Ddim.make({"steps": 2})
    drawn = [samples(run, Request(range(2), asked, few, guidance=s)) for s in (1.0, 4.0)]
    assert not torch.equal(*drawn)
    with pytest.raises(GencliError, match="guidance 2 for guided-distillation"):
        session(tmp_path, student(first.folder, "progressive-distillation", guidance=2.0), name="third")


def test_one_command_trains_the_denoiser_and_distils_it(tmp_path):
    alone = {"model": {"name": "guided-distillation", "first": 2, "denoiser": table("ddpm")["model"]}}
    made = session(tmp_path, merge(table("ddpm"), {**alone, "train": {"ema": 0.0}}))
    model, kept = made.run.model, None
    for event in made.events():
        if event.kind == "step" and event.step == 2:
            kept = {key: value.clone() for key, value in model.teacher.state_dict().items()}
            own = model.denoiser.state_dict()
            assert all(torch.equal(value, own[key]) for key, value in kept.items())
    assert all(torch.equal(value, kept[key]) for key, value in model.teacher.state_dict().items())
    assert not any(torch.equal(p, kept[key]) for key, p in model.denoiser.named_parameters() if "number" in key)


# -------------------------------------------------------------------------------------------------------------------- learning

CORNERS = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])


def posterior(x, sigma, label=None):
    """E[x0 | x] for a Gaussian of deviation 0.5 at each corner of a square, or at the label's."""
    s = rows(sigma, x)
    variance, centres = 0.25 + s**2, CORNERS.to(x)
    means = (0.25 * x[:, None] + s[..., None] ** 2 * centres) / variance[..., None]
    if label is not None:
        return means[torch.arange(len(x)), label]
    weights = (-(x[:, None] - centres).square().sum(-1) / (2 * variance)).softmax(1)
    return (weights[..., None] * means).sum(1)


def combined(x, sigma, guidance, **cond):
    w = rows(guidance, x)
    return (1 + w) * posterior(x, sigma, **cond) - w * posterior(x, sigma)


@cache
def learned(steps=300):
    torch.manual_seed(0)
    net = {"name": "denoising-mlp", "width": 64, "layers": 2}
    model = GuidedDistillation.make({"denoiser": {**DENOISER, "net": net}, "first": 1}, SPEC)
    model.guided = combined

    def loss(step):
        rng = Rng.batch("corners", step, total=256)
        label = rng.at("which").integers((256,), 4)
        x = CORNERS[label] + 0.5 * rng.at("noise").normal((256, 2))
        return model({"x": x, "label": label}, turn(step, 256))["loss"]

    fit(model.denoiser.parameters(), loss, steps, 4e-3)
    return model.eval()


@torch.no_grad()
def off(model, w, told):
    """Mean squared error of a student that is told a strength, against guidance by w, at σ = 0.5 and 1."""
    generator = torch.Generator().manual_seed(1)
    label = torch.arange(2000) % 4
    x0 = CORNERS[label] + 0.5 * torch.randn(2000, 2, generator=generator)
    total = 0.0
    for s in (0.5, 1.0):
        sigma = torch.full((2000,), s)
        x = x0 + s * torch.randn(2000, 2, generator=generator)
        wanted = combined(x, sigma, torch.full((2000,), w), label=label)
        found = model.denoise(x, sigma, label=label, guidance=torch.tensor(told))
        total += float((found - wanted).square().mean())
    return total / 2


def test_the_student_learns_every_strength_of_an_exact_teacher():
    model = learned()
    right = [off(model, w, w) for w in (0.0, 2.0, 4.0)]
    wrong = [off(model, w, told) for w, told in ((0.0, 2.0), (2.0, 0.0), (4.0, 2.0))]
    assert max(right) < 0.05 and min(wrong) > 10 * max(right), "told another strength it is far off"
