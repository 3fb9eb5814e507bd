"""PixelCNN with auxiliary variables: the passport of the catalogue, exact views, sampling by quantiles."""

import itertools
import math

import pytest
import torch
from autoregressive_laws import LABEL, largest_gap

from gencli import recipe
from gencli.core import Field, LatentVariable, Likelihood, Rng, Spec, Turn
from gencli.errors import GencliError
from gencli.models.autoregressive.pixelcnn_aux import PixelCNNAux, block_means, grey_levels

NET = {"name": "gated-pixelcnn", "width": 6, "layers": 2, "kernel": 3, "first": 3, "head": 8, "condition_blocks": 3}
COLOUR = Field("image", (3, 4, 4), vocab=6)
VIEWS = {"grey": {"view": "grey", "bits": 2}, "pyramid": {"view": "pyramid", "levels": 2}}
views = pytest.mark.parametrize("view", VIEWS)


def lively(model, seed=0):
    torch.manual_seed(seed)
    for p in model.parameters():
        p.data = torch.randn_like(p) * (1.5 / max(p[0].numel(), 1) ** 0.5 if p.ndim > 1 else 0.3)
    return model.eval()


def tiny(view, field=COLOUR, cond=None, **settings):
    return lively(PixelCNNAux.make({"net": NET, **VIEWS[view], **settings}, Spec(field, cond or {})).double())


def images(n, field=COLOUR, seed=0):
    return torch.randint(field.vocab, (n, *field.shape), generator=torch.Generator().manual_seed(seed))


def turn(n):
    return Turn("main", 0, 10, Rng.batch("t", total=n))


def toy(view):
    """A model of few images, all of them, and what it draws them with: the sum over all values of the view."""
    field = Field("image", (1, 2, 2), vocab=4 if view == "grey" else 3)
    model = tiny(view, field, **({"bits": 1} if view == "grey" else {"levels": 1}))
    every = torch.tensor(list(itertools.product(range(field.vocab), repeat=4))).view(-1, 1, 2, 2)
    top, image = model.factors
    known = torch.tensor(list(itertools.product(range(top.vocab), repeat=top.spec.x.size)))
    whole = torch.zeros(len(every), dtype=torch.float64)
    for one in known.view(-1, *top.spec.x.shape):
        told = one.expand(len(every), *one.shape)
        whole += (top.log_prob(told[:1], Rng.rows(())) + image.log_prob(every, Rng.rows(()), view=told)).exp()
    return model, every, whole


# -------------------------------------------------------------------------------------------------------------------- views


def test_grey_levels_of_colours_are_luminance_and_of_one_channel_the_high_bits():
    x = images(3, Field("image", (3, 5, 4), vocab=256))
    exact = (0.299 * x[:, 0].double() + 0.587 * x[:, 1] + 0.114 * x[:, 2]) / 16
    assert torch.equal(grey_levels(x, 256, 16)[:, 0], (exact + 1e-9).floor().long())
    flat = torch.arange(256).view(1, 1, 16, 16)
    assert torch.equal(grey_levels(flat.expand(1, 3, 16, 16), 256, 16), flat >> 4)
    assert torch.equal(grey_levels(flat, 256, 16), flat >> 4)
    assert grey_levels(torch.arange(17).view(1, 1, 1, 17), 17, 4).unique().tolist() == [0, 1, 2, 3]


def test_a_pyramids_levels_are_rounded_means_of_the_image_itself():
    x = images(2, Field("image", (3, 8, 8), vocab=256))
    for side in (2, 4, 8):
        exact = torch.nn.functional.avg_pool2d(x.double(), side)
        assert torch.equal(block_means(x, side), (exact + 0.5).floor().long())
    assert block_means(torch.tensor([[[[0, 1], [0, 1]]]]), 2).item() == 1  # halves go up
    model = tiny("pyramid", Field("image", (3, 8, 4), vocab=256))
    assert [tuple(v.shape[1:]) for v in model.views(x[..., :4])] == [(3, 2, 1), (3, 4, 2), (3, 8, 4)]
    assert model.names == ["2x1", "4x2", "8x4"]


# --------------------------------------------------------------------------------------------------------------- likelihood


@views
def test_over_all_images_of_a_toy_the_probabilities_sum_to_no_more_than_one(view):
    model, every, whole = toy(view)
    own = model.log_prob(every, Rng.rows(())).exp()
    assert 0.01 < own.sum().item() <= 1 + 1e-6
    assert whole.sum().item() == pytest.approx(1, abs=1e-9)
    assert (own <= whole + 1e-15).all()


@views
def test_the_reported_nats_are_the_sum_of_the_factors(view):
    model, x, label = tiny(view, cond=LABEL), images(5), torch.tensor([0, 1, 2, 3, 1])
    above, parts = {}, []
    for factor, seen in zip(model.factors, model.views(x), strict=True):
        logits = factor.net(seen, label=label, **above).log_softmax(-1)  # (N, C, H, W, V)
        parts.append(logits.gather(-1, seen[..., None]).flatten(1).sum(1))
        above = {"view": seen}
    whole = sum(parts)
    torch.testing.assert_close(model.log_prob(x, Rng.rows(()), label=label), whole, atol=1e-10, rtol=0)
    losses = model({"x": x, "label": label}, turn(5))
    torch.testing.assert_close(losses["each"], -whole)
    torch.testing.assert_close(losses["bits_per_dim"], (-whole.mean() / math.log(2) / 48).detach())
    found = [losses[f"bits_of_{name}"] for name in model.names]
    torch.testing.assert_close(torch.stack(found), torch.stack([-p.mean() / math.log(2) for p in parts]).detach())
    unlabelled = model.log_prob(x, Rng.rows(()))
    assert (unlabelled - whole).abs()[label < 3].min() > 1e-3 > (unlabelled - whole).abs()[3]


@views
def test_a_label_is_dropped_for_all_factors_at_once(view):
    model = tiny(view, cond=LABEL, label_dropout=0.5).train()
    x, label = images(1).expand(40, -1, -1, -1), torch.ones(40, dtype=torch.long)
    each = model({"x": x, "label": label}, turn(40))["each"]
    two = torch.stack([-model.log_prob(x[:1], Rng.rows(()), label=torch.tensor([k])) for k in (1, 3)])
    gaps = (each[:, None] - two.T).abs()
    assert (gaps.min(1).values < 1e-9).all() and 5 < gaps.argmin(1).sum() < 35


@views
def test_every_place_of_the_image_sees_every_pixel_of_the_view_and_no_later_pixel(view):
    model = tiny(view, net={**NET, "width": 12, "head": 24})
    *_, above, x = model.views(images(8))
    factor = model.factors[-1]
    tokens = x.flatten(1)[:, factor.order]
    before = factor.logits(tokens, view=above)
    assert before.shape == (8, 48, 6)
    for i in range(above[0].numel()):
        other = above.clone().flatten(1)
        other[:, i] = (other[:, i] + 1) % factor.spec.cond["view"].vocab
        gaps = (factor.logits(tokens, view=other.view_as(above)) - before).abs().amax((0, 2))
        assert (gaps > 1e-9).all(), i
    for j in range(48):
        later = tokens.clone()
        later[:, j:] = (later[:, j:] + 1) % 6
        after = factor.logits(later, view=above)
        torch.testing.assert_close(after[:, : j + 1], before[:, : j + 1], rtol=0, atol=1e-12)
        assert j == 47 or (after[:, j + 1 :] - before[:, j + 1 :]).abs().max() > 1e-6


@pytest.mark.parametrize("name", ["pixelcnn-aux", "pixelcnn-aux-cifar10"])
def test_the_recipes_networks_see_the_whole_view(name):
    """From corner to corner, by gradient, with the recipe's number of blocks and not with one fewer."""
    table = recipe.load(name)
    side = table["data"].get("image_size", 32)
    for fewer in (0, 1):
        net = {**NET, "width": 8, "condition_blocks": table["model"]["net"]["condition_blocks"] - fewer}
        embed = tiny("grey", Field("image", (1, side, side), vocab=16), net=net).factors[-1].net.cond.parts["view"]
        seen = torch.rand((2, 2, side, side), generator=torch.Generator().manual_seed(0)).double().requires_grad_()
        h = embed.body(embed.read(seen))
        for here, there in ((0, -1), (-1, 0)):
            (grad,) = torch.autograd.grad(h[:, :, here, here].sum(), seen, retain_graph=True)
            assert bool((grad[:, 0, there, there] != 0).any()) == (fewer == 0)


# ----------------------------------------------------------------------------------------------------------------- sampling


@views
def test_samples_follow_the_enumerated_distribution(view):
    model, every, whole = toy(view)
    base = torch.tensor([model.spec.x.vocab**i for i in (3, 2, 1, 0)])
    drawn = model.decode(model.prior(4000, Rng.batch("z", total=4000))).flatten(1) @ base
    found = torch.bincount(drawn, minlength=len(every)) / 4000
    noise = (2 * whole * (1 - whole) / (math.pi * 4000)).sqrt().sum()  # what the distance is on average
    assert (found - whole).abs().sum() < 1.3 * noise < (whole - 1 / len(every)).abs().sum() / 2


@views
def test_decoding_is_a_function_of_the_latent_and_shows_the_views(view):
    model, label = tiny(view, cond=LABEL), torch.tensor([0, 1, 2])
    assert isinstance(model, LatentVariable) and isinstance(model, Likelihood)
    z = model.prior(3, Rng.rows([1, 2, 3]))
    assert z.dtype == torch.float64 and z.shape == (3, {"grey": 16 + 48, "pyramid": 3 + 12 + 48}[view])
    made = model.decode(z, label=label)
    assert made.dtype == torch.long and made.shape == (3, 3, 4, 4) and torch.equal(made, model.decode(z, label=label))
    assert torch.equal(made[1:2], model.decode(model.prior(1, Rng.rows([2])), label=label[1:2]))
    stages = model.stages(z, label=label)
    assert len(stages) == len(model.factors) and torch.equal(stages[-1], made)
    assert all(s.shape == made.shape and s.min() >= 0 and s.max() < 6 for s in stages)
    top = model.factors[0]
    # by hand: the smallest number of the view with F(k) > Φ(z)
    p = top.logits(torch.zeros(3, top.spec.x.size, dtype=torch.long), label=label)[:, 0].softmax(-1)
    first = (p.cumsum(-1) <= torch.special.ndtr(z[:, :1])).sum(1)
    assert torch.equal(
        stages[0][:, 0, 0, 0], model.shown(first.view(3, 1, 1, 1).expand(3, *top.spec.x.shape))[:, 0, 0, 0]
    )


@views
def test_cached_steps_equal_teacher_forcing(view):
    model = tiny(view)
    *_, above, _ = model.views(images(3))
    assert largest_gap(model.factors[-1], model.factors[-1], view=above) < 1e-10


def test_a_grey_view_is_shown_in_the_images_values():
    model = tiny("grey", Field("image", (3, 4, 4), vocab=256), bits=4)
    shown = model.shown(torch.arange(16).view(1, 1, 4, 4))
    assert shown.shape == (1, 3, 4, 4) and torch.equal(shown[0, 1].flatten(), torch.arange(16) * 17)


@views
def test_every_parameter_gets_a_gradient(view):
    model = tiny(
        view, cond=LABEL, levels=1, net={**NET, "head": 24}
    ).train()  # of one pixel, nothing above could be seen
    model({"x": images(6), "label": torch.arange(6) % 4}, turn(6))["loss"].backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


def test_what_does_not_fit_is_refused():
    with pytest.raises(GencliError, match=r"images of whole numbers, got image of shape \(3, 4, 4\) with values in"):
        tiny("grey", Field("image", (3, 4, 4), vocab=6, range=(-1.0, 1.0)))
    with pytest.raises(GencliError, match="images of whole numbers, got codes"):
        tiny("grey", Field("codes", (4, 4), vocab=6))
    with pytest.raises(GencliError, match="cannot halve an image of 6×6 pixels 2 times"):
        tiny("pyramid", Field("image", (1, 6, 6), vocab=6))
    for net in ("pixelcnnpp", "transformer", "row-lstm"):
        with pytest.raises(GencliError, match="image") as caught:
            PixelCNNAux.make({"net": {"name": net}}, Spec(Field("image", (1, 8, 8), vocab=6)))
        assert "gated-pixelcnn" in caught.value.hint


def test_the_cifar10_recipes_parameters():
    table = recipe.load("pixelcnn-aux-cifar10")["model"]
    table.pop("name")
    model = PixelCNNAux.make(table, Spec(Field("image", (3, 32, 32), vocab=256)))
    assert [sum(p.numel() for p in f.parameters()) for f in model.factors] == [9_576_336, 15_996_288]
    assert model.sizes == [1024, 3072] and model.factors[0].vocab == 16
