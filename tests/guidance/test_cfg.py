"""Classifier-free guidance: its conventions, and what it costs."""

import pytest
import torch

from gencli.core import Field, Rng, Spec, Turn
from gencli.guidance.cfg import Cfg, guided
from gencli.models.diffusion.ddpm import Ddpm

LABEL = Field("label", (), vocab=10)
SPEC = Spec(Field("image", (1, 4, 4), vocab=256, range=(-1.0, 1.0)), {"label": LABEL})
NET = {"name": "unet", "width": 8, "mults": (1, 2), "blocks": 1, "attention": (2,)}


@pytest.fixture
def model():
    made = Ddpm.make({"net": NET}, SPEC).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in made.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * (1.0 if weight.ndim == 1 else 0.3))
    return made


@pytest.fixture
def asked():
    x = torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x, torch.tensor(1.5, dtype=torch.float64), {"label": torch.arange(6)}


def eps(x, sigma, denoised):
    return (x - denoised) / sigma


def test_scale_1_is_conditional_and_scale_0_unconditional(model, asked):
    x, sigma, cond = asked
    with_, without = model.denoise(x, sigma, **cond), model.denoise(x, sigma)
    assert (with_ - without).abs().max() > 1e-2
    assert torch.equal(guided(model.denoise, cond, 1.0)(x, sigma), with_)
    assert torch.equal(guided(model.denoise, cond, 0.0)(x, sigma), without)


def test_both_conventions_are_the_papers_with_s_equal_to_1_plus_w(model, asked):
    x, sigma, cond = asked
    with_, without = eps(x, sigma, model.denoise(x, sigma, **cond)), eps(x, sigma, model.denoise(x, sigma))
    for w in (-1.0, -0.5, 0.0, 0.3, 2.0):
        ours = eps(x, sigma, guided(model.denoise, cond, 1 + w)(x, sigma))
        assert (ours - ((1 + w) * with_ - w * without)).abs().max() < 1e-6
        assert (ours - (without + (1 + w) * (with_ - without))).abs().max() < 1e-6


def test_the_result_is_affine_in_the_scale(model, asked):
    x, sigma, cond = asked
    at = [guided(model.denoise, cond, s)(x, sigma) for s in (0.5, 1.5, 2.5, 3.5)]
    assert ((at[1] - at[0]) - (at[2] - at[1])).abs().max() < 1e-6
    assert ((at[2] - at[1]) - (at[3] - at[2])).abs().max() < 1e-6


def test_one_pass_over_a_doubled_batch_equals_two_passes(model, asked):
    x, sigma, cond = asked
    null = torch.full((6,), 10)
    both = model.denoise(torch.cat([x, x]), sigma, label=torch.cat([cond["label"], null]))
    with_, without = both.chunk(2)
    assert (guided(model.denoise, cond, 2.5)(x, sigma) - (without + 2.5 * (with_ - without))).abs().max() < 1e-5


def test_scales_1_and_0_and_no_condition_cost_one_call(asked):
    x, sigma, cond = asked
    calls = []

    def denoise(x, sigma, **cond):
        calls.append(sorted(cond))
        return x

    for scale, given, expected in (
        (1.0, cond, [["label"]]),
        (0.0, cond, [[]]),
        (2.0, cond, [[], ["label"]]),
        (2.0, {}, [[]]),
    ):
        calls.clear()
        guided(denoise, given, scale)(x, sigma)
        assert calls == expected


def test_the_component_holds_the_scale(model, asked):
    x, sigma, cond = asked
    ours = Cfg.make({"scale": 3.0})(model.denoise, cond)(x, sigma)
    assert torch.equal(ours, guided(model.denoise, cond, 3.0)(x, sigma))


def test_training_replaces_labels_by_the_null_in_the_asked_share_of_10000_rows(model):
    seen = []

    class Watch(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x, level, label):
            seen.append(label)
            return torch.zeros_like(x)

    model.net = Watch()
    batch = {"x": torch.zeros(10_000, 1, 4, 4), "label": torch.arange(10_000) % 10}
    model.train()(batch, Turn("main", 0, 1, Rng.batch(0, total=10_000)))
    assert abs(float((seen[0] == 10).float().mean()) - 0.1) < 0.01
