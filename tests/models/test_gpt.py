"""GPT: an exact density, a class, caches, windows that slide over larger grids."""

import itertools

import pytest
import torch
from autoregressive_laws import GRIDS, LABEL, largest_gap, later_tokens_change_nothing, lively

from gencli import recipe
from gencli.config import choose
from gencli.core import Field, NextToken, Rng, Spec, Turn
from gencli.errors import GencliError
from gencli.models.autoregressive.gpt import GPT

NET = {"name": "transformer", "width": 16, "depth": 2, "heads": 2}
CODES = Field("codes", (5, 6), vocab=4)
RGB = Field("image", (3, 4, 5), vocab=4)
KERNELS = {"name": "gated-pixelcnn", "width": 6, "layers": 2, "kernel": 3, "first": 5, "head": 8}


def tiny(field=CODES, cond=LABEL, net=NET, **settings):
    return lively(GPT, field, net, cond, **settings)


def turn(n, **rows):
    return Turn("main", 0, 1, Rng.batch(0, total=n, **rows))


def test_the_parameters_are_those_of_the_released_code():
    """Less the places of the 256 codes that condition it there, a table of coordinates; and with our vector for the start."""
    table = recipe.load("gpt-faceshq256")
    with torch.device("meta"):
        model = choose("models", table["model"]).build(Spec(Field("codes", (16, 16), vocab=1024)))
    assert sum(p.numel() for p in model.parameters()) == 304_932_864 - 256 * 1024 + 1024


def items(field, n=6):
    return torch.randint(field.vocab, (n, *field.shape), generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("window", [0, 2])
def test_probabilities_of_all_512_binary_images_sum_to_one_for_each_class(window):
    model = tiny(Field("image", (1, 3, 3), vocab=2), window=window)
    every = torch.tensor(list(itertools.product((0, 1), repeat=9))).view(-1, 1, 3, 3)
    for label in (0, 3):  # the last is the null label
        log = model.log_prob(every, Rng.batch(0, total=512), label=torch.full((512,), label))
        assert log.exp().sum().item() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("field", GRIDS, ids=lambda f: f"{f.kind}{f.shape}")
@pytest.mark.parametrize("net", [NET, KERNELS], ids=lambda net: net["name"])
def test_steps_equal_teacher_forcing_and_leave_their_state_alone(field, net):
    model = tiny(field, net=net)
    assert isinstance(model, NextToken)
    assert largest_gap(model, model, label=torch.tensor([0, 1, 3])) < 1e-10
    assert later_tokens_change_nothing(model, label=torch.tensor([0, 2]))


def test_the_loss_is_the_sum_of_the_tokens_cross_entropies():
    model, x, label = tiny(), items(CODES), torch.arange(6) % 3
    losses = model({"x": x, "label": label}, turn(6))
    p = model.logits(x.flatten(1), label=label).softmax(-1).gather(-1, x.flatten(1)[..., None])
    torch.testing.assert_close(losses["each"], -p.log().sum((1, 2)))
    torch.testing.assert_close(losses["bits_per_dim"], losses["each"].mean() / 30 / torch.tensor(2.0).double().log())


def test_the_class_matters_and_an_absent_one_is_the_null_class():
    model, x = tiny(), items(CODES, 2).flatten(1)
    assert torch.equal(model.logits(x), model.logits(x, label=torch.tensor([3, 3])))
    a, b = (model.logits(x, label=torch.tensor([k, k])) for k in (0, 1))
    assert ((a - b).abs().amax(-1) > 1e-9).all()


def test_every_parameter_gets_a_gradient_and_labels_are_dropped_in_training():
    model = tiny(label_dropout=0.5)
    batch = {"x": items(CODES, 60), "label": torch.arange(60) % 3}
    kept, mixed = model(batch, turn(60))["each"], model.train()(batch, turn(60))
    null = -model.log_prob(batch["x"], Rng.batch(0, total=60))
    dropped = (mixed["each"] - kept).abs() > 1e-9
    torch.testing.assert_close(mixed["each"][dropped], null[dropped])
    assert 0.3 < dropped.double().mean() < 0.7
    mixed["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


# --------------------------------------------------------------------------------------------------------------------- windows


@pytest.mark.parametrize("field", [CODES, RGB], ids=lambda f: f.kind)
@pytest.mark.parametrize("net", [NET, KERNELS], ids=lambda net: net["name"])
def test_a_token_is_told_from_the_square_around_it(field, net):
    model, side = tiny(field, net=net, window=3), 3
    inner = lively(GPT, Field(field.kind, (*field.shape[:-2], side, side), vocab=4), net, LABEL)
    inner.load_state_dict(model.state_dict())
    x, label = items(field, 2), torch.tensor([0, 2])
    made = model.logits(x.flatten(1)[:, model.order], label=label)
    high, wide = field.shape[-2:]
    channels = field.size // (high * wide)
    for row, column, channel in ((0, 0, 0), (2, 2, channels - 1), (high - 1, wide - 1, 0), (1, 4, 0)):
        top, left = min(max(row - 1, 0), high - 3), min(max(column - 1, 0), wide - 3)
        square = x[..., top : top + 3, left : left + 3]
        want = inner.logits(square.flatten(1)[:, inner.order], label=label)
        at, within = (row * wide + column), (row - top) * 3 + column - left
        torch.testing.assert_close(made[:, at * channels + channel], want[:, within * channels + channel])


@pytest.mark.parametrize("field", [CODES, RGB], ids=lambda f: f.kind)
def test_sliding_steps_equal_teacher_forcing(field):
    model = tiny(field, window=3)
    assert largest_gap(model, model, label=torch.tensor([0, 1, 3])) < 1e-10
    assert later_tokens_change_nothing(model, label=torch.tensor([0, 2]))


def test_a_window_of_the_whole_is_no_window():
    square = Field("codes", (4, 4), vocab=4)
    one, other = tiny(square, window=4), tiny(square)
    x = items(square)
    torch.testing.assert_close(one.logits(x.flatten(1)), other.logits(x.flatten(1)))
    torch.testing.assert_close(
        one.log_prob(x, Rng.batch(0, total=6)), other.log_prob(x, Rng.batch(0, total=6)), rtol=0, atol=1e-10
    )


def test_training_sees_squares_at_all_places_whatever_the_micro_batches():
    field = Field("codes", (5, 6), vocab=30)
    model = lively(GPT, field, NET, window=2).train()
    x = torch.arange(30).view(1, 5, 6).expand(200, 5, 6)
    seen = model._crop(x, turn(200).rng)
    assert seen.shape == (200, 2, 2) and set(seen[:, 0, 0].tolist()) == {r * 6 + c for r in range(4) for c in range(5)}
    assert torch.equal(seen - seen[:, :1, :1], torch.tensor([[0, 1], [6, 7]]).expand(200, 2, 2))
    whole = model({"x": x[:8]}, turn(8))
    parts = [model({"x": x[rows.start : rows.stop]}, turn(8, rows=rows))["each"] for rows in (range(0, 3), range(3, 8))]
    torch.testing.assert_close(whole["each"], torch.cat(parts))
    bits = whole["each"].mean() / 4 / torch.tensor(2.0).double().log()
    torch.testing.assert_close(whole["bits_per_dim"], bits)
    rgb = lively(GPT, RGB, NET, window=2)
    image = torch.arange(60).view(1, 3, 4, 5)
    cut = rgb._crop(image, turn(1).rng)
    corner = int(cut[0, 0, 0, 0])
    assert torch.equal(cut[0], image[0, :, corner // 5 : corner // 5 + 2, corner % 5 : corner % 5 + 2])


def test_attention_is_shown_on_request_and_refused_by_other_networks():
    model, x = tiny(), items(CODES, 2)
    maps = model.attention(x, label=torch.tensor([0, 1]))
    assert maps.shape == (2, 2, 2, 30, 30)
    assert not torch.allclose(maps, model.attention(x, label=torch.tensor([1, 1])))
    with pytest.raises(GencliError, match="gated-pixelcnn cannot show its attention"):
        tiny(net=KERNELS).attention(x)


def test_what_does_not_fit_is_refused_by_name():
    with pytest.raises(GencliError, match="gpt models whole numbers, got latent"):
        tiny(Field("latent", (4, 4)))
    with pytest.raises(GencliError, match="a window of 6 does not fit"):
        tiny(window=6)
    with pytest.raises(GencliError, match="a window of 4 is read in raster order"):
        tiny(net={**NET, "mask": "local-2d", "block": [2, 2], "memory": [1, 1]}, window=4)
