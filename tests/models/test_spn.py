"""Subscale pixel networks: slices, the order's causality, size and depth upscaling, caches."""

import itertools

import pytest
import torch
from autoregressive_laws import LABEL, largest_gap, later_tokens_change_nothing, lively

from gencli.core import Field, NextToken, Rng, Spec, Turn
from gencli.errors import GencliError
from gencli.models.autoregressive.spn import IMPOSSIBLE, SPN, cut, join, slots

NET = {"name": "gated-pixelcnn", "width": 6, "layers": 2, "first": 3, "kernel": 3, "head": 8, "condition_blocks": 1}
KINDS = {
    "grey": (Field("image", (1, 4, 6), vocab=4), {}),
    "colour": (Field("image", (3, 4, 4), vocab=4), {"upscale_size": True}),
    "depth": (Field("image", (2, 4, 4), vocab=8), {"low_bits": 2, "upscale_size": True}),
    "codes": (Field("codes", (4, 4), vocab=5), {"upscale_size": True}),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def tiny(kind, cond=None, **settings):
    field, own = KINDS[kind]
    return lively(SPN, field, NET, cond, **{**own, **settings})


def drawn(model, n=2):
    """Items whose planes keep to their values."""
    g = torch.Generator().manual_seed(3)
    planes = [torch.randint(v, (n, *model.spec.x.shape), generator=g) for v in model.values]
    return torch.cat([p[:, : p.shape[1] // len(planes)] if len(planes) > 1 else p for p in planes], dim=1)


@pytest.mark.parametrize("side", [1, 2, 3, 4, 6, 12])
def test_slices_are_a_bijection_for_every_scale_that_divides_the_side(side):
    x = torch.randperm(3 * 12 * 24, generator=torch.Generator().manual_seed(0)).view(1, 3, 12, 24)
    pieces = cut(x, side)
    assert pieces.shape == (1, side**2, 3, 12 // side, 24 // side) and torch.equal(join(pieces, side), x)
    for m, (i, j) in enumerate(itertools.product(range(side), repeat=2)):
        assert torch.equal(pieces[:, m], x[:, :, i::side, j::side])


@kinds
def test_the_order_is_slice_then_raster_then_channel(kind):
    model = tiny(kind)
    shape = model.spec.x.shape
    channels, high, wide = (1, *shape) if len(shape) == 2 else shape
    each = channels // len(model.values)
    places = [
        (p * each + c) * high * wide + r * wide + s
        for p in range(len(model.values))
        for i in range(2)
        for j in range(2)
        for r in range(i, high, 2)
        for s in range(j, wide, 2)
        for c in range(each)
    ]
    assert model.order.tolist() == places


@kinds
def test_later_tokens_change_no_earlier_logits(kind):
    assert later_tokens_change_nothing(tiny(kind, LABEL), label=torch.tensor([0, 2]))


@pytest.mark.parametrize("low", [0, 2])
def test_by_gradient_every_token_sees_all_slices_before_its_own_and_nothing_later(low):
    """In (slice, raster within the slice) order, through the slices that the decoder is told and the slice itself."""
    model = tiny("depth" if low else "grey")
    count, each = model.cut(drawn(model)).shape[1], len(model.stages[0].order)
    told = model.told(model.cut(drawn(model, 1))).requires_grad_()
    for stage in model.stages:
        if stage.blind:
            continue
        for m in stage.which:
            inputs = stage.before(told, torch.tensor([[m]]))["slices"]
            h = stage.net.given(1, {"slices": inputs}, stage.net.like)
            field = (stage.net.channels, stage.net.height, stage.net.breadth)
            own = torch.randn((1, *field), dtype=torch.float64).requires_grad_()
            out = stage.net.head(stage.net.features(own, h)).unflatten(1, (-1, stage.net.vocab))
            flat = (out * torch.randn(stage.net.vocab, 1, 1).double()).sum(2)[0].movedim(0, -1).flatten()
            for i in (0, each - 1):
                grads = torch.autograd.grad(flat[i], (told, own), retain_graph=True, allow_unused=True)
                seen = grads[0].abs().amax((0, 2)).flatten(1) if grads[0] is not None else torch.zeros(count, each)
                assert not seen[m:].any()
                assert all(seen[k].any() for k in range(m)), (m, i)
                mine = grads[1][0].movedim(0, -1).flatten()
                assert not mine[i:].any() and (i == 0 or mine[:i].any())


@kinds
@pytest.mark.parametrize("cond", [{}, LABEL], ids=["plain", "label"])
def test_cached_steps_equal_teacher_forcing_and_leave_their_state_alone(kind, cond):
    model = tiny(kind, cond)
    assert isinstance(model, NextToken)
    assert largest_gap(model, model, **({"label": torch.tensor([0, 1, 3])} if cond else {})) < 1e-10


def test_probabilities_of_all_256_images_of_two_bits_sum_to_one_and_depth_adds_up():
    """log p(x) = log p(high) + log p(low | high), and p(high) is a distribution of its own."""
    model = lively(SPN, Field("image", (2, 2, 2), vocab=4), NET, low_bits=1, upscale_size=True)
    halves = torch.tensor(list(itertools.product((0, 1), repeat=4))).view(16, 1, 2, 2)
    every = torch.stack([torch.cat([a, b]) for a in halves for b in halves])
    log = model.log_prob(every, Rng.batch(0, total=256))
    assert log.exp().sum().item() == pytest.approx(1, abs=1e-9)
    tokens = every.flatten(1)[:, model.order]
    scores = model.logits(tokens).log_softmax(-1).gather(2, tokens[..., None]).squeeze(-1)
    torch.testing.assert_close(scores.sum(1), log)
    high = scores[:, :4].sum(1).view(16, 16)
    torch.testing.assert_close(high, high[:, :1].expand(16, 16))  # the high bits know nothing of the low ones
    assert high[:, 0].exp().sum().item() == pytest.approx(1, abs=1e-9)
    torch.testing.assert_close(scores[:, 4:].sum(1).view(16, 16).exp().sum(1), torch.ones(16).double())


def test_values_that_bits_cannot_have_are_impossible():
    model = tiny("depth")
    logits = model.logits(drawn(model).flatten(1)[:, model.order])
    assert (logits[:, :16, 2:] == IMPOSSIBLE).all() and (logits[:, :16, :2] > IMPOSSIBLE).all()
    assert (logits[:, 16:, 4:] == IMPOSSIBLE).all() and (logits[:, 16:, :4] > IMPOSSIBLE).all()


def test_a_slices_channels_are_by_relative_offset():
    table = slots(2, range(4))
    #  (−1,−1) (−1,0) (−1,1) (0,−1)
    assert table.tolist() == [[-1, -1, -1, -1], [-1, -1, -1, 0], [-1, 0, 1, -1], [0, 1, -1, 2]]
    assert slots(2, range(4, 8))[3].tolist() == [4, 5, -1, 6, 0, 1, -1, 2, 3, -1, -1, -1, -1]


@kinds
def test_every_parameter_gets_a_gradient_and_the_loss_is_minus_log_p(kind):
    model = tiny(kind, LABEL, label_dropout=0.0).train()
    x, label = drawn(model, 6), torch.arange(6) % 3
    losses = model({"x": x, "label": label}, Turn("main", 0, 1, Rng.batch(0, total=6)))
    losses["loss"].backward()
    lost = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not lost
    torch.testing.assert_close(losses["each"], -model.log_prob(x, Rng.batch(0, total=6), label=label))


def test_drawn_slices_estimate_the_loss_without_bias():
    model = tiny("depth", drawn=1).train()
    x = drawn(model, 1).expand(600, -1, -1, -1)
    rough = model({"x": x}, Turn("main", 0, 1, Rng.batch(0, total=600)))["each"]
    whole = model.eval()({"x": x}, Turn("main", 0, 1, Rng.batch(0, total=600)))["each"]
    assert rough.std() > 0.1 and (rough.mean() - whole[0]).abs() < 4 * rough.std() / 600**0.5


def test_what_does_not_fit_is_refused():
    with pytest.raises(GencliError, match="row-lstm takes no image"):
        lively(SPN, Field("image", (1, 4, 4), vocab=4), {"name": "row-lstm"})
    with pytest.raises(GencliError, match="not divisible"):
        lively(SPN, Field("image", (1, 4, 4), vocab=4), NET, scale=3)
    with pytest.raises(GencliError, match="2 low bits do not fit image of shape"):
        lively(SPN, Field("image", (1, 4, 4), vocab=8), NET, low_bits=2)
    model = SPN.make({"net": NET, "low_bits": 1}, Spec(Field("image", (2, 4, 4), vocab=8)))
    with pytest.raises(GencliError, match="values for the low bits"):
        model.initialise(iter([{"x": torch.full((1, 2, 4, 4), 3)}]), 1, Rng.rows([0]))
