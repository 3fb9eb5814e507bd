"""The noisy classifier: official sizes, what its network sees, Bayes' rule at every level, and what it refuses."""

import pytest
import torch
from diffused import POINTS, SPEC, Told, counted
from torch.nn import functional as F

from gencli.bundle import Run
from gencli.core import Classifier, Denoiser, Field, Rng, Spec, Turn
from gencli.data.toy2d import draw
from gencli.errors import GencliError
from gencli.guidance.classifier import log_slope
from gencli.models.diffusion import _schedules as schedules
from gencli.models.diffusion.noisy_classifier import NoisyClassifier

LABELLED = Spec(POINTS.x, {"label": Field("label", (), vocab=8)})
MLP = {"name": "classifier-mlp", "width": 64, "layers": 2}


@pytest.mark.parametrize(("side", "count"), [(64, 65_438_568), (256, 54_096_360)])
def test_parameter_counts_are_the_official_ones(side, count):
    spec = Spec(
        Field("image", (3, side, side), vocab=256, range=(-1.0, 1.0)), {"label": Field("label", (), vocab=1000)}
    )
    assert counted(f"noisy-classifier-imagenet{side}", spec)[0] == count


def test_the_network_sees_unit_variance_and_the_nearest_trained_index():
    model = NoisyClassifier.make({"net": MLP, "timesteps": 500}, LABELLED)
    model.net = Told(torch.zeros(3, 8), torch.float32)
    levels = (1 / schedules.cosine(500) - 1).sqrt()
    sigma = levels[[0, 250, 499]] * torch.tensor([0.1, 1.0001, 0.7], dtype=torch.float64)
    x = torch.ones(3, 2, dtype=torch.float64)
    assert model.class_logits(x, sigma).dtype == torch.float64
    seen, level, cond = model.net.asked
    assert torch.allclose(seen, (1 / (1 + sigma**2).sqrt())[:, None].float().expand(3, 2))
    assert level.dtype == torch.float32 and not cond
    assert level[:2].tolist() == [0.0, 500.0] and 990 < level[2] <= 998
    model.class_logits(x)  # clean
    assert torch.equal(model.net.asked[0], x.float()) and not model.net.asked[1].any()


def posterior(x, sigma):
    """p(component | x) of eight Gaussians on a circle with noise."""
    angle = torch.arange(8) * torch.pi / 4
    scale = (0.5 + 0.125**2) ** 0.5
    centres, variance = torch.stack([angle.cos(), angle.sin()], 1) / scale, (0.125 / scale) ** 2 + sigma**2
    return (-torch.cdist(x, centres).square() / (2 * variance)).log_softmax(1)


def test_a_short_training_learns_bayes_rule_at_every_level():
    torch.manual_seed(0)
    model = NoisyClassifier.make({"net": MLP}, LABELLED)
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
    for step in range(250):
        optimiser.param_groups[0]["lr"] = 5e-3 * (1 - step / 250)
        rng = Rng.batch("bayes", step, total=256)
        x, label = draw("8-gaussians", rng.at("data"))
        optimiser.zero_grad()
        losses = model({"x": x.float(), "label": label}, Turn("main", step, 250, rng))
        losses["loss"].backward()
        optimiser.step()
    model.eval()
    clean, _ = draw("8-gaussians", Rng.batch("test", total=1000))
    noise = Rng.batch("noise", total=1000).normal((1000, 2))
    for sigma in (0.05, 0.5, 2.0):
        x = clean.float() + sigma * noise
        exact = posterior(x, sigma)
        with torch.no_grad():
            told, wrong = (model.class_logits(x, torch.tensor(s)).log_softmax(1) for s in (sigma, 20.0))
        off, control = (float(F.kl_div(made, exact, log_target=True, reduction="batchmean")) for made in (told, wrong))
        assert off < 0.03 < 0.15 < control, (sigma, off, control)
    assert losses["accuracy"] > 0.3


def test_its_gradient_is_that_of_its_log_probability():
    torch.manual_seed(1)
    model = NoisyClassifier.make({"net": MLP}, LABELLED).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    x, label, sigma, h = torch.randn(5, 2).double(), torch.arange(5), torch.tensor(0.7), 1e-5
    with torch.no_grad():
        made = log_slope(model, x, sigma, label)
        for axis in range(2):
            step = torch.zeros(2).double()
            step[axis] = h
            up, down = (model.class_logits(x + s, sigma).log_softmax(1)[range(5), label] for s in (step, -step))
            assert torch.allclose(made[:, axis], (up - down) / (2 * h), atol=1e-6)
    assert made.abs().max() > 0.1


def test_it_classifies_and_draws_nothing():
    model = NoisyClassifier.make({"net": MLP}, LABELLED)
    assert isinstance(model, Classifier) and not isinstance(model, Denoiser)


def test_data_that_it_cannot_classify_are_refused():
    with pytest.raises(GencliError, match="data with class labels"):
        NoisyClassifier.make({"net": MLP}, POINTS)
    with pytest.raises(GencliError, match=r"whole numbers \(codes of 16 values\)"):
        NoisyClassifier.make({"net": MLP}, Spec(Field("codes", (4,), vocab=16), LABELLED.cond))
    with pytest.raises(GencliError, match="role denoise, needed is classify"):
        NoisyClassifier.make({"net": "unet"}, SPEC)


def test_a_run_of_it_says_what_it_is_for_instead_of_samples():
    run = Run(NoisyClassifier.make({"net": MLP}, LABELLED), [], LABELLED, LABELLED, {"name": "judge"})
    with pytest.raises(GencliError, match="`judge` cannot be sampled: NoisyClassifier tells classes") as caught:
        run.default_sampler()
    assert "--classifier judge" in caught.value.hint
