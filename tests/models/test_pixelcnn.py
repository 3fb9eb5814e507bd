"""PixelCNN: the passport of the catalogue, masks, caches, likelihood."""

import itertools
import math

import pytest
import torch
from autoregressive_laws import GRIDS, LABEL, dependencies, largest_gap, later_tokens_change_nothing, lively
from torch.nn import functional as F

from gencli.core import Field, Likelihood, NextToken, Rng, Spec, Turn
from gencli.errors import GencliError
from gencli.models.autoregressive._family import AutoregressiveModel
from gencli.models.autoregressive.pixelcnn import PixelCNN

NET = {"name": "pixelcnn", "width": 6, "blocks": 2, "head": 8}


def tiny(field, **settings):
    return lively(PixelCNN, field, NET, **settings)


class Naive:
    """`start` and `next` of the base class: a full pass a token."""

    def __init__(self, model):
        self.model = model

    def start(self, n, **cond):
        return AutoregressiveModel.start(self.model, n, **cond)

    def next(self, token, state):
        return AutoregressiveModel.next(self.model, token, state)


def test_probabilities_of_all_512_binary_images_sum_to_one():
    model = tiny(Field("image", (1, 3, 3), vocab=2), dtype=torch.float32)
    every = torch.tensor(list(itertools.product((0, 1), repeat=9))).view(-1, 1, 3, 3)
    log = model.log_prob(every, Rng.batch(0, total=512))
    assert log.exp().sum().item() == pytest.approx(1, abs=1e-5)
    assert log.max() - log.min() > 1  # and they are not all equal


def test_the_blind_spot_is_exactly_ten_pixels():
    """A 7×7 mask-A layer and twelve 3×3 mask-B layers on 15×15, seen from row 9, column 7."""
    net = {"name": "pixelcnn", "width": 8, "blocks": 12, "first": 7, "kernel": 3, "head": 8}
    model = lively(PixelCNN, Field("image", (1, 15, 15), vocab=2), net)
    seen = torch.zeros(15, 15, dtype=torch.bool)
    for seed in range(4):
        x = torch.randn((1, 1, 15, 15), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        x.requires_grad_()
        made = model.net.head(model.net.features(x, x.new_zeros(1, 0)))
        (grad,) = torch.autograd.grad(made[0, 0, 9, 7], x)
        seen |= grad[0, 0] != 0
    before = torch.arange(225).view(15, 15) < 9 * 15 + 7
    assert not (seen & ~before).any()
    assert (before & ~seen).sum() == 10
    unseen = {(row, column) for row, column in (before & ~seen).nonzero().tolist()}
    assert unseen == {(9 - up, column) for up in range(1, 5) for column in range(7 + 3 + up, 15)}


def test_no_output_depends_on_its_own_or_a_later_channel_of_a_colour_image():
    """TRAPS 38: green sees red, blue sees both, at the pixel itself."""
    found = dependencies(tiny(Field("image", (3, 3, 3), vocab=3)).net)
    assert not found.triu().any()
    assert all(found[i, j] for p in range(9) for i in range(3 * p, 3 * p + 3) for j in range(3 * p, i))


@pytest.mark.parametrize("field", GRIDS, ids=lambda f: f"{f.kind}{f.shape}")
def test_later_tokens_change_no_earlier_logits(field):
    assert later_tokens_change_nothing(tiny(field))


@pytest.mark.parametrize("field", GRIDS, ids=lambda f: f"{f.kind}{f.shape}")
def test_cached_steps_equal_teacher_forcing_and_leave_their_state_alone(field):
    model = tiny(field)
    assert largest_gap(model, model) < 1e-10
    assert largest_gap(model, Naive(model)) < 1e-10


def test_its_layers_equal_masked_convolutions():
    layer = tiny(Field("image", (1, 6, 6), vocab=4)).net.blocks[0].conv
    full = torch.zeros(6, 6, 3, 3, dtype=torch.float64)
    full[:, :, :1] = layer.above.conv.weight
    full[:, :, 1, :2] = layer.left.conv.weight[:, :, 0]
    x = torch.randn(2, 6, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(layer(x), F.conv2d(x, full, layer.left.conv.bias, padding=1))


@pytest.mark.parametrize("field", GRIDS, ids=lambda f: f"{f.kind}{f.shape}")
def test_every_parameter_gets_a_gradient_and_the_loss_is_minus_log_p(field):
    model = tiny(field).train()
    x = torch.randint(field.vocab, (4, *field.shape))
    losses = model({"x": x}, Turn("main", 0, 1, Rng.batch(0, total=4)))
    losses["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    log = model.log_prob(x, Rng.batch(0, total=4))
    torch.testing.assert_close(losses["each"], -log)
    torch.testing.assert_close(losses["bits_per_dim"], -log.mean() / math.log(2) / field.size)


def test_a_uniform_model_scores_the_bits_of_its_values():
    model = tiny(Field("image", (3, 2, 2), vocab=256))
    torch.nn.init.zeros_(model.net.head[-1].conv.weight), torch.nn.init.zeros_(model.net.head[-1].conv.bias)
    losses = model({"x": torch.randint(256, (2, 3, 2, 2))}, Turn("main", 0, 1, Rng.batch(0, total=2)))
    assert losses["bits_per_dim"].item() == pytest.approx(8, abs=1e-9)


def test_the_order_is_row_column_channel():
    model = tiny(Field("image", (3, 2, 2), vocab=4))
    assert model.order.tolist() == [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]
    assert tiny(Field("codes", (2, 3), vocab=4)).order.tolist() == list(range(6))
    assert isinstance(model, NextToken) and isinstance(model, Likelihood)


def test_it_is_unconditional_whatever_the_data_hold():
    model = tiny(Field("codes", (2, 2), vocab=4), cond=LABEL)
    assert model.spec.cond == {}
    tokens = torch.randint(4, (3, 4))
    assert torch.equal(model.logits(tokens, label=torch.tensor([0, 1, 2])), model.logits(tokens))


def test_a_few_steps_learn_a_fixed_batch():
    torch.manual_seed(0)
    model = PixelCNN.make({"net": {**NET, "width": 16}}, Spec(Field("image", (1, 4, 4), vocab=4)))
    x = torch.randint(4, (4, 1, 4, 4))
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    bits = []
    for step in range(60):
        losses = model({"x": x}, Turn("main", step, 60, Rng.batch(step, total=4)))
        optimiser.zero_grad()
        losses["loss"].backward()
        optimiser.step()
        bits.append(losses["bits_per_dim"].item())
    assert bits[0] > 1.8 and bits[-1] < 0.6


@pytest.mark.parametrize(
    ("field", "said"),
    [
        (
            Field("image", (1, 4, 4), vocab=256, range=(-1.0, 1.0)),
            r"image of shape \(1, 4, 4\) with values in \[-1, 1\]",
        ),
        (Field("latent", (4, 4)), "latent of shape .* without a vocab"),
    ],
)
def test_continuous_data_are_refused_with_the_next_step(field, said):
    with pytest.raises(GencliError, match=said) as caught:
        PixelCNN.make({"net": NET}, Spec(field))
    assert "--codec RUN" in caught.value.hint and "tokens codec" in caught.value.hint
    assert "pixelcnn" in caught.value.message


def test_data_that_are_no_grid_are_refused():
    with pytest.raises(GencliError, match="got points of shape"):
        PixelCNN.make({"net": NET}, Spec(Field("points", (2,), vocab=4)))
