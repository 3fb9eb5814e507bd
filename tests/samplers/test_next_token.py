"""Sampling token by token: the law of a known model, truncation, guidance, frames, independence of the batch."""

import pytest
import torch
from autoregressive_laws import LABEL, lively
from torch import nn

from gencli.core import Field, Rng, Spec
from gencli.errors import GencliError
from gencli.models.autoregressive._family import AutoregressiveModel
from gencli.models.autoregressive.gated_pixelcnn import GatedPixelCNN
from gencli.models.autoregressive.pixelcnn import PixelCNN
from gencli.samplers.next_token import NextTokenSampler

SIX = Field("image", (1, 6, 6), vocab=5)
NET = {"name": "gated-pixelcnn", "width": 6, "layers": 3, "kernel": 3, "first": 5, "head": 8}


class Chain(AutoregressiveModel):
    """A Markov chain visited backwards; with a label, the first token is that label."""

    FIRST = torch.tensor([0.5, 0.3, 0.2, 0.0])
    NEXT = torch.tensor([[0.1, 0.6, 0.3, 0.0], [0.7, 0.1, 0.2, 0.0], [0.25, 0.25, 0.5, 0.0], [0.4, 0.3, 0.3, 0.0]])

    def __init__(self, shape=(1, 2, 2), cond=None):
        super().__init__(None, Spec(Field("image", shape, vocab=4), cond or {}))
        self.weight = nn.Parameter(torch.zeros(()))

    @property
    def order(self):
        return torch.arange(self.spec.x.size).flip(0)

    def logits(self, tokens, **cond):
        first = self.FIRST.expand(len(tokens), 4)
        if "label" in cond:
            first = nn.functional.one_hot(cond["label"], 4).float()
        return torch.cat([first[:, None], self.NEXT[tokens[:, :-1]]], dim=1).log()


def draw(model, n, seeds=None, guidance=1.0, settings=None, **cond):
    rng = Rng.rows(list(seeds) if seeds is not None else list(range(n)))
    with torch.no_grad():
        return list(NextTokenSampler.make(settings).frames(model, model.spec, n, rng, cond, guidance))


def test_samples_of_a_markov_chain_have_its_probabilities_in_its_order():
    n = 4000
    x = draw(Chain(), n)[-1].x.flatten(1).flip(1)  # in the order of the chain
    first = torch.bincount(x[:, 0], minlength=4) / n
    torch.testing.assert_close(first, Chain.FIRST, atol=0.025, rtol=0)
    for k in range(3):
        came = x[:, 1:][x[:, :-1] == k]
        torch.testing.assert_close(torch.bincount(came, minlength=4) / len(came), Chain.NEXT[k], atol=0.035, rtol=0)
    assert (x != 3).all()  # probability zero is never drawn


@pytest.mark.parametrize("kind", [GatedPixelCNN, PixelCNN])
def test_images_sampled_with_caches_and_without_are_identical_in_float64(kind):
    net = NET if kind is GatedPixelCNN else {"name": "pixelcnn", "width": 6, "blocks": 2, "head": 8}
    model = lively(kind, SIX, net)
    cached = draw(model, 8)[-1].x
    kind_start, kind_next = type(model).start, type(model).next
    try:
        type(model).start, type(model).next = AutoregressiveModel.start, AutoregressiveModel.next
        naive = draw(model, 8)[-1].x
    finally:
        type(model).start, type(model).next = kind_start, kind_next
    assert torch.equal(cached, naive)
    assert len(cached.flatten(1).unique(dim=0)) == 8


def test_a_row_is_the_same_alone_and_in_any_batch():
    model = lively(GatedPixelCNN, SIX, NET, LABEL)
    labels = torch.arange(7) % 3
    together = draw(model, 7, label=labels, guidance=1.5)[-1].x
    alone = torch.cat([draw(model, 1, [i], 1.5, label=labels[i : i + 1])[-1].x for i in range(7)])
    reversed_ = draw(model, 7, range(6, -1, -1), 1.5, label=labels.flip(0))[-1].x.flip(0)
    assert torch.equal(together, alone) and torch.equal(together, reversed_)


def test_there_is_a_frame_a_row_with_entropies_of_what_is_drawn():
    model = lively(GatedPixelCNN, SIX, NET)
    frames = draw(model, 3)
    assert [(f.index, f.total) for f in frames] == [(i, 6) for i in range(6)]
    final, entropy = frames[-1].x, frames[-1].info["entropy"]
    logits = model.logits(final.flatten(1)).log_softmax(-1)
    torch.testing.assert_close(entropy.flatten(1), -(logits.exp() * logits).sum(-1))
    for i, frame in enumerate(frames):
        assert torch.equal(frame.x[:, :, : i + 1], final[:, :, : i + 1])
        assert not frame.x[:, :, i + 1 :].any() and not frame.info["entropy"][:, :, i + 1 :].any()
        torch.testing.assert_close(frame.info["entropy"][:, :, : i + 1], entropy[:, :, : i + 1])


def test_colour_images_and_code_grids_have_a_frame_a_row_too():
    for field, rows in ((Field("image", (3, 2, 4), vocab=3), 2), (Field("codes", (5, 3), vocab=3), 5)):
        frames = draw(lively(GatedPixelCNN, field, NET), 2)
        assert len(frames) == rows and frames[0].total == rows
        assert frames[-1].x.shape == (2, *field.shape)
        assert frames[-1].x.min() >= 0 and frames[-1].x.max() < 3


def test_temperature_top_k_and_top_p():
    def shape(**settings):
        p = NextTokenSampler.make(settings).config.probabilities(
            torch.tensor([[0.15, 0.5, 0.05, 0.3]], dtype=torch.float64).log()
        )
        return (p / p.sum()).squeeze(0).tolist()

    assert shape() == pytest.approx([0.15, 0.5, 0.05, 0.3])
    assert shape(temperature=0.0) == [0, 1, 0, 0]
    assert shape(temperature=0.5) == pytest.approx([v * v / 0.365 for v in (0.15, 0.5, 0.05, 0.3)])
    assert shape(top_k=2) == pytest.approx([0, 0.625, 0, 0.375])
    assert shape(top_k=9) == pytest.approx([0.15, 0.5, 0.05, 0.3])
    assert shape(top_p=0.75) == pytest.approx([0, 0.625, 0, 0.375])
    assert shape(top_p=0.81) == pytest.approx([0.15 / 0.95, 0.5 / 0.95, 0, 0.3 / 0.95])
    assert shape(top_p=0.0) == [0, 1, 0, 0]


def test_guidance_interpolates_logits():
    model = lively(GatedPixelCNN, SIX, NET, LABEL)
    label = torch.tensor([2])
    final = draw(model, 1, guidance=2.5, label=label)[-1]
    tokens = final.x.flatten(1)
    with_, without = model.logits(tokens, label=label), model.logits(tokens)
    mixed = (without + 2.5 * (with_ - without)).log_softmax(-1)
    torch.testing.assert_close(final.info["entropy"].flatten(1), -(mixed.exp() * mixed).sum(-1))


def test_guidance_one_asks_the_network_once_and_zero_forgets_the_class():
    calls = []
    model = Chain(cond={"label": Field("label", (), vocab=4)})
    inner = model.logits
    model.logits = lambda tokens, **cond: calls.append(set(cond)) or inner(tokens, **cond)
    label = torch.full((5,), 2)
    assert (draw(model, 5, label=label)[-1].x.flatten(1)[:, -1] == 2).all()
    assert calls == [{"label"}] * 4
    calls.clear()
    draw(model, 5, guidance=0.0, label=label)
    assert calls == [set()] * 4


def test_guidance_without_a_condition_that_the_model_takes_changes_nothing():
    assert torch.equal(draw(Chain(), 4, guidance=2.0)[-1].x, draw(Chain(), 4)[-1].x)
    model = lively(PixelCNN, SIX, {"name": "pixelcnn", "width": 4, "blocks": 1, "head": 4}, LABEL)
    label = torch.tensor([0, 1])
    assert torch.equal(draw(model, 2, guidance=3.0, label=label)[-1].x, draw(model, 2)[-1].x)


def test_a_model_of_another_interface_is_refused():
    from gencli.models.vae.vqvae import VQVAE

    model = VQVAE.make({"codes": 4, "dim": 2}, Spec(Field("image", (1, 4, 4), vocab=256, range=(-1.0, 1.0))))
    with pytest.raises(GencliError, match="NextToken"):
        draw(model, 1)


def test_the_cost_is_one_evaluation_a_token():
    model = lively(GatedPixelCNN, SIX, NET)
    assert NextTokenSampler.make().evaluations(model, model.spec) == 36


def test_multinomial_inverts_given_uniforms():
    p = torch.tensor([[0.0, 0.25, 0.75, 0.0]]).expand(5, 4)
    u = torch.tensor([0.0, 0.24, 0.26, 0.9, 1.0], dtype=torch.float64)
    assert Rng.rows(range(5)).multinomial(p, u).tolist() == [1, 1, 2, 2, 2]


def test_kept_tokens_stay_and_the_others_are_drawn_given_them_by_their_own_numbers():
    model = lively(GatedPixelCNN, SIX, NET, LABEL)
    label = torch.tensor([0, 1, 2])
    free = draw(model, 3, label=label)[-1].x
    top = torch.zeros(3, 1, 6, 6, dtype=torch.bool)
    top[:, :, :3] = True
    same = draw(model, 3, label=label, known=free, keep=top)
    assert torch.equal(same[-1].x, free), "given what it drew itself, the rest is what it was"
    other = (free + 1) % 5
    frames = draw(model, 3, label=label, known=other, keep=top)
    final, entropy = frames[-1].x, frames[-1].info["entropy"]
    assert all(torch.equal(frame.x[:, :, :3], other[:, :, :3]) for frame in frames)
    assert not torch.equal(final[:, :, 3:], free[:, :, 3:]), "what is kept matters to what comes after it"
    logits = model.logits(final.flatten(1), label=label).log_softmax(-1).view(3, 1, 6, 6, 5)
    torch.testing.assert_close(entropy[:, :, 3:], -(logits.exp() * logits).sum(-1)[:, :, 3:])
    assert not entropy[:, :, :3].any()


def test_with_every_token_kept_nothing_is_drawn():
    known = torch.tensor([[[[1, 3], [0, 2]]]])
    assert torch.equal(draw(Chain(), 1, known=known, keep=torch.ones_like(known).bool())[-1].x, known)
