"""Classifier guidance against closed forms: a Gaussian prior and a classifier that is a Gaussian likelihood."""

import pytest
import torch
from denoisers import Exact

from gencli.core import Field, Rng, Spec
from gencli.errors import GencliError
from gencli.guidance._base import Guidance
from gencli.guidance.classifier import ClassifierGuidance
from gencli.samplers.ancestral import Ancestral
from gencli.samplers.ddim import Ddim

PRIOR, WIDTH, WANTED = 0.8, 0.6, 0.7  # x_0 ~ N(0, 0.8²); p(y = 1 | x_0) = exp(−(x_0 − 0.7)² / (2 · 0.6²))
LINE = Spec(Field("points", (1,)), {"label": Field("label", (), vocab=2)})


class Likelihood:
    """p(y = 1 | x) of noisy x: the likelihood averaged over what x_0 may be."""

    def class_logits(self, x, sigma=None):
        left = PRIOR**2 * sigma**2 / (PRIOR**2 + sigma**2)  # of x_0 given x
        mean = x * PRIOR**2 / (PRIOR**2 + sigma**2)
        wide = WIDTH**2 + left
        log_p = 0.5 * torch.log(WIDTH**2 / wide) - (mean - WANTED) ** 2 / (2 * wide)
        return torch.cat([torch.log(-torch.expm1(log_p)), log_p], dim=1)


class Labelled(Exact):
    """The exact denoiser of the prior; it takes no label."""

    spec = Spec(LINE.x)


def drawn(sampler, strength, count, label=1, seed=0):
    guidance = Guidance(classifier=Likelihood(), strength=strength)
    cond = {"label": torch.full((count,), label)}
    with torch.no_grad():
        *_, last = sampler.frames(Labelled(std=PRIOR), LINE, count, Rng.batch(seed, total=count), cond, guidance)
    return last.x


def test_the_guided_estimate_is_the_exact_posterior_mean():
    x = torch.linspace(-3, 3, 13, dtype=torch.float64)[:, None]
    guided = ClassifierGuidance.make()(Labelled(std=PRIOR).denoise, Likelihood(), torch.ones(13, dtype=torch.long))
    for sigma in (0.05, 0.5, 2.0, 30.0):
        s = torch.tensor(sigma, dtype=torch.float64)
        precision = 1 / PRIOR**2 + 1 / WIDTH**2 + 1 / s**2
        assert torch.allclose(guided(x, s), (WANTED / WIDTH**2 + x / s**2) / precision, rtol=1e-9)


@pytest.mark.parametrize(
    "sampler",
    [Ancestral.make({"steps": 500, "clip": False}), Ddim.make({"steps": 250, "clip": False})],
    ids=["ancestral", "ddim"],
)
def test_with_scale_1_samples_have_the_posteriors_mean_and_variance(sampler):
    precision = 1 / PRIOR**2 + 1 / WIDTH**2
    mean, std, count = WANTED / WIDTH**2 / precision, precision**-0.5, 8000
    x = drawn(sampler, 1.0, count)
    assert abs(float(x.mean()) - mean) < 4 * std / count**0.5 + 0.005
    assert abs(float(x.std()) / std - 1) < 0.03
    plain = drawn(sampler, 0.0, count)
    assert abs(float(plain.mean())) < 0.03 and float(plain.std()) / std > 1.5, "what guidance has to do"


@pytest.mark.parametrize(
    "sampler", [Ancestral.make({"steps": 10}), Ddim.make({"steps": 10})], ids=["ancestral", "ddim"]
)
def test_scale_0_is_the_model_alone_bit_for_bit(sampler):
    with torch.no_grad():
        *_, alone = sampler.frames(Labelled(std=PRIOR), LINE, 50, Rng.batch(0, total=50), {})
    assert torch.equal(drawn(sampler, 0.0, 50), alone.x) and not torch.equal(drawn(sampler, 0.1, 50), alone.x)


def test_more_guidance_gives_more_of_the_class_and_less_variety():
    sampler = Ancestral.make({"steps": 50})
    made = [drawn(sampler, strength, 4000) for strength in (0.0, 1.0, 4.0)]
    accuracy = [float((Likelihood().class_logits(x, torch.zeros(())).argmax(1) == 1).float().mean()) for x in made]
    assert accuracy[0] < accuracy[1] <= accuracy[2] and accuracy[2] > 0.99
    spread = [float(x.std()) for x in made]
    assert spread[0] > 1.3 * spread[1] > 1.69 * spread[2]


def test_a_class_is_needed_to_climb_towards():
    guidance = Guidance(classifier=Likelihood())
    with pytest.raises(GencliError, match="no class was asked for"):
        next(Ddim.make({"steps": 2}).frames(Labelled(), LINE, 2, Rng.batch(0, total=2), {}, guidance))
