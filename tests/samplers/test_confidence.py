"""Confidence decoding: the released schedule, tokens that stay, sampling one by one, kept tokens, independence of the batch."""

import math

import pytest
import torch
from torch import nn

from gencli.core import Field, Model, NextToken, Rng, Spec, TokenDenoiser
from gencli.errors import GencliError
from gencli.samplers.confidence import Confidence, count_left

V = 5
LABEL = {"label": Field("label", (), vocab=3)}


class Mixer(Model):
    """Logits of every token from all tokens that are not masked, by fixed random weights."""

    def __init__(self, shape=(4, 4), cond=LABEL):
        super().__init__(None, Spec(Field("codes", shape, vocab=V), cond))
        size = self.spec.x.size
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(size, V + 1, size * V, generator=generator).double() * 0.6)
        self.classes = nn.Parameter(torch.randn(4, size, V, generator=generator).double())
        self.calls = []

    def loss(self, batch, turn):
        raise NotImplementedError

    def logits_at(self, tokens, **cond):
        self.calls.append((tokens.clone(), set(cond)))
        n, size = tokens.shape
        seen = self.weight[torch.arange(size), tokens].sum(1).view(n, size, V)
        return seen + self.classes[cond.get("label", torch.full((n,), 3))]


class Causal(Mixer):
    """Position i knows its law once all before it are known, and nothing until then: surer than 1/64 at any value."""

    LAW = torch.tensor([[0.1, 0.6, 0.3], [0.7, 0.1, 0.2], [0.25, 0.25, 0.5]], dtype=torch.float64)

    def __init__(self):
        super().__init__((6,), {})
        self.spec = Spec(Field("codes", (6,), vocab=64))

    def logits_at(self, tokens, **cond):
        p = torch.full((*tokens.shape, 64), 1 / 64, dtype=torch.float64)
        for row in range(len(tokens)):
            here = int((tokens[row] == 64).long().argmax())
            p[row, here] = 0
            p[row, here, :3] = self.law(tokens[row, :here])
        return p.log()

    def law(self, before):
        return self.LAW[int(before.sum()) % 3]


def draw(model, n, seeds=None, guidance=1.0, settings=None, **cond):
    rng = Rng.rows(list(seeds) if seeds is not None else list(range(n)))
    with torch.no_grad():
        return list(Confidence.make(settings).frames(model, model.spec, n, rng, cond, guidance))


def left_after(total, steps):
    made, now = [], total
    for step in range(1, steps + 1):
        now = int(count_left(torch.tensor([total]), torch.tensor([now]), step, steps))
        made.append(now)
    return made


def test_the_schedule_is_that_of_the_released_code():
    assert left_after(256, 8) == [251, 236, 212, 181, 142, 97, 49, 0]
    assert left_after(256, 12) == [253, 247, 236, 221, 203, 181, 155, 128, 97, 66, 33, 0]
    assert left_after(256, 16) == [254, 251, 244, 236, 225, 212, 197, 181, 162, 142, 120, 97, 74, 49, 25, 0]
    for total in (1, 2, 7, 40):
        assert left_after(total, total) == list(range(total - 1, -1, -1)), "as many steps as tokens: one a step"
    assert left_after(3, 2) == [2, 0] and left_after(0, 4) == [0] * 4 and left_after(5, 1) == [0]


def test_fixed_tokens_never_change_and_as_many_are_fixed_as_scheduled():
    model = Mixer((16, 16), {})
    model.weight.data *= 0.2
    frames = draw(model, 3)
    assert [(f.index, f.total) for f in frames] == [(i, 8) for i in range(8)]
    order, final = frames[-1].info["order"], frames[-1].x
    counts = torch.stack([(order > step).flatten(1).sum(1) for step in range(1, 9)], 1)
    assert counts.tolist() == [[251, 236, 212, 181, 142, 97, 49, 0]] * 3 and order.min() == 1
    for step, frame in enumerate(frames, 1):
        fixed = order <= step
        assert torch.equal(frame.x[fixed], final[fixed]) and torch.equal(frame.info["order"][fixed], order[fixed])
        assert (frame.info["order"][~fixed] == -1).all() and not frame.info["confidence"][~fixed].any()
        assert frame.x.min() >= 0 and frame.x.max() < V, "what is still masked is shown as drawn now"
    for step, (seen, _) in enumerate(model.calls, 1):
        early = (order < step).flatten(1)
        assert torch.equal(seen, final.flatten(1).masked_fill(~early, V)), "the model sees what is fixed, else the mask"


def test_confidence_and_entropy_are_of_the_distribution_that_a_token_was_fixed_from():
    model, label = Mixer(), torch.tensor([0, 2])
    frames = draw(model, 2, settings={"steps": 4}, label=label)
    order, final = frames[-1].info["order"].flatten(1), frames[-1].x.flatten(1)
    for step, (seen, _) in enumerate(list(model.calls), 1):
        log = model.logits_at(seen, label=label).log_softmax(-1)
        log_p, entropy = log.gather(2, final[..., None]).squeeze(-1), -(log.exp() * log).sum(-1)
        now = order == step
        torch.testing.assert_close(frames[-1].info["confidence"].flatten(1)[now], log_p.exp()[now])
        torch.testing.assert_close(frames[-1].info["entropy"].flatten(1)[now], entropy[now])


def test_the_noise_on_the_confidence_is_gumbels_and_falls_over_the_steps():
    model, label = Mixer(), torch.tensor([0, 2])
    frames = draw(model, 2, settings={"steps": 4, "choice_temperature": 2.0}, label=label)
    order = frames[-1].info["order"].flatten(1)
    for step, frame in enumerate(frames, 1):
        log = model.logits_at(model.calls[step - 1][0], label=label).log_softmax(-1)
        u = Rng.rows([0, 1]).at("choice", step).uniform((2, 16), torch.float64)
        score = log.gather(2, frame.x.flatten(1)[..., None]).squeeze(-1) - 2 * (1 - step / 4) * (-u.log()).log()
        fixed, left = order == step, order > step
        assert (score.where(fixed, torch.inf).amin(1) > score.where(left, -torch.inf).amax(1)).all(), step


def test_without_noise_the_most_confident_are_fixed_and_with_it_not_always():
    for heat, ordered in ((0.0, True), (4.5, False)):
        model = Mixer()
        first, *_ = draw(model, 20, settings={"steps": 4, "choice_temperature": heat}, label=torch.zeros(20).long())
        p = model.logits_at(torch.full((20, 16), V), label=torch.zeros(20).long()).softmax(-1)
        sure = p.gather(2, first.x.flatten(1)[..., None]).squeeze(-1)
        fixed = first.info["order"].flatten(1) == 1
        best = torch.where(fixed, sure, 1.0).amin(1) >= torch.where(fixed, 0.0, sure).amax(1)
        assert bool(best.all()) == ordered


def test_one_token_a_step_of_a_causal_predictor_is_ancestral_sampling():
    model, n = Causal(), 40
    frame = draw(model, n, settings={"steps": 6, "choice_temperature": 0.0})[-1]
    assert torch.equal(frame.info["order"], torch.arange(1, 7).expand(n, 6)), "in order"
    rng, made = Rng.rows(range(n)), torch.zeros(n, 0, dtype=torch.long)
    for i in range(6):  # the chain rule, read forwards, with the same numbers
        u = rng.at("token", i + 1).uniform((n, 6), torch.float64)[:, i]
        p = torch.stack([model.law(row) for row in made])
        made = torch.cat([made, (p.cumsum(1) <= u[:, None]).sum(1, keepdim=True)], 1)
    assert torch.equal(frame.x, made)
    assert len(made.unique(dim=0)) > 10


def test_samples_of_independent_tokens_have_the_models_probabilities():
    model, n = Mixer((2, 2), {}), 4000
    model.weight.data.zero_()
    p = model.classes[3].softmax(-1)
    x = draw(model, n, settings={"steps": 1})[-1].x.flatten(1)
    shares = nn.functional.one_hot(x, V).double().mean(0)
    torch.testing.assert_close(shares, p, atol=0.03, rtol=0)


def test_kept_tokens_stay_count_as_fixed_and_are_seen_from_the_first_step():
    model = Mixer((16, 16), LABEL)
    model.weight.data *= 0.2
    known = torch.randint(V, (2, 16, 16), generator=torch.Generator().manual_seed(1))
    keep = torch.zeros(2, 16, 16, dtype=torch.bool)
    keep[0, :8] = True
    keep[1, :, :4] = True
    frames = draw(model, 2, known=known, keep=keep, label=torch.tensor([1, 2]))
    assert all(torch.equal(frame.x[keep], known[keep]) for frame in frames)
    info = frames[-1].info
    assert (info["order"][keep] == 0).all() and (info["order"][~keep] > 0).all()
    assert (info["confidence"][keep] == 1).all() and not info["entropy"][keep].any()
    for row, free in enumerate((128, 192)):  # the schedule is over the rest
        counts = [int((info["order"][row] > step).sum()) for step in range(1, 9)]
        assert counts == [math.floor(free * math.cos(math.pi * step / 16)) for step in range(1, 8)] + [0]
    assert torch.equal(model.calls[0][0], known.masked_fill(~keep, V).flatten(1))
    other = draw(model, 2, known=(known + 1) % V, keep=keep, label=torch.tensor([1, 2]))[-1].x
    assert not torch.equal(other[~keep], frames[-1].x[~keep]), "what is kept matters to the rest"


def test_another_class_edits_what_is_not_kept_and_a_wholly_kept_row_is_left_alone():
    model = Mixer()
    known = draw(model, 2, label=torch.tensor([0, 0]))[-1].x
    keep = torch.ones(2, 4, 4, dtype=torch.bool)
    keep[0, 1:3, 1:3] = False
    edited = draw(model, 2, seeds=[7, 8], known=known, keep=keep, label=torch.tensor([1, 1]))[-1].x
    assert torch.equal(edited[keep], known[keep]) and torch.equal(edited[1], known[1])
    shares = []
    for label in (0, 1):
        cond = {"known": known[:1].expand(100, 4, 4), "keep": keep[:1].expand(100, 4, 4)}
        made = draw(model, 100, label=torch.full((100,), label), **cond)[-1].x[:, 1:3, 1:3]
        shares.append(nn.functional.one_hot(made, V).double().mean(0))
    assert (shares[0] - shares[1]).abs().max() > 0.2, "the class shows"


def test_a_row_is_the_same_alone_and_in_any_batch():
    model = Mixer()
    labels, keep = torch.arange(6) % 3, torch.rand(6, 4, 4, generator=torch.Generator().manual_seed(2)) < 0.3
    known = torch.randint(V, (6, 4, 4), generator=torch.Generator().manual_seed(3))

    def some(rows):
        cond = {"label": labels[rows], "keep": keep[rows], "known": known[rows]}
        return draw(model, len(rows), rows, 1.5, {"top_p": 0.9}, **cond)[-1]

    together, back = some(list(range(6))), some(list(range(5, -1, -1)))
    alone = [some([i]) for i in range(6)]
    for pick in (lambda f: f.x, lambda f: f.info["order"]):
        assert torch.equal(pick(together), torch.cat([pick(one) for one in alone]))
        assert torch.equal(pick(together), pick(back).flip(0))
    assert len(together.x.flatten(1).unique(dim=0)) == 6


def test_guidance_interpolates_logits_and_one_and_zero_ask_the_network_once():
    label = torch.tensor([2])
    for scale, asked in ((1.0, [{"label"}]), (0.0, [set()]), (2.5, [set(), {"label"}])):
        model = Mixer()
        frame = draw(model, 1, guidance=scale, settings={"steps": 1}, label=label)[-1]
        assert [cond for _, cond in model.calls] == asked
        blank = torch.full((1, 16), V)
        without, with_ = model.logits_at(blank), model.logits_at(blank, label=label)
        log = (without + scale * (with_ - without)).log_softmax(-1)
        p = log.gather(2, frame.x.flatten(1)[..., None]).squeeze(-1).exp()
        torch.testing.assert_close(frame.info["confidence"].flatten(1), p)
    plain = Mixer(cond={})
    assert torch.equal(draw(plain, 2, guidance=3.0)[-1].x, draw(plain, 2)[-1].x)


def test_truncation_is_that_of_next_token_and_leaves_the_confidence_alone():
    model = Mixer()
    top = model.logits_at(torch.full((1, 16), V)).argmax(-1)
    for settings in ({"temperature": 0.0}, {"top_k": 1}, {"top_p": 0.0}):
        frame = draw(model, 1, settings={"steps": 1, **settings})[-1]
        assert torch.equal(frame.x.flatten(1), top)
        assert (frame.info["confidence"] < 1).all()


def test_no_more_steps_than_tokens_are_taken():
    model = Mixer((2, 2))
    assert Confidence.make({"steps": 50}).evaluations(model, model.spec) == 4
    assert len(draw(model, 1, settings={"steps": 50})) == 4 and len(model.calls) == 4


def test_models_of_another_interface_are_refused():
    assert isinstance(Mixer(), TokenDenoiser) and not isinstance(Mixer(), NextToken)
    from gencli.models.vae.vqvae import VQVAE

    model = VQVAE.make({"codes": 4, "dim": 2}, Spec(Field("image", (1, 4, 4), vocab=256, range=(-1.0, 1.0))))
    with pytest.raises(GencliError, match="TokenDenoiser"):
        draw(model, 1)
