"""Gated PixelCNN: the passport of the catalogue, the class, caches, likelihood."""

import itertools

import pytest
import torch
from autoregressive_laws import GRIDS, LABEL, dependencies, largest_gap, later_tokens_change_nothing, lively

from gencli.core import Field, NextToken, Rng, Turn
from gencli.errors import GencliError
from gencli.models.autoregressive.gated_pixelcnn import GatedPixelCNN

NET = {"name": "gated-pixelcnn", "width": 6, "layers": 3, "kernel": 3, "first": 5, "head": 8}
CODES = Field("codes", (4, 4), vocab=6)


def tiny(field, cond=LABEL, **settings):
    return lively(GatedPixelCNN, field, {**NET, **settings.pop("net", {})}, cond, **settings)


def turn(n):
    return Turn("main", 0, 1, Rng.batch(0, total=n))


def strip_given(model):
    for layer in model.net.layers:
        for given in (layer.given_horizontal, layer.given_vertical):
            if given is not None:
                torch.nn.init.zeros_(given.weight)


def test_probabilities_of_all_512_binary_images_sum_to_one_for_each_class():
    model = tiny(Field("image", (1, 3, 3), vocab=2), dtype=torch.float32)
    every = torch.tensor(list(itertools.product((0, 1), repeat=9))).view(-1, 1, 3, 3)
    for label in range(4):  # the last is the null label
        log = model.log_prob(every, Rng.batch(0, total=512), label=torch.full((512,), label))
        assert log.exp().sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("shape", [(1, 7, 7), (3, 3, 4)])
def test_every_output_depends_on_all_earlier_tokens_and_on_no_other(shape):
    found = dependencies(tiny(Field("image", shape, vocab=3), net={"layers": 6, "width": 9}).net)
    assert torch.equal(found, torch.ones_like(found).tril(-1))


@pytest.mark.parametrize("field", GRIDS, ids=lambda f: f"{f.kind}{f.shape}")
def test_later_tokens_change_no_earlier_logits(field):
    assert later_tokens_change_nothing(tiny(field), label=torch.tensor([0, 2]))


@pytest.mark.parametrize("field", GRIDS, ids=lambda f: f"{f.kind}{f.shape}")
@pytest.mark.parametrize("conditional", [True, False])
def test_cached_steps_equal_teacher_forcing_and_leave_their_state_alone(field, conditional):
    model = tiny(field, LABEL if conditional else {})
    given = {"label": torch.tensor([0, 1, 3])} if conditional else {}
    assert largest_gap(model, model, **given) < 1e-10


def test_without_v_no_logit_depends_on_the_class_and_with_it_every_one_does():
    model = tiny(CODES)
    tokens = torch.randint(6, (1, 16), generator=torch.Generator().manual_seed(0))
    one, other = (model.logits(tokens, label=torch.tensor([k])) for k in (0, 1))
    assert ((one - other).abs().amax(-1) > 1e-6).all()
    strip_given(model)
    one, other = (model.logits(tokens, label=torch.tensor([k])) for k in (0, 1))
    assert torch.equal(one, other)


def test_an_absent_label_is_the_null_label():
    model = tiny(CODES)
    tokens = torch.randint(6, (2, 16))
    assert torch.equal(model.logits(tokens), model.logits(tokens, label=torch.tensor([3, 3])))
    assert not torch.allclose(model.logits(tokens), model.logits(tokens, label=torch.tensor([0, 1])))


def test_a_vector_condition_reaches_every_logit_and_may_be_absent():
    model = tiny(CODES, {"clip": Field("latent", (5,))})
    tokens = torch.randint(6, (2, 16))
    zero, one = torch.zeros(2, 5).double(), torch.ones(2, 5).double()
    assert ((model.logits(tokens, clip=zero) - model.logits(tokens, clip=one)).abs().amax(-1) > 1e-6).all()
    assert not torch.allclose(model.logits(tokens), model.logits(tokens, clip=zero))
    model.train()({"x": tokens.view(2, 4, 4), "clip": one}, turn(2))["loss"].backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("field", GRIDS, ids=lambda f: f"{f.kind}{f.shape}")
@pytest.mark.parametrize("conditional", [True, False])
def test_every_parameter_gets_a_gradient(field, conditional):
    model = tiny(field, LABEL if conditional else {}).train()
    batch = {"x": torch.randint(field.vocab, (8, *field.shape)), "label": torch.arange(8) % 3}
    model(batch, turn(8))["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_labels_are_dropped_in_training_only_and_as_often_as_asked():
    batch = {"x": torch.randint(6, (400, 4, 4)), "label": torch.arange(400) % 3}
    model = tiny(CODES, label_dropout=0.25)
    kept = model(batch, turn(400))["each"]
    torch.testing.assert_close(kept, -model.log_prob(batch["x"], Rng.batch(0, total=400), label=batch["label"]))
    mixed = model.train()(batch, turn(400))["each"]
    null = -model.log_prob(batch["x"], Rng.batch(0, total=400))
    dropped = (mixed - kept).abs() > 1e-9
    torch.testing.assert_close(mixed[dropped], null[dropped])
    assert 0.17 < dropped.double().mean() < 0.33


def test_dropping_does_not_depend_on_micro_batches():
    batch = {"x": torch.randint(6, (8, 4, 4)), "label": torch.arange(8) % 3}
    model = tiny(CODES, label_dropout=0.5).train()
    whole = model(batch, turn(8))["each"]
    parts = [
        model(
            {key: value[rows.start : rows.stop] for key, value in batch.items()},
            Turn("main", 0, 1, Rng.batch(0, total=8, rows=rows)),
        )["each"]
        for rows in (range(0, 3), range(3, 8))
    ]
    torch.testing.assert_close(whole, torch.cat(parts))


def test_other_conditions_and_continuous_data_are_refused_by_name():
    with pytest.raises(GencliError, match="'frames'"):
        tiny(CODES, {"frames": Field("video", (2, 1, 4, 4), range=(-1.0, 1.0))})
    with pytest.raises(GencliError, match="'top': its sides 3×3 are no multiple or part of those of x, 4×4"):
        tiny(CODES, {"top": Field("codes", (3, 3), vocab=5)})
    with pytest.raises(GencliError, match="gated-pixelcnn models whole numbers, got latent"):
        tiny(Field("latent", (4, 4)))


def test_it_offers_next_token():
    assert isinstance(tiny(CODES), NextToken)
