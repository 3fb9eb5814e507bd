"""Grids of codes and images as conditions of causal networks: exact caches, who depends on whom, unchanged labels."""

import pytest
import torch
from autoregressive_laws import LABEL, largest_gap, later_tokens_change_nothing, lively

from gencli.core import Field
from gencli.errors import GencliError
from gencli.models.autoregressive.gated_pixelcnn import GatedPixelCNN
from gencli.networks._causal import Conditions

NETS = {
    "gated-pixelcnn": {"name": "gated-pixelcnn", "width": 6, "layers": 3, "kernel": 3, "first": 5, "head": 8},
    "pixelcnn": {"name": "pixelcnn", "width": 6, "blocks": 2, "first": 5, "head": 8},
}
BOTTOM, TOP = Field("codes", (4, 6), vocab=5), Field("codes", (2, 3), vocab=7)
LARGER = Field("image", (3, 8, 12), vocab=256, range=(-1.0, 1.0))
WHOLE = Field("image", (1, 4, 6), vocab=9)


def tiny(net, cond, x=BOTTOM, **settings):
    return lively(GatedPixelCNN, x, {**NETS[net], **settings}, cond)


def value(field, n=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    if field.range:
        return torch.rand((n, *field.shape), generator=generator, dtype=torch.float64) * 2 - 1
    return torch.randint(field.vocab, (n, *field.shape), generator=generator)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("field", [TOP, LARGER, WHOLE], ids=["smaller", "larger", "image"])
def test_cached_steps_equal_teacher_forcing_and_later_tokens_change_nothing(net, field):
    model = tiny(net, {**LABEL, "grid": field})
    assert largest_gap(model, model, label=torch.tensor([0, 1, 3]), grid=value(field)) < 1e-10
    assert largest_gap(model, model) < 1e-10, "without its conditions"
    assert later_tokens_change_nothing(model, label=torch.tensor([0, 2]), grid=value(field, 2))


@pytest.mark.parametrize("net", NETS)
def test_two_maps_over_an_image_of_several_channels(net):
    model = tiny(net, {"grid": TOP, "image": LARGER}, Field("image", (3, 4, 6), vocab=4), width=9)
    assert largest_gap(model, model, grid=value(TOP), image=value(LARGER)) < 1e-10


@pytest.mark.parametrize("net", NETS)
def test_every_code_above_reaches_the_codes_below_and_every_code_below_hears_of_those_above(net):
    model = tiny(net, {"top": TOP}, head=64)  # no logit of which all relus are shut
    tokens, top = value(BOTTOM, 1).flatten(1), value(TOP, 1)
    model.net.cond.parts["top"].table.weight.requires_grad_(False)
    vectors = []

    def keep(module, given, made):
        vectors.append(made.requires_grad_())

    with model.net.cond.parts["top"].table.register_forward_hook(keep):
        logits = model.logits(tokens, top=top)
    heard = torch.stack(
        [torch.autograd.grad(logits[0, i, 2], vectors[0], retain_graph=True)[0][0].abs().sum(-1) for i in range(24)]
    )
    assert (heard.amax(0) > 0).all(), "each of the codes above is used"
    assert (heard.flatten(1).amax(1) > 0).all(), "at each of the places below"


@pytest.mark.parametrize("net", NETS)
def test_a_map_says_where_not_only_what(net):
    model = tiny(net, {"top": TOP}, condition_blocks=0)
    tokens, one = value(BOTTOM, 1).flatten(1), value(TOP, 1)
    other = one.clone()
    other[0, 1, 2] = (other[0, 1, 2] + 1) % 7
    change = (model.logits(tokens, top=one) - model.logits(tokens, top=other)).abs().amax(-1).view(4, 6)
    assert (change[2:, 4:] > 1e-6).all(), "the patch below the changed code"
    assert (change[0, :3] == 0).all(), "not what lies out of reach before it"


@pytest.mark.parametrize("net", NETS)
def test_every_parameter_gets_a_gradient(net):
    model = tiny(net, {"top": TOP, "image": LARGER}).train()
    logits = model.logits(value(BOTTOM).flatten(1), top=value(TOP), image=value(LARGER))
    (logits * torch.randn_like(logits)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_an_absent_map_is_its_null_and_no_code():
    model = tiny("gated-pixelcnn", {"top": TOP})
    tokens = value(BOTTOM, 2).flatten(1)
    null = model.logits(tokens, top=torch.full((2, 2, 3), 7))
    assert torch.equal(model.logits(tokens), null)
    assert all(not torch.allclose(null, model.logits(tokens, top=torch.full((2, 2, 3), k))) for k in range(7))


def test_labels_and_vectors_are_still_one_vector_with_the_same_names():
    cond = Conditions({**LABEL, "clip": Field("latent", (5,))}, 6, "n", (4, 4))
    assert [*cond.state_dict()] == ["parts.label.weight", "parts.clip.weight"]
    assert cond(2, {"label": torch.tensor([0, 1])}, torch.zeros(1)).shape == (2, 6)
    unconditional = lively(GatedPixelCNN, BOTTOM, NETS["pixelcnn"], LABEL)
    assert not any(key.startswith("net.cond") for key in unconditional.state_dict())


def test_sides_that_do_not_fit_and_networks_without_places_are_refused():
    with pytest.raises(GencliError, match="'top': its sides 3×2 are no multiple or part of those of x, 4×6"):
        tiny("gated-pixelcnn", {"top": Field("codes", (3, 2), vocab=5)})
    with pytest.raises(GencliError, match="network seq cannot take the condition 'top'"):
        Conditions({"top": TOP}, 6, "seq")
