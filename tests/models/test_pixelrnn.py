"""PixelRNN: the passport of the catalogue, its two networks' fields of view, caches, likelihood."""

import itertools

import pytest
import torch
from autoregressive_laws import GRIDS, LABEL, dependencies, largest_gap, later_tokens_change_nothing, lively

from gencli.core import Field, NextToken, Rng, Turn
from gencli.errors import GencliError
from gencli.models.autoregressive.pixelrnn import PixelRNN
from gencli.recipe import load
from gencli.training.session import resolve

ROW = {"name": "row-lstm", "width": 6, "layers": 2, "first": 3, "head": 8}
DIAGONAL = {"name": "diagonal-bilstm", "width": 6, "layers": 2, "first": 3, "head": 8}
both = pytest.mark.parametrize("net", [ROW, DIAGONAL], ids=lambda net: net["name"])
grids = pytest.mark.parametrize("field", GRIDS, ids=lambda f: f"{f.kind}{f.shape}")


@both
def test_probabilities_of_all_512_binary_images_sum_to_one(net):
    model = lively(PixelRNN, Field("image", (1, 3, 3), vocab=2), net, dtype=torch.float32)
    every = torch.tensor(list(itertools.product((0, 1), repeat=9))).view(-1, 1, 3, 3)
    log = model.log_prob(every, Rng.batch(0, total=512))
    assert log.exp().sum().item() == pytest.approx(1, abs=1e-5)
    assert log.max() - log.min() > 1  # and they are not all equal


@pytest.mark.parametrize("shape", [(1, 4, 6), (3, 2, 4)])
@pytest.mark.parametrize("layers", [1, 2])
def test_the_diagonal_network_sees_all_earlier_tokens_and_no_other(shape, layers):
    found = dependencies(lively(PixelRNN, Field("image", shape, vocab=3), {**DIAGONAL, "layers": layers}).net, draws=2)
    assert torch.equal(found, torch.ones_like(found).tril(-1))


def seen_by_rows(high, wide, first, kernel, layers):
    """Which pixels a pixel sees through a Row LSTM of one channel, by carrying sets of pixels through the layers."""
    far, near = first // 2, kernel // 2
    inside = set(itertools.product(range(high), range(wide)))

    def window(r, s):
        above = {(r - up, s + d) for up in range(1, far + 1) for d in range(-far, far + 1)}
        return (above | {(r, s - d) for d in range(1, far + 1)}) & inside

    maps = {place: window(*place) for place in inside}
    for _ in range(layers):
        states = {}
        for r, s in sorted(inside):
            inputs = [maps.get((r, s - d), set()) for d in range(near + 1)]
            before = [states.get((r - 1, s + d), set()) for d in range(-near, near + 1)]
            states[r, s] = set().union(*inputs, *before)
        maps = {place: maps[place] | states[place] for place in inside}
    return maps


@pytest.mark.parametrize(("first", "kernel"), [(3, 3), (7, 3), (3, 5)])
def test_the_row_network_sees_exactly_the_upward_triangle(first, kernel):
    high, wide = 5, 9
    net = {**ROW, "layers": 1, "first": first, "kernel": kernel}
    found = dependencies(lively(PixelRNN, Field("image", (1, high, wide), vocab=3), net).net)
    expected = seen_by_rows(high, wide, first, kernel, 1)
    for (r, s), seen in expected.items():
        mine = {divmod(j, wide) for j in found[r * wide + s].nonzero().flatten().tolist()}
        assert mine == seen, (r, s)
        assert all((up < r and place - s <= (r - up - 1) * (kernel // 2) + first // 2) or up == r for up, place in mine)
    assert not found[3 * wide + 2, 2 * wide + 8]  # a triangle, not all that comes before


def test_the_row_network_keeps_the_order_of_colours():
    found = dependencies(lively(PixelRNN, Field("image", (3, 3, 3), vocab=3), ROW).net)
    assert not found.triu().any()
    assert all(found[i, j] for p in range(9) for i in range(3 * p, 3 * p + 3) for j in range(3 * p, i))


@both
@grids
def test_later_tokens_change_no_earlier_logits(net, field):
    assert later_tokens_change_nothing(lively(PixelRNN, field, net))


@both
@grids
def test_cached_steps_equal_teacher_forcing_and_leave_their_state_alone(net, field):
    model = lively(PixelRNN, field, net)
    assert largest_gap(model, model) < 1e-10


@both
@grids
def test_every_parameter_gets_a_gradient_and_the_loss_is_minus_log_p(net, field):
    model = lively(PixelRNN, field, net).train()
    x = torch.randint(field.vocab, (4, *field.shape))
    losses = model({"x": x}, Turn("main", 0, 1, Rng.batch(0, total=4)))
    losses["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    torch.testing.assert_close(losses["each"], -model.log_prob(x, Rng.batch(0, total=4)))


def test_it_is_unconditional_and_takes_the_network_that_is_named():
    for net in (ROW, DIAGONAL):
        model = lively(PixelRNN, Field("codes", (2, 2), vocab=4), net, cond=LABEL)
        assert isinstance(model, NextToken) and model.spec.cond == {}
        assert model.net.public_name() == net["name"]
    with pytest.raises(GencliError, match="role"):
        PixelRNN.make({"net": {"name": "unet"}}, None)


def parameters_by_hand(config, channels, vocab, diagonal):
    """Counted from the paper's table of layers: h, 2h and 4h features; every masked weight's place is stored, once."""
    h, head, reach = config["width"], config["head"], config["first"] // 2
    first = channels * 2 * h * (reach * config["first"] + reach + (channels > 1)) + 2 * h
    up = h * 2 * h + 2 * h
    if diagonal:
        layer = 2 * (2 * h * 4 * h + 4 * h + 2 * h * 4 * h) + up
        first += channels * 4 * h  # the first block's own tokens
    else:
        k = config["kernel"]
        layer = 2 * h * 4 * h * (k // 2 + 1) + 4 * h + h * 4 * h * k + up
    return first + config["layers"] * layer + (2 * h + 1) * head + (head + 1) * channels * vocab


@pytest.mark.parametrize(
    ("recipe", "shape", "vocab"), [("pixelrnn-cifar10", (3, 32, 32), 256), ("pixelrnn-mnist", (1, 28, 28), 2)]
)
def test_the_papers_sizes(recipe, shape, vocab):
    net = resolve(load(recipe))["model"]["net"]
    with torch.device("meta"):
        model = PixelRNN.make({"net": net}, _spec(shape, vocab))
    count = sum(p.numel() for p in model.parameters())
    assert count == parameters_by_hand(net, shape[0], vocab, net["name"] == "diagonal-bilstm")
    assert (net["layers"], net["width"]) == {"pixelrnn-cifar10": (12, 128), "pixelrnn-mnist": (7, 16)}[recipe]


def _spec(shape, vocab):
    from gencli.core import Spec

    return Spec(Field("image", shape, vocab=vocab))
