"""The ladder network: its combinator in closed form, the paper's algorithm written out, which labels it sees, few of them."""

from itertools import pairwise

import pytest
import torch
from tiny import opened

from gencli import recipe
from gencli.bundle import Run
from gencli.core import Classifier, Features, Field, Rng, Spec, Turn
from gencli.errors import GencliError
from gencli.models.discriminative.ladder_network import Combinator, LadderNetwork

SPEC = Spec(Field("image", (1, 3, 4), vocab=256, range=(0.0, 1.0)), {"label": Field("label", (), vocab=4)})


def tiny(spec=SPEC, seed=0, **settings):
    """Random weights in float64."""
    torch.manual_seed(seed)
    model = LadderNetwork.make({"labels": 8, "units": (7, 5), "weights": (3.0, 0.5, 0.2), **settings}, spec).double()
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=g, dtype=torch.float64) * 0.3)
    return model.train()


def batch(n=20, seed=1):
    g = torch.Generator().manual_seed(seed)
    return {"x": torch.rand(n, 1, 3, 4, generator=g).double(), "label": torch.arange(n) % 4}


def labelled(model, made=None, seed=0):
    made = made or batch(40)
    model.initialise(iter([made]), len(made["x"]), Rng.batch("i", seed, total=1))
    return model


def turn(n, *key):
    return Turn("main", 0, 10, Rng.batch("ladder", *key, total=n))


# ------------------------------------------------------------------------------------------------------------ the denoising


def test_without_noise_and_with_a_combinator_that_lets_through_nothing_is_left_to_denoise():
    n, size = 60, 6
    g = torch.Generator().manual_seed(0)
    white = torch.linalg.qr(torch.randn(n, size + 1, generator=g).double() + 1)[0]
    white = white - white.mean(0)
    white = torch.linalg.qr(white)[0][:, :size] * n**0.5  # mean 0, covariance I over the batch
    model = tiny(
        Spec(Field("points", (size,)), {"label": Field("label", (), vocab=6)}), units=(), labels=0, weights=(1.0,)
    )
    with torch.no_grad():
        model.up[0].weight.copy_(torch.linalg.qr(torch.randn(6, 6, generator=g).double())[0])
        for combinator in model.combinators:
            combinator.a.zero_()
            combinator.a[9] = 1.0  # v = 1, μ = 0
        costs = {}
        for noise in (0.0, 0.3):
            drawn = [noise * torch.randn(n, size, generator=g).double() for _ in range(2)]
            costs[noise] = model.costs(model.climb(white), model.descend(model.climb(white, drawn)))
    assert costs[0.0].max() < 1e-15 and costs[0.3].min() > 0.05


def test_the_best_combinator_of_gaussians_is_the_posterior_mean():
    mean, s, noise = 0.7, 1.3, 0.4
    combinator = Combinator(3).double()
    with torch.no_grad():
        combinator.a.zero_()
        combinator.a[4], combinator.a[9] = mean, s**2 / (s**2 + noise**2)
        noisy = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)).double()
        made = combinator(noisy, torch.randn(50, 3).double())
    torch.testing.assert_close(made, (mean * noise**2 + noisy * s**2) / (s**2 + noise**2))
    z = mean + s * torch.randn(200_000, 3, generator=torch.Generator().manual_seed(1)).double()
    seen = z + noise * torch.randn(200_000, 3, generator=torch.Generator().manual_seed(2)).double()
    with torch.no_grad():
        errors = []
        for shift in (0.0, 0.2, -0.2):
            combinator.a[9] = s**2 / (s**2 + noise**2) + shift
            errors.append(float((combinator(seen, seen) - z).square().mean()))
    assert errors[0] < min(errors[1:])
    assert errors[0] == pytest.approx(s**2 * noise**2 / (s**2 + noise**2), rel=0.01)


# ------------------------------------------------------------------------------------------------- the algorithm written out


def normalised(z):
    return (z - z.mean(0)) / (z.var(0, correction=0) + 1e-10).sqrt()


def written_out(model, x, label, turn_):
    """The paper's algorithm 1, its figures and equations, line by line."""
    count, last = len(x), len(model.up)
    draw = model._noise

    def encoder(items, noise):
        h = items.flatten(1) + noise[0]
        zs, raws = [h], [None]
        for i in range(1, last + 1):
            raw = h @ model.up[i - 1].weight.T
            z = normalised(raw) + noise[i]
            z_plus = z + model.shift[i - 1]
            h = torch.clamp(z_plus, min=0) if i < last else torch.softmax(model.gain * z_plus, 1)
            zs, raws = [*zs, z], [*raws, raw]
        return zs, raws, h

    silent = [torch.zeros(1).double()] * (last + 1)
    clean, raws, _ = encoder(x, silent)
    noisy, _, y = encoder(x, draw(turn_.rng.at("unlabelled"), count))
    total, above = 0.0, y
    for i in range(last, -1, -1):
        u = normalised(above)
        a1, a2, a3, a4, a5, a6, a7, a8, a9, a10 = model.combinators[i].a
        mu = a1 * torch.sigmoid(a2 * u + a3) + a4 * u + a5
        v = a6 * torch.sigmoid(a7 * u + a8) + a9 * u + a10
        z_hat = (noisy[i] - mu) * v + mu
        scaled = z_hat if i == 0 else (z_hat - raws[i].mean(0)) / (raws[i].var(0, correction=0) + 1e-10).sqrt()
        weight = (3.0, 0.5, 0.2, 0.2)[i]
        total = total + weight / (count * clean[i].shape[1]) * (clean[i] - scaled).square().sum()
        above = z_hat @ model.down[i - 1].weight.T if i else above
    items, target = label
    told = encoder(items, draw(turn_.rng.at("labelled"), count))[2]
    return total - told.log().gather(1, target[:, None]).mean()


def test_the_loss_and_its_gradient_are_those_of_the_algorithm_written_out():
    model = labelled(tiny())
    made = batch()
    at = (turn(20).rng.at("labelled").stratified(20) * 8).long()
    naive = written_out(model, made["x"], (model.labelled_x[at], model.labelled_y[at]), turn(20))
    loss = model.loss(made, turn(20))["loss"]
    torch.testing.assert_close(loss, naive, rtol=1e-11, atol=0)
    ours, theirs = (torch.autograd.grad(value, list(model.parameters())) for value in (loss, naive))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
        assert a.abs().max() > 0


# --------------------------------------------------------------------------------------------------------------- the labels


def test_as_many_of_each_class_are_labelled_and_no_other_label_is_looked_at():
    made = batch(40)
    made["label"] = made["label"].sort().values
    model = labelled(tiny(), made)
    assert model.labelled_y.bincount().tolist() == [2, 2, 2, 2]
    for x, y in zip(model.labelled_x, model.labelled_y, strict=True):
        (place,) = (made["x"] == x).flatten(1).all(1).nonzero().flatten().tolist()
        assert made["label"][place] == y
    again = labelled(tiny(), made)
    assert torch.equal(again.labelled_x, model.labelled_x)
    wrong = {**batch(), "label": (batch()["label"] + 1) % 4}
    assert torch.equal(model.loss(batch(), turn(20))["loss"], model.loss(wrong, turn(20))["loss"])
    every = tiny(labels=0)
    assert every.loss(batch(), turn(20))["loss"] != every.loss(wrong, turn(20))["loss"]


def test_each_labelled_item_comes_as_often_in_a_step():
    seen = (turn(24).rng.at("labelled").stratified(24) * 8).long()
    assert seen.bincount(minlength=8).tolist() == [3] * 8


def test_labels_that_are_not_there_are_refused_with_their_class():
    with pytest.raises(GencliError, match="labels is 9, which 4 classes cannot share evenly"):
        tiny(labels=9)
    few = batch(10)
    with pytest.raises(GencliError, match="3 of each class, and class 2 has 2 items") as caught:
        labelled(tiny(labels=12), few)
    assert "--labels 8" in caught.value.hint
    with pytest.raises(GencliError, match="ladder-network needs data with class labels"):
        LadderNetwork.make({}, Spec(SPEC.x))
    with pytest.raises(GencliError, match="5 weights for the 4 layers 12, 7, 5, 4"):
        tiny(weights=(1.0,) * 5)
    with pytest.raises(GencliError, match="was given 1 at a time"):
        labelled(tiny()).loss(batch(1), turn(1))


def accuracy_on_digits(weights, labels=30):
    """The share of digits that it tells after 300 steps with a few labels."""
    split = opened({"name": "digits", "image_size": 8}).split("train")
    raw = split.batch(torch.arange(len(split)))
    x, label = raw["x"].float() / 255, raw["label"]
    torch.manual_seed(0)
    spec = Spec(Field("image", (1, 8, 8), vocab=17, range=(0.0, 1.0)), {"label": Field("label", (), vocab=10)})
    model = LadderNetwork.make({"labels": labels, "units": (64, 32), "noise": 0.3, "weights": weights}, spec).train()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    model.initialise(iter([{"x": x[order], "label": label[order]}]), len(x), Rng.batch("i", 0, total=1))
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-3, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 300)
    for step in range(300):
        rows = torch.randint(len(x), (100,), generator=torch.Generator().manual_seed(step))
        optimiser.zero_grad()
        rng = Rng.batch("t", step, 0, total=100)
        model({"x": x[rows], "label": label[rows]}, Turn("main", step, 300, rng))["loss"].backward()
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        return float((model.eval().class_logits(x).argmax(1) == label).float().mean())


def test_unlabelled_digits_help_where_few_have_labels():
    alone, ladder = accuracy_on_digits([0.0]), accuracy_on_digits([0.0, 0.0, 0.0, 1.0])
    assert ladder > 0.83 > alone, "with the denoising cost of the top layer, the paper's Γ-model, and without any"


# -------------------------------------------------------------------------------------------------------------- the classes


def test_classes_are_told_without_noise_and_each_item_by_itself():
    model = labelled(tiny())
    for norm in model.norms:
        norm.momentum = 0.1
    for i in range(80):
        model.loss(batch(80, i), turn(80, i))
    training = model.climb(batch(400, 7)["x"]).logits
    model.eval()
    assert isinstance(model, Classifier) and isinstance(model, Features)
    x = batch(400, 7)["x"]
    logits = model.class_logits(x)
    torch.testing.assert_close(model.class_logits(x[:3]), logits[:3])
    assert (logits - training).abs().mean() < 0.1 * training.abs().mean(), "running statistics are those of the batches"
    assert model.features(x).shape == (400, 5)
    with pytest.raises(GencliError, match="ladder-network was trained on clean images"):
        model.class_logits(x, torch.tensor(0.5))


def test_the_papers_network_has_the_papers_layers():
    with torch.device("meta"):
        spec = Spec(Field("image", (1, 28, 28), vocab=256, range=(0.0, 1.0)), {"label": Field("label", (), vocab=10)})
        model = Run.build(
            {**recipe.load("ladder-network-mnist"), "codecs": [{"name": "pixels", "range": "0,1"}]}, spec
        ).model
    sizes = (784, 1000, 500, 250, 250, 250, 10)
    weights = sum(a * b for a, b in pairwise(sizes))
    assert sum(p.numel() for p in model.parameters()) == 2 * weights + sum(sizes[1:]) + 10 + 10 * sum(sizes)
    assert model.lambdas == [1000, 10, 0.1, 0.1, 0.1, 0.1, 0.1]
