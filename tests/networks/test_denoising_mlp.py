"""The network for points: its equation, and levels of any unit told apart."""

import pytest
import torch
from diffused import randomised
from torch.nn import functional as F

from gencli.core import Field
from gencli.errors import GencliError
from gencli.networks.denoising_mlp import DenoisingMlp, features

POINTS, LABEL = Field("points", (2,)), Field("label", (), vocab=8)
TINY = {"width": 16, "layers": 2}


def nearest(made):
    """The least distance between two rows."""
    apart = torch.cdist(made, made, compute_mode="donot_use_mm_for_euclid_dist")
    return float((apart + 99 * torch.eye(len(made))).min())


@pytest.mark.parametrize(
    ("levels", "bar"),
    [
        (torch.arange(1000.0), 0.5),  # an index
        (torch.linspace(0, 1, 100), 0.2),  # a time
        (torch.linspace(-1.6, 1.1, 100), 0.4),  # ¼ log σ
        (torch.linspace(-6, 4, 100), 0.5),  # log(σ / 2)
        (torch.logspace(-2, 1.7, 100), 0.04),  # σ
    ],
    ids=["index", "time", "log/4", "log/2", "sigma"],
)
def test_levels_of_any_unit_are_told_apart_which_neither_kind_of_wave_does_alone(levels, bar):
    made = features(levels)
    assert made.shape == (len(levels), 65) and made.isfinite().all() and made.abs().max() < 2
    assert nearest(made) > bar > min(nearest(made[:, :32]), nearest(made[:, 32:]))


def test_output_is_the_documented_equation():
    net = randomised(DenoisingMlp.make(TINY, POINTS, 4, {"label": LABEL}))
    w = net.state_dict()

    def linear(name, h):
        return h @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    x, level, label = torch.randn(5, 2), torch.tensor([0.0, 0.3, -1.5, 17.0, 999.0]), torch.tensor([0, 3, 7, 8, 1])
    c = F.silu(linear("level.2", F.silu(linear("level.0", features(level)))) + w["label.weight"][label])
    modulation, h = linear("modulation", c), linear("inputs", x)
    for i in range(2):
        a, b = modulation[:, 16 * i : 16 * (i + 1)], modulation[:, 32 + 16 * i : 32 + 16 * (i + 1)]
        h = h + linear(f"down.{i}", F.silu((1 + a) * linear(f"up.{i}", h) + b))
    expected = linear("last", F.silu(h))
    assert expected.std() > 0.1
    assert (net(x, level, label=label) - expected).abs().max() < 1e-5


def test_every_parameter_moves_the_output_which_starts_at_zero():
    torch.manual_seed(0)
    net = DenoisingMlp.make(TINY, POINTS, 2, {"label": LABEL})
    inputs = torch.randn(9, 2), torch.linspace(-1, 1, 9)
    assert not net(*inputs, label=torch.arange(9)).any()
    randomised(net)(*inputs, label=torch.arange(9)).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in net.parameters())


def test_any_flat_data_keep_their_shape_and_items_are_independent():
    net = randomised(DenoisingMlp.make(TINY, Field("image", (3, 4, 4)), 6, {}))
    x, level = torch.randn(5, 3, 4, 4), torch.linspace(0, 1, 5)
    whole = net(x, level)
    assert whole.shape == (5, 6, 4, 4)
    assert (torch.cat([net(x[i : i + 1], level[i : i + 1]) for i in range(5)]) - whole).abs().max() < 1e-5


def test_residuals_are_added_after_their_block():
    net = randomised(DenoisingMlp.make(TINY, POINTS, 2, {}))
    x, level, more = torch.randn(3, 2), torch.zeros(3), torch.randn(3, 16)
    assert torch.equal(net(x, level, residuals=[torch.zeros(3, 16)]), net(x, level))
    last = net(x, level, residuals=[torch.zeros(3, 16), more])
    assert not torch.allclose(last, net(x, level), atol=1e-3)
    assert not torch.allclose(last, net(x, level, residuals=[more]), atol=1e-3)


def test_a_condition_that_is_no_label_is_refused_by_name():
    with pytest.raises(GencliError, match=r"denoising-mlp.*'text'"):
        DenoisingMlp.make(TINY, POINTS, 2, {"text": Field("tokens", (16,), vocab=100)})
