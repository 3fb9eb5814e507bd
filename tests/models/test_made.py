"""MADE: sums to one, mixtures over masks and orders, stepping, training one mask at a time."""

import itertools
import math

import pytest
import torch
from autoregressive_laws import GRIDS, LABEL, largest_gap, later_tokens_change_nothing, lively

from gencli.core import Field, NextToken, Rng, Spec, Turn
from gencli.errors import GencliError
from gencli.models.autoregressive.made import Made

NET = {"name": "made", "hidden": [20, 16]}
BINARY = Field("image", (1, 3, 3), vocab=2)
EVERY = torch.tensor(list(itertools.product((0, 1), repeat=9))).view(-1, 1, 3, 3)


def tiny(field, cond=None, **settings):
    return lively(Made, field, {**NET, **settings.pop("net", {})}, cond, **settings)


def log_prob(model, x):
    return model.log_prob(x, Rng.batch(0, total=len(x)))


def turn(step, n):
    return Turn("main", step, 10, Rng.batch(0, total=n))


@pytest.mark.parametrize("settings", [{}, {"order": "random"}, {"orders": 3}, {"net": {"masks": 4}}])
def test_probabilities_of_all_512_binary_images_sum_to_one(settings):
    log = log_prob(tiny(BINARY, **settings), EVERY)
    assert log.exp().sum().item() == pytest.approx(1, abs=1e-10)
    assert log.max() - log.min() > 1


@pytest.mark.parametrize("settings", [{"net": {"masks": 3}}, {"orders": 3}, {"orders": 2, "net": {"masks": 2}}])
def test_averaging_over_masks_and_orders_is_a_mixture_of_densities(settings):
    model = tiny(BINARY, **settings)
    parts = torch.stack([model.net.log_prob(EVERY, kind).exp() for kind in range(model.net.kinds)])
    torch.testing.assert_close(parts.sum(1), torch.ones(len(parts)).double())
    assert float((parts[0] - parts[1]).detach().abs().max()) > 1e-3, "they differ"
    torch.testing.assert_close(log_prob(model, EVERY).exp(), parts.mean(0))


@pytest.mark.parametrize("masks", [1, 3])
def test_the_chain_of_its_logits_is_the_mixture_over_the_masks(masks):
    model = tiny(BINARY, order="random", net={"masks": masks})
    tokens = EVERY.flatten(1)[:, model.order]
    chain = model.logits(tokens).log_softmax(-1).gather(-1, tokens[..., None]).sum((1, 2))
    torch.testing.assert_close(chain, log_prob(model, EVERY), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("field", [*GRIDS, Field("tokens", (7,), vocab=3)], ids=lambda f: f"{f.kind}{f.shape}")
@pytest.mark.parametrize("settings", [{}, {"order": "random", "net": {"masks": 3, "direct": False}}])
def test_steps_equal_teacher_forcing_and_later_tokens_change_nothing(field, settings):
    model = tiny(field, **{key: dict(v) if isinstance(v, dict) else v for key, v in settings.items()})
    assert largest_gap(model, model) < 1e-10
    assert later_tokens_change_nothing(model)
    assert sorted(model.order.tolist()) == list(range(field.size)) and isinstance(model, NextToken)


def test_the_raster_order_is_row_column_channel():
    assert tiny(Field("image", (3, 1, 2), vocab=4)).order.tolist() == [0, 2, 4, 1, 3, 5]


def test_training_takes_one_set_of_masks_after_the_other_and_evaluation_all():
    model = tiny(BINARY, orders=2, net={"masks": 2})
    x = EVERY[::60]
    alone = [-model.net.log_prob(x, kind) for kind in range(4)]
    model.train()
    for step in range(6):
        torch.testing.assert_close(model({"x": x}, turn(step, len(x)))["each"], alone[step % 4])
    losses = model.eval()({"x": x}, turn(0, len(x)))
    torch.testing.assert_close(losses["each"], -log_prob(model, x))
    torch.testing.assert_close(losses["bits_per_dim"], losses["loss"].detach() / 9 / math.log(2))


def test_every_parameter_gets_a_gradient():
    model = tiny(Field("codes", (3, 3), vocab=6)).train()
    model({"x": torch.randint(6, (8, 3, 3))}, turn(0, 8))["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_zeros_and_ones_of_the_binarise_codec_are_two_values():
    model = tiny(Field("image", (1, 3, 3), vocab=2, range=(0.0, 1.0)))
    assert model.spec.x.range is None and model.vocab == 2
    torch.testing.assert_close(log_prob(model, EVERY.float()), log_prob(model, EVERY))


def test_it_is_unconditional_and_refuses_other_data_and_other_networks():
    assert tiny(BINARY, cond=LABEL).spec.cond == {}
    with pytest.raises(GencliError, match="made models whole numbers"):
        tiny(Field("image", (1, 3, 3), vocab=256, range=(-1.0, 1.0)))
    with pytest.raises(GencliError, match="pixelcnn has its own"):
        Made.make({"net": "pixelcnn"}, Spec(BINARY))
