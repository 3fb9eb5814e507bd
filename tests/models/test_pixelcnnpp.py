"""PixelCNN++: the passport of the catalogue, likelihood, caches, the official counts."""

import itertools

import pytest
import torch
from autoregressive_laws import GRIDS, LABEL, largest_gap, later_tokens_change_nothing, lively

from gencli import recipe
from gencli.core import Field, NextToken, Rng, Spec, Turn
from gencli.errors import GencliError
from gencli.models.autoregressive.pixelcnnpp import PixelCNNPP

NET = {"name": "pixelcnnpp", "width": 5, "blocks": 1, "levels": 3, "mixtures": 2, "dropout": 0.0}


def tiny(field, cond=LABEL, **settings):
    model = lively(PixelCNNPP, field, {**NET, **settings.pop("net", {})}, cond, **settings)
    for name, p in model.named_parameters():
        if name.endswith("magnitude"):
            p.data.add_(1)  # filters of a length that lets every layer through
    return model


def turn(n):
    return Turn("main", 0, 1, Rng.batch(0, total=n))


def parameters(recipe_name, cond):
    table = recipe.load(recipe_name)["model"]
    with torch.device("meta"):
        model = PixelCNNPP.make(
            {key: value for key, value in table.items() if key != "name"},
            Spec(Field("image", (3, 32, 32), vocab=256), cond),
        )
    return sum(p.numel() for p in model.parameters())


def test_the_paper_recipe_has_the_official_number_of_parameters():
    assert parameters("pixelcnnpp-cifar10", {}) == 53_659_080
    assert parameters("pixelcnnpp-cifar10", {"label": Field("label", (), vocab=10)}) == 53_863_880


def test_probabilities_of_all_512_binary_images_sum_to_one_for_each_class():
    model = tiny(Field("image", (1, 3, 3), vocab=2), dtype=torch.float32)
    every = torch.tensor(list(itertools.product((0, 1), repeat=9))).view(-1, 1, 3, 3)
    for label in range(4):  # the last is the null label
        log = model.log_prob(every, Rng.batch(0, total=512), label=torch.full((512,), label))
        assert log.exp().sum().item() == pytest.approx(1, abs=1e-5)
        assert log.max() - log.min() > 1


def test_probabilities_of_all_colour_images_sum_to_one():
    model = tiny(Field("image", (3, 1, 2), vocab=3))
    every = torch.tensor(list(itertools.product(range(3), repeat=6))).view(-1, 3, 1, 2)
    assert model.log_prob(every, Rng.batch(0, total=729)).exp().sum().item() == pytest.approx(1, abs=1e-10)


@pytest.mark.parametrize("field", GRIDS, ids=lambda f: f"{f.kind}{f.shape}")
def test_the_direct_likelihood_is_the_chain_of_its_logits(field):
    model = tiny(field)
    x = torch.randint(field.vocab, (3, *field.shape), generator=torch.Generator().manual_seed(0))
    label = torch.tensor([0, 2, 3])
    tokens = x.flatten(1)[:, model.order]
    logits = model.logits(tokens, label=label)
    chain = logits.log_softmax(-1).gather(-1, tokens[..., None]).sum((1, 2))
    torch.testing.assert_close(model.log_prob(x, Rng.batch(0, total=3), label=label), chain, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("field", GRIDS, ids=lambda f: f"{f.kind}{f.shape}")
def test_later_tokens_change_no_earlier_logits(field):
    assert later_tokens_change_nothing(tiny(field), label=torch.tensor([0, 2]))


@pytest.mark.parametrize(
    ("field", "conditional"),
    [*((field, True) for field in GRIDS), (Field("image", (1, 7, 6), vocab=5), False)],
    ids=lambda value: f"{value.kind}{value.shape}" if isinstance(value, Field) else "",
)
def test_cached_steps_equal_teacher_forcing_and_leave_their_state_alone(field, conditional):
    model = tiny(field, LABEL if conditional else {})
    given = {"label": torch.tensor([0, 1, 3])} if conditional else {}
    assert largest_gap(model, model, **given) < 1e-10


def test_an_absent_label_is_the_null_label_and_a_label_reaches_every_logit():
    model = tiny(Field("image", (1, 4, 4), vocab=6))
    tokens = torch.randint(6, (1, 16), generator=torch.Generator().manual_seed(0))
    null = model.logits(tokens, label=torch.tensor([3]))
    assert torch.equal(model.logits(tokens), null)
    assert ((model.logits(tokens, label=torch.tensor([1])) - null).abs().amax(-1) > 1e-6).all()


@pytest.mark.parametrize("field", GRIDS, ids=lambda f: f"{f.kind}{f.shape}")
def test_every_parameter_gets_a_gradient(field):
    model = tiny(field).train()
    batch = {"x": torch.randint(field.vocab, (8, *field.shape)), "label": torch.arange(8) % 3}
    losses = model(batch, turn(8))
    losses["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_it_starts_from_the_data_and_leaves_the_network_as_it_was():
    torch.manual_seed(0)
    model = PixelCNNPP.make({"net": {**NET, "width": 16, "dropout": 0.5}}, Spec(Field("image", (1, 8, 8), vocab=17)))
    x = torch.randint(17, (32, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    model.train().initialise(iter([{"x": x}]), 32, Rng.batch(0, total=1))
    assert model.training
    said = model.eval().net(x, raw=True).flatten(0, -2)
    torch.testing.assert_close(said.mean(0), torch.zeros_like(said[0]), rtol=0, atol=1e-4)
    torch.testing.assert_close(said.std(0), torch.ones_like(said[0]), rtol=0, atol=2e-3)


def test_another_network_may_take_its_place_and_it_that_of_another():
    from gencli.models.autoregressive.gated_pixelcnn import GatedPixelCNN

    field = Field("image", (1, 3, 4), vocab=5)
    x = torch.randint(5, (2, 1, 3, 4), generator=torch.Generator().manual_seed(0))
    other = lively(PixelCNNPP, field, {"name": "gated-pixelcnn", "width": 4, "layers": 2, "head": 8})
    other.initialise(iter([{"x": x}]), 2, Rng.batch(0, total=1))
    assert torch.isfinite(other.log_prob(x, Rng.batch(0, total=2))).all()
    mine, theirs = lively(PixelCNNPP, field, NET), lively(GatedPixelCNN, field, NET)
    theirs.load_state_dict(mine.state_dict())
    rng = Rng.batch(0, total=2)
    torch.testing.assert_close(mine.log_prob(x, rng), theirs.log_prob(x, rng))


def test_other_conditions_and_other_data_are_refused_by_name():
    with pytest.raises(GencliError, match="'image'"):
        tiny(Field("codes", (4, 4), vocab=6), {"image": Field("image", (1, 4, 4), range=(-1.0, 1.0))})
    with pytest.raises(GencliError, match="got points of shape"):
        tiny(Field("points", (2,), vocab=4))
    assert isinstance(tiny(Field("codes", (2, 2), vocab=6)), NextToken)
