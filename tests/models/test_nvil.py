"""NVIL: its gradient against one enumerated over all latents, bounds against the enumerated log p, baselines, and digits."""

import copy
import itertools
import math

import pytest
import torch
from tiny import opened, smoke, trainer

from gencli.config import merge
from gencli.core import Autoencoder, Field, LatentVariable, Likelihood, Rng, Spec, Turn
from gencli.errors import GencliError
from gencli.models.vae.nvil import NVIL, log_bernoulli, signals

SPEC = Spec(Field("image", (1, 2, 3), vocab=2, range=(0.0, 1.0)))
X = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 0.0], dtype=torch.float64).view(1, 1, 2, 3)
LEARNED = ("encoder.", "up.", "decoder.", "down.", "top")


def tiny(units=(5, 3), seed=0, **settings):
    """Random weights in float64, c and v as for plain constants: any c is right, v = 1 scales nothing."""
    torch.manual_seed(seed)
    model = NVIL.make({"units": units, "baseline": 7, **settings}, SPEC).double()
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=g, dtype=torch.float64) * 0.7)
        for net in model.baselines:
            net[2].weight.mul_(0.2)
    model.centre.fill_(0.4)
    return model


def turn(n, *key):
    return Turn("main", 0, 10, Rng.batch("nvil", *key, total=n))


def enumerated(model, x=X):
    """log p(x, h) and log q(h|x) of all h, `(256,)` for eight bits."""
    units = model.config.units
    every = torch.tensor(list(itertools.product([0.0, 1.0], repeat=sum(units))), dtype=torch.float64)
    hidden = list(every.split(list(units), 1))
    bits = x.expand(len(every), *x.shape[1:])
    inputs = [bits - model.centre, *hidden[:-1]]
    nets = [model.encoder, *model.up]
    log_q = sum(log_bernoulli(net(below), h) for net, below, h in zip(nets, inputs, hidden, strict=True))
    return model.log_joint(bits, hidden).sum(0), log_q, hidden


def learned(model):
    return {name: p for name, p in model.named_parameters() if name.startswith(LEARNED)}


def gradient(model, value):
    made = torch.autograd.grad(value, list(learned(model).values()))
    return torch.cat([part.flatten() for part in made])


def reinforce(model, x, rng):
    """−E[l] by the plain score function: the whole signal for every layer, no baseline, no scale."""
    hidden, log_q = model.infer(model.bits(x), model._uniform(rng.at("posterior"), len(x)))
    log_p = model.log_joint(model.bits(x), hidden)
    signal = (log_p.sum(0) - log_q.sum(0)).detach()
    return -(log_p.sum(0) + signal * log_q.sum(0)).mean()


@pytest.mark.parametrize(("units", "autoregressive"), [((8,), False), ((5, 3), False), ((8,), True)])
def test_the_mean_of_100000_estimates_is_the_enumerated_gradient_with_less_variance_than_reinforce(
    units, autoregressive
):
    model = tiny(units, autoregressive=autoregressive)
    log_p, log_q, _ = enumerated(model)
    exact = -gradient(model, (log_q.exp() * (log_p - log_q)).sum())
    n, batches = 1000, 100
    x = X.expand(n, 1, 2, 3)
    model.train().loss({"x": x}, turn(n, "first"))
    model.signal.decay = 0.0
    model.signal.update()
    model.signal.variance.fill_(1.0)
    ours, plain = [], []
    for i in range(batches):
        ours.append(gradient(model, model.loss({"x": x}, turn(n, i))["loss"]))
        plain.append(gradient(model, reinforce(model, x, turn(n, i).rng)))
    made, naive = torch.stack(ours), torch.stack(plain)
    error = made.std(0) / math.sqrt(batches)
    off = ((made.mean(0) - exact).abs() / error.clamp(min=1e-12)).sort().values
    assert off[-1] < 4 and off[int(0.97 * len(off))] < 3, (
        "three standard errors, of so many numbers a few may pass them"
    )
    assert float(made.var(0).sum()) < 0.5 * float(naive.var(0).sum())
    along = exact / exact.norm()
    whole = made @ along
    assert abs(float(whole.mean() - exact.norm())) < 3 * float(whole.std()) / math.sqrt(batches)
    assert float(exact.norm()) > 30 * float(whole.std()) / math.sqrt(batches), "zero is far away"


def test_each_layer_learns_from_what_it_can_change_and_a_large_variance_divides():
    log_p, log_q = torch.randn(4, 5).double(), torch.randn(3, 5).double()
    made = signals(log_p, log_q)
    for i in range(3):
        torch.testing.assert_close(made[i], log_p[i:].sum(0) - log_q[i:].sum(0))
    model = tiny()
    x = X.expand(64, 1, 2, 3)
    model.signal.mean.copy_(torch.tensor([-3.0, -1.0]))
    names = [name for name in learned(model) if name.startswith(("encoder.", "up."))]
    parameters = [learned(model)[name] for name in names]
    grads = []
    for variance in (0.3, 1.0, 4.0):
        model.signal.variance.fill_(variance)
        grads.append(torch.autograd.grad(model.loss({"x": x}, turn(64))["loss"], parameters))
    for small, one, four in zip(*grads, strict=True):
        torch.testing.assert_close(small, one)
        torch.testing.assert_close(four, one / 2)
    value = model.loss({"x": x}, turn(64))["each"]
    hidden, q = model.infer(model.bits(x), model._uniform(turn(64).rng.at("posterior"), 64))
    torch.testing.assert_close(value, q.sum(0) - model.log_joint(model.bits(x), hidden).sum(0))


def test_mean_and_variance_run_over_whole_batches_however_they_are_cut():
    for parts in (1, 4):
        model = tiny().train()
        model.signal.mean.copy_(torch.tensor([-3.0, -1.0]))
        model.signal.variance.copy_(torch.tensor([2.0, 5.0]))
        raw = torch.randn(2, 40, generator=torch.Generator().manual_seed(0)).double() * 3 - 5
        for part in raw.chunk(parts, 1):
            model.signal.see(part)
        model.after_step(turn(40))
        mean, variance = raw.mean(1), raw.var(1, correction=0)
        torch.testing.assert_close(model.signal.mean, 0.8 * torch.tensor([-3.0, -1.0]).double() + 0.2 * mean)
        torch.testing.assert_close(model.signal.variance, 0.8 * torch.tensor([2.0, 5.0]).double() + 0.2 * variance)


@pytest.mark.parametrize("autoregressive", [False, True])
def test_bounds_are_below_the_enumerated_log_p_and_close_with_draws(autoregressive):
    model = tiny(autoregressive=autoregressive)
    log_p, log_q, _ = enumerated(model)
    exact, elbo = (float(value.detach()) for value in (log_p.logsumexp(0), (log_q.exp() * (log_p - log_q)).sum()))
    assert isinstance(model, Likelihood) and model.estimate(1) == "ELBO" and model.estimate(8) == "IWAE-8"
    n = 20_000
    with torch.no_grad():
        bounds = [model.log_prob(X.expand(n, 1, 2, 3), Rng.batch("b", total=n), samples=k) for k in (1, 4, 32)]
    assert abs(float(bounds[0].mean()) - elbo) < 3 * float(bounds[0].std()) / math.sqrt(n)
    means = [float(bound.mean()) for bound in bounds]
    assert elbo < exact and means[0] < means[1] < means[2] < exact and exact - means[2] < 0.2 * (exact - elbo)
    every = torch.tensor(list(itertools.product([0.0, 1.0], repeat=6)), dtype=torch.float64).view(-1, 1, 1, 2, 3)
    total = torch.stack([enumerated(model, x)[0].logsumexp(0) for x in every]).logsumexp(0)
    assert abs(float(total.detach())) < 1e-10, "probabilities of all x add up to one"


@pytest.mark.parametrize("autoregressive", [False, True])
def test_samples_come_from_the_top_down_and_codes_go_back(autoregressive):
    model = tiny(autoregressive=autoregressive).eval()
    assert isinstance(model, LatentVariable) and isinstance(model, Autoencoder)
    _, _, hidden = enumerated(model)
    logits = model.top.expand_as(hidden[1]).clone()
    for later, before in itertools.product(range(3), repeat=2):
        if autoregressive and before < later:
            logits[:, later] += model.top_before[later, before] * hidden[1][:, before]
    above = log_bernoulli(logits, hidden[1])
    with torch.no_grad():
        p = (above + log_bernoulli(model.down[0](hidden[1]), hidden[0])).exp()
        n = 40_000
        h = model.prior(n, Rng.batch("s", total=n))
        assert ((h.mean(0) - (p[:, None] * hidden[0]).sum(0)).abs() < 4 * 0.5 / math.sqrt(n)).all()
        pair = (p * hidden[0][:, 0] * hidden[0][:, 1]).sum()
        assert abs(float((h[:, 0] * h[:, 1]).mean() - pair)) < 4 * 0.5 / math.sqrt(n)
        assert torch.equal(model.prior(3, Rng.rows([0, 1, 2]))[:2], model.prior(2, Rng.rows([0, 1])))
        z = model.encode(X.expand(3, 1, 2, 3))
        assert z.dtype == torch.long and z.shape == (3, 5)
        torch.testing.assert_close(model.decode(z), model.decoder(z.double()).sigmoid())


def test_digits_are_learnt_beyond_their_pixels_means_as_they_are_not_without_baselines():
    digits = opened({"name": "digits", "image_size": 8})
    codecs = [{"name": "binarise", "by": "threshold"}]
    made = {}
    for name, settings in {"nvil": {"baseline": 30}, "none": {"baseline": 0, "decay": 0.9999}}.items():
        over = {
            "model": {"units": [24, 8], **settings, "encoder": {"layers": 0}, "decoder": {"layers": 0}},
            "train": {"steps": 300, "batch_size": 64, "lr": 1e-2, "ema": 0},
        }
        one = trainer(merge({**smoke("nvil"), "codecs": codecs}, over))
        untrained = copy.deepcopy(one.model)
        if name == "none":
            one.model.signal.mean.zero_()
        for _ in range(300):
            one.take_step()
        assert float(one.model.signal.variance.max()) > 1, "a signal that is scaled"
        x = one.run.encode({"x": digits.split("test").batch(torch.arange(150))["x"]}, Rng.batch(total=150))["x"]
        with torch.no_grad():
            bounds = [model.eval().log_prob(x, Rng.batch("t", total=150)).mean() for model in (one.model, untrained)]
        made[name] = float(bounds[0])
    p = one.model.centre.clamp(0.01, 0.99)
    pixels = float((x * p.log() + (1 - x) * (1 - p).log()).flatten(1).sum(1).mean())
    assert made["nvil"] > pixels + 1.5 > made["none"] > pixels > float(bounds[1]) + 5, (made, pixels, bounds)


def test_data_and_layers_that_do_not_fit_are_refused():
    with pytest.raises(GencliError, match="needs data of two values, got image of 17 values"):
        NVIL.make({}, Spec(Field("image", (1, 8, 8), vocab=17, range=(-1.0, 1.0))))
    with pytest.raises(GencliError, match="units is 4,0"):
        NVIL.make({"units": (4, 0)}, SPEC)
