"""pix2pix: the released networks and their skips, patches of 70 pixels, both losses by other formulas, ablations, images."""

from itertools import pairwise

import pytest
import torch
from tiny import opened, smoke, trainer
from torch.nn import functional as F

from gencli import recipe
from gencli.bundle import Run
from gencli.config import merge
from gencli.core import Field, Rng, Spec, Turn
from gencli.errors import GencliError
from gencli.evaluation.conditions import conditions_for, encoded
from gencli.evaluation.generate import Request, samples
from gencli.metrics.reconstruction import psnr
from gencli.models.gan.pix2pix import Pix2Pix
from gencli.training.session import resolve

SMALL = {"name": "pix2pix-generator", "width": 4, "downsamples": 3, "noisy": 1}
PATCH = {"name": "patch-discriminator", "width": 4, "layers": 1, "norm": "instance"}


def images(side, channels=1, given=1):
    def field(planes):
        return Field("image", (planes, side, side), vocab=256, range=(-1.0, 1.0))

    return Spec(field(channels), {"image": field(given), "label": Field("label", (), vocab=3)})


def made(side=8, seed=0, given=1, **settings):
    torch.manual_seed(seed)
    model = Pix2Pix.make({"generator": SMALL, "discriminator": PATCH, **settings}, images(side, given=given)).double()
    g = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.data.add_(torch.randn(p.shape, generator=g, dtype=p.dtype), alpha=0.2)
    return model


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def turn(phase, n=4, key=0):
    return Turn(phase, 0, 10, Rng.batch("t", key, total=n))


def count(module):
    return sum(p.numel() for p in module.parameters())


# ---------------------------------------------------------------------------------------------------------------- networks


def test_the_defaults_are_the_released_networks_and_256_pixels_have_30_by_30_patches():
    with torch.device("meta"):
        model = Pix2Pix.make({}, images(256, 3, 3))
        pair = torch.empty(1, 6, 256, 256)
        assert model.discriminator(pair).shape == (1, 1, 30, 30)
    down, up = [3, 64, 128, 256, 512, 512, 512, 512, 512], [512, 1024, 1024, 1024, 1024, 512, 256, 128]
    made_by = [512, 512, 512, 512, 256, 128, 64, 3]
    weights = 16 * sum(a * b for a, b in [*pairwise(down), *zip(up, made_by, strict=True)])
    assert count(model.generator) == weights + 2 * (sum(down[2:-1]) + sum(made_by[:-1])) + 3 == 54_413_955
    assert count(model.discriminator) == 2_768_705
    assert model.generator.drops == [(512, 2, 2), (512, 4, 4), (512, 8, 8)]
    table = resolve(recipe.load("pix2pix-facades"))
    train = table["train"]
    assert (train["lr"], train["betas"], train["batch_size"], train["steps"]) == (2e-4, [0.5, 0.999], 1, 200 * 400)
    assert (table["model"]["l1"], table["data"]["name"]) == (100, "pairs")


def test_a_score_sees_70_by_70_pixels():
    settings = {"generator": {**SMALL, "downsamples": 2}, "discriminator": {**PATCH, "layers": 3, "norm": "none"}}
    model = Pix2Pix.make(settings, images(128)).double()
    for p in model.discriminator.parameters():
        p.data = p.data.abs() + 1e-3  # nothing cancels
    x, given = torch.ones(2, 1, 1, 128, 128, dtype=torch.float64).requires_grad_()
    scores = model.patches(x, given).unflatten(1, (14, 14))
    for seen in torch.autograd.grad(scores[0, 7, 7], (x, given)):
        for axis in (0, 1):
            places = seen[0, 0].sum(axis).nonzero().flatten()
            assert len(places) == 70 and int(places[-1] - places[0]) == 69


def nested(net, x, factors, depth=0):
    """The released code's blocks within blocks, its batch normalisation by the batch at hand, for a batch of one."""

    def norm(layer, h):
        return F.batch_norm(h, None, None, layer.weight, layer.bias, training=True)

    deepest = len(net.down) - 1
    h = net.down[depth](F.leaky_relu(x, 0.2) if depth else x)
    if 0 < depth < deepest:
        h = norm(net.down_norm[depth - 1], h)
    below = h if depth == deepest else nested(net, h, factors, depth + 1)
    if depth == 0:
        return net.last(F.relu(below))
    j = deepest - depth
    back = norm(net.up_norm[j], net.up[j](F.relu(below)))
    return torch.cat([x, back * factors[j] if j < len(factors) else back], 1)


def test_skips_norms_and_dropout_are_where_the_released_blocks_have_them():
    model = made(16, given=2, generator={**SMALL, "downsamples": 4, "noisy": 2})
    net, given = model.generator, normal(3, 2, 16, 16)
    z = model.prior(3, Rng.batch("z", total=3)).double()
    assert net.numbers == z.shape[1] == 16 * 2 * 2 + 8 * 4 * 4
    whole = net(given, 1 + z)
    for i in range(3):
        first, second = (1 + z[i : i + 1]).split([16 * 4, 8 * 16], 1)
        factors = [first.reshape(1, 16, 2, 2), second.reshape(1, 8, 4, 4)]
        torch.testing.assert_close(whole[i : i + 1], nested(net, given[i : i + 1], factors))
    torch.testing.assert_close(model.decode(z, image=given), whole.tanh())
    assert not torch.allclose(net(given), whole), "and what is dropped is missed"
    torch.testing.assert_close(net(given), net(given, torch.ones_like(z)))


# ------------------------------------------------------------------------------------------------------------------ losses


@pytest.mark.parametrize("objective", ["non-saturating", "least-squares"])
def test_both_losses_are_their_formulas_and_each_phase_teaches_its_own_network(objective):
    model = made(objective=objective, adversarial=0.7, l1=30.0)
    x, given = normal(4, 1, 8, 8).tanh(), normal(4, 1, 8, 8, seed=1).tanh()

    def towards(scores, target):
        wanted = torch.full_like(scores, target)
        if objective == "least-squares":
            return F.mse_loss(scores, wanted) / 2
        return F.binary_cross_entropy_with_logits(scores, wanted)

    for phase, taught, other in (
        ("discriminator", model.discriminator, model.generator),
        ("generator", model.generator, model.discriminator),
    ):
        model.zero_grad()
        other.requires_grad_(False)
        losses = model({"x": x, "image": given}, turn(phase))
        painted = model.decode(model.prior(4, turn(phase).rng).double(), image=given)
        fake = model.discriminator(torch.cat([given, painted], 1))
        if phase == "discriminator":
            real = model.discriminator(torch.cat([given, x], 1))
            expected = (towards(real, 1.0) + towards(fake, 0.0)) / 2
            middle = 0.5 if objective == "least-squares" else 0.0
            assert float(losses["real"]) == pytest.approx(float((real > middle).double().mean()))
            assert float(losses["fake"]) == pytest.approx(float((fake < middle).double().mean()))
        else:
            expected = 0.7 * towards(fake, 1.0) + 30 * F.l1_loss(painted, x)
            torch.testing.assert_close(losses["l1"], F.l1_loss(painted, x).detach())
            torch.testing.assert_close(losses["adversarial"], towards(fake, 1.0).detach())
        torch.testing.assert_close(losses["loss"], expected)
        losses["loss"].backward()
        other.requires_grad_(True)
        assert all(p.grad is not None for p in taught.parameters()) and all(p.grad is None for p in other.parameters())


def test_a_discriminator_that_ignores_the_image_is_the_one_that_is_not_told():
    whole, alone = made(seed=1), made(seed=1, told=False)
    state = whole.state_dict()
    first = "discriminator.body.0.weight"
    state[first][:, 0] = 0
    alone.load_state_dict({**state, first: state[first][:, 1:]})
    batch = {"x": normal(4, 1, 8, 8).tanh(), "image": normal(4, 1, 8, 8, seed=1).tanh()}
    for phase in ("discriminator", "generator"):
        torch.testing.assert_close(whole(batch, turn(phase))["loss"], alone(batch, turn(phase))["loss"])
    unlike = {**batch, "image": batch["image"].flip(0)}
    assert not torch.allclose(
        made(seed=1).patches(batch["x"], batch["image"]), made(seed=1).patches(batch["x"], unlike["image"])
    ), "the one that is told hears of it"


def test_the_difference_alone_finds_the_median_of_what_goes_with_an_image():
    torch.manual_seed(0)
    net = {"name": "pix2pix-generator", "width": 4, "downsamples": 2, "noisy": 0}
    model = Pix2Pix.make({"adversarial": 0.0, "generator": net, "discriminator": PATCH}, images(8))
    assert [phase.name for phase in model.phases()] == ["generator"]
    sign = torch.tensor([1.0, -1.0]).repeat(50)
    rare = torch.arange(100) % 10 < 4  # of both signs alike: four times in ten
    value = torch.where(rare, -0.5, 0.5) * sign
    given, x = (rows[:, None, None, None].expand(-1, 1, 8, 8).contiguous() for rows in (sign, value))
    optimiser = torch.optim.Adam(model.generator.parameters(), 0.02)
    for step in range(150):
        optimiser.param_groups[0]["lr"] = 0.02 * (1 - step / 150)
        loss = model({"x": x, "image": given}, turn("generator", 100))["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    found = model.decode(model.prior(2, Rng.rows([0, 1])), image=given[:2]).detach().mean((1, 2, 3))
    assert found.tolist() == pytest.approx([0.5, -0.5], abs=0.05), "not 0.1 and -0.1, the means"


# ------------------------------------------------------------------------------------------------------------------- images


def test_half_of_the_numbers_are_dropped_by_the_seed_and_none_at_temperature_zero():
    model = made(16, generator={**SMALL, "downsamples": 4, "width": 16, "noisy": 3}).float()
    z = model.prior(8, Rng.rows(range(8)))
    assert set(z.unique().tolist()) == {-1.0, 1.0} and abs(float(z.mean())) < 0.02
    torch.testing.assert_close(model.prior(1, Rng.rows([5]))[0], z[5])
    given = normal(1, 1, 16, 16).float().tanh().expand(8, -1, -1, -1)
    painted = model.decode(z, image=given)
    assert painted.std(0).mean() > 0.01, "one image is painted in more ways than one"
    torch.testing.assert_close(painted[3:4], model.decode(z[3:4], image=given[:1]))
    torch.testing.assert_close(model.decode(0 * z, image=given)[0], model.generator(given)[0].tanh())


def test_edges_are_painted_nearer_to_their_digits_than_copies_and_than_the_mean_digit():
    over = {
        "model": {"generator": {"width": 16}, "discriminator": {"width": 16}},
        "train": {"steps": 60, "batch_size": 16, "lr": 2e-3},
    }
    table = merge(recipe.load("pix2pix"), over)
    one, data = trainer(table), opened(resolve(table)["data"])
    test = data.split("test").batch(torch.arange(64))
    mean = torch.from_numpy(data.split("train").x).float().mean(0).round().byte()

    def score(painted):
        return float(psnr(test["x"], painted).mean())

    def painted(given):
        return samples(one.run, Request(range(64), encoded(one.run, {"image": given})))

    with one.average.worn_by(one.run.model):
        untrained = score(painted(test["image"]))
    for _ in one:
        pass
    with one.average.worn_by(one.run.model):
        right, wrong = score(painted(test["image"])), score(painted(test["image"].roll(1, 0)))
    bar = max(score(test["image"].clone()), score(mean.expand_as(test["x"]))) + 3
    assert right > bar > max(wrong, untrained), (right, bar, wrong, untrained)


def test_a_run_paints_from_its_held_out_edges_and_any_set_of_images_has_some(tmp_path):
    table = resolve(merge(smoke("pix2pix"), {"data": {"name": "digits", "image_size": 8}}))
    assert {key: table["data"][key] for key in ("name", "of", "image_size")} == {
        "name": "edges",
        "of": "digits",
        "image_size": "8",
    }
    folder = resolve({"model": {"name": "pix2pix"}, "data": {"name": "folder", "path": "x"}})["data"]
    assert (folder["name"], folder["path"]) == ("pairs", "x")
    run = Run.build(table, opened(table["data"]).spec)
    run.model.eval()
    given = conditions_for(run, [3, 4])
    edges = opened(table["data"]).split("test").cond["image"][3:5]
    torch.testing.assert_close(given["image"], edges.float() / 127.5 - 1)
    assert list(given) == ["image"], "classes are left aside"
    assert run.sample(Rng.rows([3, 4]), given)["x"].shape == (2, 1, 8, 8)
    with pytest.raises(GencliError, match="none is given") as error:
        run.sample(Rng.rows([3, 4]))
    assert "--input" in error.value.hint


def test_data_that_are_no_pairs_are_refused():
    with pytest.raises(GencliError, match="the data are no pairs"):
        Pix2Pix.make({}, Spec(images(8).x))
    with pytest.raises(GencliError, match="images of the same sides"):
        Pix2Pix.make({}, Spec(images(8).x, images(16).cond))
    with pytest.raises(GencliError, match="image size 8×8 is not divisible by the network's stride 256"):
        Pix2Pix.make({}, images(8))
