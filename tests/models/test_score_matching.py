"""Score matching: the implicit loss against closed forms."""

import pytest
import torch

from gencli.core import Field, Rng, Spec, Turn
from gencli.errors import GencliError
from gencli.models.diffusion.score_matching import ScoreMatching, implicit

PLANE = Spec(Field("points", (2,)))


def normals(n, dim, seed=0):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tanh_net(seed, dim=3):
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.randn(2, dim, dim, generator=generator, dtype=torch.float64).unbind(0)
    return lambda x: torch.tanh(x @ first) @ second - x


def test_a_linear_score_on_a_normal_has_the_loss_of_the_closed_form():
    """s = −a x in d dimensions: −a d + a² d / 2, least at a = 1, where it is −d / 2."""
    dim, x = 3, normals(100_000, 3)
    losses = {}
    for a in (0.5, 1.0, 1.5):
        losses[a] = float(implicit(lambda x, a=a: -a * x, x, None, False).mean())
        assert losses[a] == pytest.approx(-a * dim + a**2 * dim / 2, abs=0.02)
    assert losses[1.0] == min(losses.values())


def test_the_exact_trace_is_that_of_the_jacobian():
    score, x = tanh_net(0), normals(5, 3)
    for each, point in zip(implicit(score, x, None, False), x, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda p: score(p[None])[0], point)
        assert float(each) == pytest.approx(float(jacobian.trace() + score(point[None]).square().sum() / 2), rel=1e-9)


def test_implicit_and_explicit_losses_differ_by_the_same_number_for_any_network():
    x, gaps, losses = normals(200_000, 3), [], []
    for seed in range(3):
        score = tanh_net(seed)
        made = implicit(score, x, None, False)
        explicit = (score(x) + x).square().sum(1) / 2  # the score of a standard normal is −x
        gaps.append(float((explicit - made).mean()))
        losses.append(float(made.mean()))
    assert max(gaps) - min(gaps) < 0.05 < max(losses) - min(losses)
    assert sum(gaps) / 3 == pytest.approx(1.5, abs=0.05), "half the dimension, ½ E ‖∇ log p‖²"


def test_the_sliced_estimate_is_unbiased():
    score, count = tanh_net(1), 20_000
    x = normals(1, 3).expand(count, 3)
    exact = float(implicit(score, x[:1], None, False))
    rng = Rng.batch("probes", total=count)
    for probes in (1, 4):
        model = ScoreMatching.make({"form": "sliced", "probes": probes}, Spec(Field("points", (3,))))
        signs = model._signs(x, rng)
        assert signs.shape == (count, probes, 3) and signs.abs().min() == 1
        drawn = implicit(score, x, signs, False)
        error = float(drawn.std()) / count**0.5
        assert error > 0 and abs(float(drawn.mean()) - exact) < 3 * error


def test_it_learns_the_score_of_a_gaussian_from_points_alone():
    torch.manual_seed(0)
    covariance = torch.tensor([[1.0, 0.6], [0.6, 1.0]])
    root = torch.linalg.cholesky(covariance)
    x = normals(4000, 2).float() @ root.T
    truth = -normals(2000, 2, seed=5).float() @ root.T @ torch.linalg.inv(covariance)
    at = normals(2000, 2, seed=5).float() @ root.T
    for form in ("exact", "sliced"):
        model = ScoreMatching.make({"form": form, "net": {"name": "denoising-mlp", "width": 32, "layers": 1}}, PLANE)
        optimiser = torch.optim.Adam(model.parameters(), 1e-2)
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 150)
        assert float(model.score(at).detach().norm()) == 0
        for step in range(150):
            turn = Turn("main", step, 150, Rng.batch("train", step, total=500))
            loss = model({"x": x[(step % 8) * 500 : (step % 8 + 1) * 500]}, turn)["loss"]
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            decay.step()
        with torch.no_grad():
            assert float((model.score(at) - truth).norm() / truth.norm()) < 0.2, form


def test_no_noise_is_added_in_training():
    model = ScoreMatching.make({}, PLANE)
    seen = []
    model.net.register_forward_hook(lambda module, given, out: seen.append(given[0].detach()))
    x = normals(7, 2).float()
    model({"x": x}, Turn("main", 0, 1, Rng.batch(0, total=7)))
    assert len(seen) == 1 and torch.equal(seen[0], x)
    assert model.levels.tolist() == [0.05], "a level for samplers alone"


def test_the_loss_can_be_measured_without_gradients():
    torch.manual_seed(0)
    model = ScoreMatching.make({}, PLANE)
    torch.nn.init.normal_(model.net.last.weight)
    turn, batch = Turn("main", 0, 1, Rng.batch(0, total=7)), {"x": normals(7, 2).float()}
    with torch.no_grad():
        measured = model(batch, turn)["each"]
    assert not measured.requires_grad and torch.allclose(measured, model(batch, turn)["each"])


def test_an_exact_trace_in_many_dimensions_is_refused():
    wide = Spec(Field("points", (300,)))
    with pytest.raises(GencliError, match="the data have 300") as caught:
        ScoreMatching.make({}, wide)
    assert "--form sliced" in caught.value.hint
    assert ScoreMatching.make({"form": "sliced"}, wide).spec.x.size == 300
