"""Autoguidance against closed forms, and what it costs."""

import torch
from denoisers import Exact

from gencli.core import Field, Rng, Spec
from gencli.guidance._base import Guidance
from gencli.guidance._compose import composed
from gencli.guidance.autoguidance import Autoguidance, away_from
from gencli.samplers.ddim import Ddim

LINE = Spec(Field("points", (1,)))
LABELLED = Spec(LINE.x, {"label": Field("label", (), vocab=3)})
GOOD, BAD = 0.6, 0.9  # standard deviations: the guide is too wide
X = torch.linspace(-4, 4, 17, dtype=torch.float64)[:, None]


class Counting(Exact):
    """An exact denoiser that says what it was asked with; its label shifts its mean."""

    def __init__(self, std, spec=LINE):
        super().__init__(std=std)
        self.spec, self.asked = spec, []

    def denoise(self, x, sigma, label=None):
        self.asked.append(label)
        shift = 0.0 if label is None else 0.1 * label[:, None].to(x)
        return super().denoise(x, sigma) + shift


def level(sigma):
    return torch.tensor(sigma, dtype=torch.float64)


def test_the_score_is_that_of_the_densities_power_ratio():
    good, bad = Exact(std=GOOD), Exact(std=BAD)
    for scale in (0.5, 2.0, 3.5):
        guided = Autoguidance.make({"scale": scale})(good.denoise, bad.denoise, {})
        for sigma in (0.1, 1.0, 20.0):
            s = level(sigma)
            score = (guided(X, s) - X) / s**2
            wanted = -scale * X / (GOOD**2 + s**2) + (scale - 1) * X / (BAD**2 + s**2)  # ∇ log p_good^s / p_bad^(s−1)
            assert torch.allclose(score, wanted, rtol=1e-9, atol=1e-12)


def test_scale_1_is_the_model_and_scale_0_the_guide_each_by_one_call():
    for scale, calls in ((1.0, (1, 0)), (0.0, (0, 1)), (2.0, (1, 1))):
        good, bad = Counting(GOOD), Counting(BAD)
        made = away_from(good.denoise, bad.denoise, {}, scale)(X, level(1.0))
        assert (len(good.asked), len(bad.asked)) == calls
        alone = {1.0: good, 0.0: bad}.get(scale)
        assert alone is None or torch.equal(made, alone.denoise(X, level(1.0)))
        assert Guidance(scale, guide=bad).calls({}) == sum(calls), "what is announced is what it costs"


def test_samples_gather_where_the_guide_is_worse():
    sampler, n = Ddim.make({"steps": 100, "clip": False}), 4000

    def spread(guidance):
        rng = Rng.batch(0, total=n)
        *_, last = sampler.frames(Counting(GOOD), LINE, n, rng, {}, guidance)
        return float(last.x.std())

    plain, guided = spread(1.0), spread(Guidance(2.0, guide=Counting(BAD)))
    assert abs(plain - GOOD) < 0.03 and guided < 0.85 * GOOD
    assert spread(Guidance(1.0, guide=Counting(BAD))) == plain


def test_the_guide_sees_the_conditions_that_it_takes_and_no_others():
    label = torch.arange(17) % 3
    for spec, seen in ((LABELLED, True), (LINE, False)):
        good, bad = Counting(GOOD, LABELLED), Counting(BAD, spec)
        made = composed(good.denoise, {"label": label}, Guidance(2.0, guide=bad), None)(X, level(1.0))
        assert [asked is not None for asked in (*good.asked, *bad.asked)] == [True, seen]
        worse = bad.denoise(X, level(1.0), label if seen else None)
        assert torch.allclose(made, worse + 2 * (good.denoise(X, level(1.0), label) - worse))
