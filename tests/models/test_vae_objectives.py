"""What every VAE may do besides: train on the importance-weighted bound, be told classes, warm up, and mix logistics."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from linear_gaussian import AFFINE, POINTS, pca, perturbed

from gencli.core import Field, Rng, Spec, Turn
from gencli.errors import GencliError
from gencli.models._conditions import told
from gencli.models.vae._decoders import Logistic, Mixed
from gencli.models.vae.vae import VAE
from gencli.nn.gaussian import standard_normal

IMAGES = Spec(Field("image", (1, 8, 8), vocab=17, range=(-1.0, 1.0)), {"label": Field("label", (), vocab=10)})
BITS = Spec(Field("image", (1, 8, 8), vocab=2, range=(0.0, 1.0)))
BYTES = Field("image", (1, 1, 256), vocab=256, range=(-1.0, 1.0))
RGB = Field("image", (3, 1, 2), vocab=5, range=(0.0, 1.0))
NETS = {"encoder": {"name": "mlp", "width": 16}, "decoder": {"name": "mlp", "width": 16}}


def tiny(spec=IMAGES, **settings):
    torch.manual_seed(0)
    return VAE.make({"dim": 4, **NETS, **settings}, spec)


def grid_images(n):
    return torch.randint(17, (n, *IMAGES.x.shape), generator=torch.Generator().manual_seed(0)) / 8.0 - 1


def turn(n):
    return Turn("main", 0, 10, Rng.batch("vae", total=n))


def weighted(model, k):
    """The same weights with the objective iwae."""
    made = VAE.make(
        {"dim": 2, "likelihood": "gaussian", "scale": 0.4, "objective": "iwae", "draws": k, **AFFINE}, POINTS
    )
    made.double().load_state_dict(model.state_dict())
    return made


# ---------------------------------------------------------------------------------------------------------------- iwae


def test_the_loss_of_k_draws_is_minus_iwae_k_of_the_evaluation():
    model, density = pca()
    model, x = perturbed(model, 1), density.sample((20,))
    for k in (2, 7):
        losses = weighted(model, k).loss({"x": x}, Turn("main", 0, 1, Rng.batch("i", total=20)))
        bound = model.log_prob(x, Rng.batch("i", total=20), samples=k)
        torch.testing.assert_close(losses["each"], -bound)
        torch.testing.assert_close(losses["loss"], losses["each"].mean())


def test_one_draw_is_the_elbo_by_monte_carlo():
    model, density = pca()
    model, x = perturbed(model, 2), density.sample((20,))
    rng = Rng.batch("i", total=20)
    losses = weighted(model, 1).loss({"x": x}, Turn("main", 0, 1, rng))
    q = model.posterior(x)
    z = q.draw(rng.at("posterior", 0).normal(q.mean.shape).double())
    ratio = model.observed.log_prob(model.decoder(z), x) + standard_normal(z) - q.log_prob(z)
    torch.testing.assert_close(losses["each"], -ratio)
    torch.testing.assert_close(losses["recon"] + losses["kl"], losses["loss"])
    one, apart = weighted(model, 1), []
    with torch.no_grad():
        for i in range(100):
            drawn = one.loss({"x": x}, Turn("main", 0, 1, Rng.batch("j", i, total=20)))["each"]
            apart.append(float((drawn + model.log_prob(x, Rng.batch("j", i, total=20))).mean()))
    apart = torch.tensor(apart)
    assert abs(float(apart.mean())) < 4 * float(apart.std()) / 10 and float(apart.std()) > 1e-3


def test_the_training_bound_rises_with_k_towards_log_p():
    model, density = pca()
    model, x = perturbed(model, 1, 0.2), density.sample((4000,))
    with torch.no_grad():
        losses = [
            weighted(model, k).loss({"x": x}, Turn("main", 0, 1, Rng.batch("k", total=4000)))["loss"]
            for k in (1, 4, 16, 64)
        ]
    exact = -float(density.log_prob(x).mean())
    assert all(more < less for less, more in itertools.pairwise(losses))
    assert exact < float(losses[-1]) + 0.02 and float(losses[-1]) - exact < 0.2 * (float(losses[0]) - exact)


def test_its_gradient_weighs_each_draws_by_its_share():
    """Equation 14: Σ w̃_i ∇ log w_i, gradients through the draws."""
    model, density = pca()
    model, x, k = perturbed(model, 3), density.sample((5,)), 4
    iwae, rng = weighted(model, k), Rng.batch("g", total=5)
    iwae.loss({"x": x}, Turn("main", 0, 1, rng))["loss"].backward()
    logs = []
    for i in range(k):
        q = model.posterior(x)
        z = q.draw(rng.at("posterior", i).normal(q.mean.shape).double())
        logs.append(model.observed.log_prob(model.decoder(z), x) + standard_normal(z) - q.log_prob(z))
    log_w = torch.stack(logs)
    share = log_w.detach().softmax(0)
    (-(share * log_w).sum(0).mean()).backward()
    for one, other in zip(iwae.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    alike = pca()[0]
    perturbed(alike, 3)
    alike.loss({"x": x}, Turn("main", 0, 1, rng))["loss"].backward()
    assert not torch.allclose(alike.encoder.body[0].weight.grad, model.encoder.body[0].weight.grad, rtol=0.05)


def test_training_on_it_leaves_a_better_bound_of_many_draws_than_a_posterior_that_fits_the_elbo():
    """A posterior that is no Gaussian: x = |z| + noise has two modes of z, of which the ELBO's posterior takes one."""
    found = {}
    x = torch.randn(256, 1, generator=torch.Generator().manual_seed(0)).abs()
    x = x + 0.2 * torch.randn(256, 1, generator=torch.Generator().manual_seed(1))
    settings = {"dim": 1, "likelihood": "gaussian", "scale": 0.2, "draws": 8}
    nets = {key: {"name": "mlp", "width": 24} for key in ("encoder", "decoder")}
    for objective in ("elbo", "iwae"):
        torch.manual_seed(0)
        model = VAE.make({**settings, **nets, "objective": objective}, Spec(Field("points", (1,))))
        optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
        for step in range(150):
            optimiser.zero_grad()
            model.loss({"x": x}, Turn("main", step, 150, Rng.batch("t", step, total=256)))["loss"].backward()
            optimiser.step()
        with torch.no_grad():
            found[objective] = [float(model.log_prob(x, Rng.batch("e", total=256), k).mean()) for k in (1, 64)]
    assert found["iwae"][1] - found["iwae"][0] > found["elbo"][1] - found["elbo"][0] + 0.02, found
    assert found["iwae"][1] > found["elbo"][1] - 0.02, found


def test_a_warm_up_needs_a_divergence():
    model, x = tiny(kl_warmup=4), grid_images(5)
    for step, share in ((0, 0.0), (1, 0.25), (4, 1.0), (9, 1.0)):
        losses = model.loss({"x": x}, Turn("main", step, 10, Rng.batch("w", total=5)))
        torch.testing.assert_close(losses["loss"], losses["recon"] + share * losses["kl"])
    with pytest.raises(GencliError, match="kl-warmup 4 weighs a KL divergence, and the objective iwae has none"):
        tiny(kl_warmup=4, objective="iwae")


# -------------------------------------------------------------------------------------------------------------- classes

HALVES = {"width": 8, "residual_width": 4, "residual_blocks": 1, "downsamples": 1}
CONV = {"encoder": {"name": "conv-encoder", **HALVES}, "decoder": {"name": "conv-decoder", **HALVES}}


@pytest.mark.parametrize("nets", [NETS, AFFINE, CONV], ids=["mlp", "affine", "conv"])
def test_with_classes_encoder_and_decoder_are_told_the_label(nets):
    model, x = tiny(classes=True, **nets), grid_images(4)
    one, other = torch.arange(4), torch.arange(4) + 5
    assert not torch.allclose(model.encode(x, label=one), model.encode(x, label=other))
    z = torch.zeros(4, 4)
    made = model.decode(z, label=torch.tensor([1, 1, 2, 2]))
    assert torch.equal(made[0], made[1]) and not torch.allclose(made[1], made[2])
    told, untold = (model.log_prob(x, Rng.batch("b", total=4), label=label) for label in (one, other))
    assert not torch.allclose(told, untold)
    model.loss({"x": x, "label": one}, turn(4))["loss"].backward()
    assert all(part.label.weight.grad.abs().sum() > 0 for part in (model.encoder, model.decoder))
    assert set(model.spec.cond) == {"label"} and not tiny(**nets).spec.cond


def test_a_label_beside_x_is_one_more_input_a_class():
    """The row that it adds to the first layer is what a one-hot vector's weights would."""
    model, x = tiny(classes=True), grid_images(3)
    label = torch.tensor([4, 0, 9])
    hot = torch.nn.functional.one_hot(label, 11).float()
    first, *rest = model.encoder.body
    weight = torch.cat([first.weight, model.encoder.label.weight.T], 1)
    h = torch.nn.functional.linear(torch.cat([x.flatten(1), hot], 1), weight, first.bias)
    for layer in rest:
        h = layer(h)
    torch.testing.assert_close(model.posterior(x, label=label).mean, h[:, :4])


def test_classes_that_cannot_be_told_are_refused():
    with pytest.raises(GencliError, match="vae is to be told classes, but the data have no labels"):
        tiny(POINTS, likelihood="gaussian", classes=True)
    deaf = SimpleNamespace(name="deaf", build=lambda x, out, cond: torch.nn.Linear(x.size, out.size))
    with pytest.raises(GencliError, match="network deaf takes no class label"):
        told(deaf, IMAGES.x, IMAGES.x, IMAGES.cond)
    with pytest.raises(GencliError, match="vae was trained with the condition 'label', which was not given"):
        tiny(classes=True).encode(grid_images(2))


# ----------------------------------------------------------------------------------------------------- mixed logistics


def test_a_mixture_of_one_logistic_is_the_logistic():
    one, plain = Mixed(BYTES, 0.0, 1), Logistic(BYTES, 0.0)
    g = torch.Generator().manual_seed(0)
    made = torch.randn(3, 2, 1, 256, generator=g, dtype=torch.float64) - torch.tensor([0.0, 3.0]).view(1, 2, 1, 1)
    x = torch.randint(256, (3, 1, 1, 256), generator=g).double() / 127.5 - 1
    with_weight = torch.cat([torch.randn(3, 1, 1, 256, generator=g, dtype=torch.float64), made], 1)
    torch.testing.assert_close(one.log_prob(with_weight, x), plain.log_prob(made, x))
    torch.testing.assert_close(one.mean(with_weight), plain.mean(made))
    assert one.out.shape == (3, 1, 256) and Mixed(RGB, 0.0, 4).out.shape == (40, 1, 2)


def test_probabilities_of_all_colours_sum_to_one_and_their_mean_is_shown():
    decoder, g = Mixed(Field("image", (3, 1, 1), vocab=5, range=(0.0, 1.0)), 0.0, 2), torch.Generator().manual_seed(0)
    made = 0.5 * torch.randn(1, 20, 1, 1, generator=g, dtype=torch.float64)
    made[:, 8:14] -= 2.0  # narrow, so that little is beyond the ends
    values = torch.cartesian_prod(*[torch.linspace(0, 1, 5, dtype=torch.float64)] * 3).view(125, 3, 1, 1)
    p = decoder.log_prob(made.expand(125, -1, -1, -1), values).exp()
    assert abs(float(p.sum()) - 1) < 1e-9
    mean = (p[:, None] * values.flatten(1)).sum(0)
    assert (decoder.mean(made).flatten() - mean).abs().max() < 0.05
    swapped = (p[:, None] * values.flatten(1).flip(1)).sum(0)
    assert (decoder.mean(made).flatten() - swapped).abs().max() > 0.1, "a control: the channels the other way round"


def test_a_mixture_needs_images_on_a_grid_and_makes_its_scales():
    with pytest.raises(GencliError, match="logistic-mixture decoder needs images of values on a grid, got points"):
        tiny(POINTS, likelihood="logistic-mixture")
    with pytest.raises(GencliError, match=r"makes all its scales, got scale 0\.15"):
        tiny(IMAGES, likelihood="logistic-mixture", scale=0.15)
    assert tiny(BITS, likelihood="logistic-mixture", mixtures=2).decoder.shape == (6, 8, 8)
    losses = tiny(IMAGES, likelihood="logistic-mixture").loss({"x": grid_images(3)}, turn(3))
    assert torch.isfinite(losses["each"]).all()
