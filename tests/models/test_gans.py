"""GANs: optimal discriminators in closed form, f-divergences, clipping, spectral norms, penalties, classes, counts."""

import math

import pytest
import torch
from tiny import smoke, trainer
from torch import nn
from torch.nn.functional import softplus

from gencli.bundle import Run
from gencli.core import Field, Rng, Spec, Turn
from gencli.errors import GencliError
from gencli.models.gan._objectives import DIVERGENCES, OBJECTIVES
from gencli.models.gan.cgan import CGan
from gencli.models.gan.dcgan import DcGan
from gencli.models.gan.f_gan import FGan
from gencli.models.gan.gan import Gan
from gencli.models.gan.lsgan import LsGan
from gencli.models.gan.sngan import SnGan
from gencli.models.gan.wgan import WGan
from gencli.nn.spectral import Spectral, settle

PLANE = Spec(Field("points", (2,)))
LABELLED = Spec(PLANE.x, {"label": Field("label", (), vocab=3)})
IMAGES = Spec(Field("image", (1, 16, 16), vocab=256, range=(-1.0, 1.0)))
MLP = {"name": "mlp", "width": 16, "layers": 2, "activation": "tanh"}
P = torch.tensor([0.1, 0.4, 0.5], dtype=torch.float64)
Q = torch.tensor([0.3, 0.3, 0.4], dtype=torch.float64)


def made(kind=Gan, spec=PLANE, seed=0, **settings):
    torch.manual_seed(seed)
    return kind.make({"latent": 2, "generator": MLP, "critic": MLP, **settings}, spec)


def points(n, seed=0, dtype=torch.float64):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def turn(phase="critic", n=8, key=0):
    return Turn(phase, 0, 10, Rng.batch("t", key, total=n))


def js(p, q):
    middle = (p + q) / 2
    return ((p * (p / middle).log()).sum() + (q * (q / middle).log()).sum()) / 2


# ------------------------------------------------------------------------------------------------------- optimal discriminators


def best_of(data, samples, p, q):
    """Outputs V that minimise E_p data(V) + E_q samples(V), by Newton's method, and the least loss."""
    v = torch.zeros_like(p, requires_grad=True)
    for _ in range(200):
        loss = (p * data(v) + q * samples(v)).sum()
        (slope,) = torch.autograd.grad(loss, v, create_graph=True)
        (bend,) = torch.autograd.grad(slope.sum(), v)
        v = (v - slope / bend.clamp(min=1e-3)).detach().requires_grad_()
    return v.detach(), float(loss.detach())


def test_the_best_discriminator_is_the_share_of_data_and_the_value_their_jensen_shannon_divergence():
    by = OBJECTIVES["non-saturating"]
    v, loss = best_of(by.data, by.samples, P, Q)
    torch.testing.assert_close(v.sigmoid(), P / (P + Q), rtol=0, atol=1e-8)
    assert -loss == pytest.approx(-math.log(4) + 2 * float(js(P, Q)), abs=1e-8)
    least = -best_of(by.data, by.samples, P, P)[1]
    assert least == pytest.approx(-1.386294, abs=1e-6) and least < -loss, "least where samples are as data"


def test_generators_are_taught_by_the_size_of_a_gradient_of_one_sign():
    v = torch.linspace(-4, 4, 9, dtype=torch.float64, requires_grad=True)
    d = v.detach().sigmoid()
    for name, size in (("non-saturating", 1 - d), ("minimax", d)):
        (slope,) = torch.autograd.grad(OBJECTIVES[name].generator(v).sum(), v)
        torch.testing.assert_close(-slope, size)


@pytest.mark.parametrize("name", ["least-squares", "hinge"])
def test_other_objectives_are_least_at_their_papers_discriminators(name):
    by = OBJECTIVES[name]
    if name == "least-squares":
        v, _ = best_of(by.data, by.samples, P, Q)
        torch.testing.assert_close(v, P / (P + Q))
        return
    grid = torch.linspace(-2, 2, 401, dtype=torch.float64)
    loss = P[:, None] * by.data(grid) + Q[:, None] * by.samples(grid)
    torch.testing.assert_close(grid[loss.argmin(1)], (P - Q).sign())


@pytest.mark.parametrize("name", DIVERGENCES)
def test_bounds_of_f_divergences_are_tight_at_the_best_output_and_only_there(name):
    f = DIVERGENCES[name]
    exact = (Q * f.value(P / Q)).sum()
    best = f.best(P / Q)
    at_best = (P * best - Q * f.conjugate(best)).sum()
    assert float(at_best) == pytest.approx(float(exact), abs=1e-6)
    for moved in (best * 0.9, best - 0.05, best + 0.02):
        bound = (P * moved - Q * f.conjugate(moved)).sum()
        assert torch.isnan(bound) or bound < exact - 1e-6
    v, loss = best_of(f.objective(True).data, f.objective(True).samples, P, Q)
    assert -loss == pytest.approx(float(exact), abs=1e-6)
    torch.testing.assert_close(f.activation(v), best, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_activations_end_inside_the_conjugates_domain_and_large_outputs_stay_finite(name):
    f, v = DIVERGENCES[name], torch.linspace(-6, 6, 25, dtype=torch.float64)
    torch.testing.assert_close(f.of_output(v), f.conjugate(f.activation(v)), rtol=1e-6, atol=1e-9)
    assert torch.isfinite(f.of_output(torch.tensor([-40.0, 40.0]))).all()
    assert (f.activation(v).diff() > 0).all(), "a greater output speaks for data"


def test_the_gan_divergence_is_the_gan():
    v = torch.linspace(-5, 5, 11)
    ours, gan = DIVERGENCES["gan"], OBJECTIVES["minimax"]
    for saturating, theirs in ((True, gan.generator), (False, OBJECTIVES["non-saturating"].generator)):
        by = ours.objective(saturating)
        torch.testing.assert_close(by.data(v), gan.data(v))
        torch.testing.assert_close(by.samples(v), gan.samples(v))
        torch.testing.assert_close(by.generator(v), theirs(v))
    a, b = made(Gan), made(FGan, divergence="gan")
    x = points(8, dtype=torch.float32)
    for phase in ("critic", "generator"):
        torch.testing.assert_close(a({"x": x}, turn(phase))["loss"], b({"x": x}, turn(phase))["loss"], rtol=0, atol=0)


def test_a_trained_discriminator_is_the_share_of_data_between_two_gaussians():
    torch.manual_seed(0)
    line = Spec(Field("points", (1,)))
    net = {"name": "mlp", "width": 32, "layers": 2, "activation": "tanh"}
    model = Gan.make({"latent": 1, "generator": net, "critic": net}, line)
    optimiser = torch.optim.Adam(model.critic.parameters(), 1e-2)
    g = torch.Generator().manual_seed(0)
    for step in range(400):
        optimiser.param_groups[0]["lr"] = 1e-2 * (1 - step / 400)
        x, made = torch.randn(512, 1, generator=g) + 1, torch.randn(512, 1, generator=g) - 1
        loss = model.critic_loss(x, made, Rng.batch(step, total=512))["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    at = torch.linspace(-2.5, 2.5, 51)[:, None]
    found, truth = model.score(at).sigmoid().detach(), (2 * at[:, 0]).sigmoid()
    assert (found - truth).abs().max() < 0.05
    fresh = made_scores = Gan.make({"latent": 1, "generator": net, "critic": net}, line).score(at).sigmoid()
    assert (fresh - truth).abs().max() > 0.3 and made_scores is fresh


# ------------------------------------------------------------------------------------------------------------------ Wasserstein


def test_weights_are_clipped_after_every_step():
    one = trainer({**smoke("wgan"), "train": {**smoke("wgan")["train"], "lr": 0.5}})
    limit = float(torch.tensor(one.model.config.clip))
    for _ in range(6):
        one.take_step()
        sizes = [float(weight.detach().abs().max()) for weight in one.model.critic.parameters()]
        assert max(sizes) <= limit
    assert max(sizes) == pytest.approx(limit), "and a great step reaches it"
    assert max(float(weight.detach().abs().max()) for weight in one.model.generator.parameters()) > limit


def test_the_clipped_critics_gain_grows_as_the_distance_between_lines_and_the_divergence_does_not():
    def gain(apart):
        model = made(WGan, clip=0.05, seed=1)
        optimiser = torch.optim.RMSprop(model.critic.parameters(), 5e-3)
        x, sample = points(256, dtype=torch.float32) * torch.tensor([0.0, 1.0]), points(256, 1, torch.float32)
        sample = sample * torch.tensor([0.0, 1.0]) + torch.tensor([apart, 0.0])
        for _ in range(150):
            loss = model.critic_loss(x, sample, Rng.batch(0, total=256))["loss"]
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            model.after_step(turn())
        slope = model.slope(torch.cat([x, sample])).max()
        return float(-loss.detach() / slope.detach())

    gains = [gain(apart) for apart in (0.5, 1.0, 2.0)]
    assert gains[1] / gains[0] == pytest.approx(2, rel=0.05) and gains[2] / gains[1] == pytest.approx(2, rel=0.05), (
        gains
    )
    assert 0.5 < gains[1] < 1.001, "of a critic of slope one at most the distance itself"
    lines = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])  # two lines that never meet, however near
    entropy = sum(0.5 * (p[p > 0] * (p[p > 0] / 0.5).log()).sum() for p in lines)
    assert float(entropy) == pytest.approx(math.log(2))


# -------------------------------------------------------------------------------------------------------------- spectral norms


def test_normalised_weights_have_a_greatest_singular_value_of_one():
    model = SnGan.make({"latent": 4, "generator": {"name": "dcgan-generator", "width": 4, "norm": "layer"}}, IMAGES_32)
    layers = [m for m in model.critic.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(layers) == 4
    for layer in layers:
        for _ in range(200):
            settle(layer)
        torch.testing.assert_close(
            torch.linalg.matrix_norm(layer.weight.flatten(1), 2), torch.tensor(1.0), rtol=1e-3, atol=0
        )
    before = [m.u.clone() for m in model.modules() if isinstance(m, Spectral)]
    model.critic(torch.zeros(2, 1, 32, 32))
    assert all(
        torch.equal(a, m.u)
        for a, m in zip(before, (m for m in model.modules() if isinstance(m, Spectral)), strict=True)
    )


IMAGES_32 = Spec(Field("image", (1, 32, 32), vocab=256, range=(-1.0, 1.0)))


def test_the_gradient_of_a_normalised_weight_is_torchs_own():
    torch.manual_seed(0)
    ours, theirs = nn.Linear(5, 3).double(), nn.Linear(5, 3).double()
    theirs.load_state_dict(ours.state_dict())
    weight = ours.weight.detach().clone().requires_grad_()
    held = Spectral(weight)
    made = held(weight)
    reference = torch.nn.utils.parametrizations.spectral_norm(theirs, n_power_iterations=1)
    inner = reference.parametrizations.weight[0]
    inner._u.copy_(held.u)
    inner._v.copy_(held.v)
    reference.eval()
    torch.testing.assert_close(made, reference.weight)
    way = torch.randn(3, 5, dtype=torch.float64)
    (made * way).sum().backward()
    (reference.weight * way).sum().backward()
    torch.testing.assert_close(weight.grad, reference.parametrizations.weight.original.grad)


def test_sngan_without_spectral_normalisation_is_refused():
    with pytest.raises(GencliError, match="sngan needs a discriminator with spectral normalisation, mlp has none"):
        made(SnGan)


# -------------------------------------------------------------------------------------------------------------------- penalties


@pytest.mark.parametrize("smooth", ["r1", "r2", "dragan"])
def test_penalties_are_their_formulas_and_reach_the_weights(smooth):
    model = made(smooth=smooth, smooth_weight=3.0).double()
    x, sample = points(6), points(6, 1)

    def rough():
        return model.roughness(x, sample, Rng.batch("p", total=6))

    each, rng = rough(), Rng.batch("p", total=6)
    at = {"r1": x, "r2": sample, "dragan": x + 0.5 * rng.uniform(x.shape).to(x)}[smooth].requires_grad_()
    size = torch.autograd.grad(model.score(at).sum(), at)[0].norm(dim=1)
    torch.testing.assert_close(each.detach(), (size - 1).square() if smooth == "dragan" else size.square() / 2)
    plain = made().double()({"x": x}, turn(n=6))
    whole = model({"x": x}, turn(n=6))
    torch.testing.assert_close(whole["loss"].detach(), plain["loss"].detach() + 3 * whole[smooth])
    weight, way, eps = model.critic.body[0].weight, torch.randn(16, 2, dtype=torch.float64), 1e-5
    (grad,) = torch.autograd.grad(rough().mean(), weight)
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            weight.add_(way, alpha=sign * eps)
        ends.append(float(rough().mean()))
        with torch.no_grad():
            weight.sub_(way, alpha=sign * eps)
    assert float((grad * way).sum()) == pytest.approx((ends[0] - ends[1]) / (2 * eps), rel=1e-5)


# ---------------------------------------------------------------------------------------------------------------------- classes


def test_one_class_for_all_is_the_unconditional_game():
    plain, told = made(), made(CGan, LABELLED)
    shared = plain.state_dict()
    told.load_state_dict({**{key: value for key, value in told.state_dict().items() if "label" in key}, **shared})
    with torch.no_grad():
        for net in (told.generator, told.critic):
            net.label.weight.zero_()
    x, label = points(8, dtype=torch.float32), torch.full((8,), 2)
    for phase in ("critic", "generator"):
        torch.testing.assert_close(
            told({"x": x, "label": label}, turn(phase))["loss"], plain({"x": x}, turn(phase))["loss"]
        )
    with torch.no_grad():
        told.critic.label.weight.normal_()
        told.generator.label.weight.normal_()
    z = torch.zeros(3, 2)
    assert len(told.decode(z, label=torch.arange(3))[:, 0].unique()) == 3
    assert len(told.score(x[:1].expand(3, -1), label=torch.arange(3)).unique()) == 3
    with pytest.raises(GencliError, match="cgan is to be told classes, but the data have no labels"):
        made(CGan)


@pytest.mark.parametrize("kernel", [4, 5])
def test_convolutional_networks_are_told_the_class(kernel):
    spec = Spec(IMAGES.x, {"label": Field("label", (), vocab=3)})
    nets = {
        "generator": {"name": "dcgan-generator", "width": 4, "upsamples": 2, "kernel": kernel},
        "critic": {"name": "dcgan-critic", "width": 4, "downsamples": 2, "kernel": kernel},
    }
    torch.manual_seed(0)
    model = CGan.make({"latent": 3, **nets}, spec).eval()
    x = model.decode(torch.zeros(3, 3), label=torch.arange(3))
    assert x.shape == (3, 1, 16, 16) and len(x[:, 0, 5, 5].unique()) == 3
    assert len(model.score(x[:1].expand(3, -1, -1, -1), label=torch.arange(3)).unique()) == 3


# ----------------------------------------------------------------------------------------------------------------------- DCGAN


def test_dcgan_has_the_released_networks():
    with torch.device("meta"):
        model = DcGan.make({}, Spec(Field("image", (3, 64, 64), vocab=256, range=(-1.0, 1.0))))
    counts = [sum(p.numel() for p in net.parameters()) for net in (model.generator, model.critic)]
    assert counts == [3_576_704, 2_765_568]
    kinds = {type(m).__name__ for m in [*model.generator.modules(), *model.critic.modules()]}
    assert not {name for name in kinds if "Pool" in name}
    linear = [m for net in (model.generator, model.critic) for m in net.modules() if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linear] == [(100, 8192), (8192, 1)], (
        "a 4×4 image of one pixel each"
    )


def test_dcgan_starts_as_the_paper_says_and_stays_in_range():
    torch.manual_seed(0)
    model = DcGan.make({}, Spec(Field("image", (1, 64, 64), vocab=256, range=(-1.0, 1.0))))
    weights = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear))]
    for m in weights:
        if m.weight.numel() > 5000:
            assert float(m.weight.detach().std()) == pytest.approx(0.02, rel=0.05) and m.bias is None
    x = model.eval().decode(100 * torch.randn(2, 100)).detach()
    assert x.shape == (2, 1, 64, 64) and x.abs().max() <= 1
    slopes = {m.negative_slope for m in model.critic.modules() if isinstance(m, nn.LeakyReLU)}
    assert slopes == {0.2} and model.couples


# ------------------------------------------------------------------------------------------------ turns and phases


@pytest.mark.parametrize("kind", [Gan, LsGan, WGan, FGan])
def test_each_network_learns_from_its_own_turn_alone(kind):
    model, x = made(kind), points(8, dtype=torch.float32)
    for phase, other in (("critic", "generator"), ("generator", "critic")):
        model.zero_grad()
        trained = next(one for one in model.phases() if one.name == phase)
        model({"x": x}, turn(phase))["loss"].backward()
        assert all(p.grad is not None for module in trained.modules for p in module.parameters())
        if phase == "critic":
            assert all(p.grad is None for p in getattr(model, other).parameters()), "no stale gradient of the generator"


def test_the_critic_may_have_a_rate_of_its_own():
    assert [phase.optim for phase in made(critic_lr=4e-4).phases()] == [{"lr": 4e-4}, {}]
    one = trainer({**smoke("gan-toy2d"), "model": {**smoke("gan-toy2d")["model"], "critic_lr": 5e-4}})
    rates = {name: optimiser.param_groups[0]["lr"] for name, optimiser in one.optimisers.items()}
    assert rates["critic"] != rates["generator"]


def test_logged_shares_are_those_of_right_answers():
    model = made().double()
    x, sample = points(8), points(8, 1)
    losses = model.critic_loss(x, sample, Rng.batch("p", total=8))
    assert float(losses["real"]) == float((model.score(x) > 0).double().mean())
    assert float(losses["fake"]) == float((model.score(sample) < 0).double().mean())
    torch.testing.assert_close(losses["loss"], (softplus(-model.score(x)) + softplus(model.score(sample))).mean())


def test_runs_sample_with_their_seeds():
    table = smoke("gan-toy2d")
    one = trainer(table)
    one.take_step()
    run: Run = one.run
    run.model.eval()
    many = run.sample(Rng.rows(range(6)))["x"]
    assert torch.allclose(run.sample(Rng.rows([4]))["x"][0], many[4])
