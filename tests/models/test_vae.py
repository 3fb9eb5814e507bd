"""VAE: bounds against closed forms, the reparameterised gradient, decoder distributions, and what is learnt of digits."""

import itertools
import math

import pytest
import scipy.stats
import torch
from linear_gaussian import AFFINE, POINTS, pca, perturbed
from tiny import opened, smoke, trained
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from gencli.bundle import Run
from gencli.config import merge
from gencli.core import Autoencoder, Field, LatentVariable, Likelihood, Rng, Spec, Turn
from gencli.errors import GencliError
from gencli.metrics.bpd import Bpd
from gencli.models.vae._decoders import Bernoulli, Gaussian, Logistic
from gencli.models.vae.vae import VAE
from gencli.nn.discretised import discretised_logistic
from gencli.nn.gaussian import DiagonalGaussian, standard_normal

IMAGES = Spec(Field("image", (1, 8, 8), vocab=17, range=(-1.0, 1.0)), {"label": Field("label", (), vocab=10)})
BYTES = Field("image", (1, 1, 256), vocab=256, range=(-1.0, 1.0))
BITS = Spec(Field("image", (1, 8, 8), vocab=2, range=(0.0, 1.0)))
NETS = {"encoder": {"name": "mlp", "width": 16}, "decoder": {"name": "mlp", "width": 16}}


class Given(Rng):
    """Whatever is asked for, these normal numbers."""

    def __init__(self, numbers):
        self.numbers = numbers

    def at(self, *keys):
        return self

    def normal(self, shape, dtype=torch.float32):
        return self.numbers.reshape(shape)


def tiny(spec=IMAGES, seed=0, **settings):
    torch.manual_seed(seed)
    return VAE.make({"dim": 4, **NETS, **settings}, spec)


def grid_images(n, seed=0):
    drawn = torch.randint(17, (n, *IMAGES.x.shape), generator=torch.Generator().manual_seed(seed))
    return drawn / 8.0 - 1


def turn(n, *key):
    return Turn("main", 0, 10, Rng.batch("vae", *key, total=n))


# ----------------------------------------------------------------------------------------- probabilistic PCA, in closed form


def expected_elbo(model, x):
    """E_ε[ELBO] exactly: with ε = ±1 in every latent number, the mean of a quadratic is that under N(0, I)."""
    dim = model.config.dim
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * dim)
    with torch.no_grad():
        made = [model.log_prob(x, Given(sign.expand(len(x), dim))) for sign in signs]
    return torch.stack(made).mean(0)


@pytest.mark.parametrize("dim", [2, 3])
def test_with_the_exact_posterior_the_elbo_is_log_p_of_probabilistic_pca(dim):
    model, density = pca(dim)
    x = density.sample((50,))
    assert (expected_elbo(model, x) - density.log_prob(x)).abs().max() < 1e-6
    with torch.no_grad():  # every importance weight is then p(x) itself, whatever was drawn
        for samples in (2, 7):
            bound = model.log_prob(x, Rng.batch("p", total=50), samples=samples)
            assert (bound - density.log_prob(x)).abs().max() < 1e-6


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_any_other_encoder_loses_exactly_its_divergence_from_the_posterior(seed):
    model, density = pca()
    x = density.sample((50,))
    with torch.no_grad():
        exact = model.posterior(x)
        other = perturbed(model, seed).posterior(x)
    gap = kl_divergence(
        Normal(other.mean, (0.5 * other.log_var).exp()), Normal(exact.mean, (0.5 * exact.log_var).exp())
    ).sum(1)
    elbo = expected_elbo(model, x)
    assert (elbo < density.log_prob(x)).all() and gap.min() > 1e-3
    assert (elbo + gap - density.log_prob(x)).abs().max() < 1e-6


def test_the_importance_weighted_bound_rises_with_k_and_stays_below_log_p():
    model, density = pca()
    n, counts = 4000, (1, 2, 4, 16, 64)
    x = density.sample((n,))
    model = perturbed(model, 1, 0.2)
    with torch.no_grad():
        bounds = [model.log_prob(x, Rng.batch("k", total=n), samples=k) for k in counts]
    exact = density.log_prob(x)
    gaps = [float((exact - bound).mean()) for bound in bounds]
    assert all(after < before for before, after in itertools.pairwise(gaps)), gaps
    for bound, gap in zip(bounds, gaps, strict=True):
        assert gap > -3 * float((exact - bound).std()) / math.sqrt(n)
    assert gaps[-1] < 0.2 * gaps[0]
    mean_of_logs = torch.stack([model.log_prob(x, Rng.batch("wrong", i, total=n)) for i in range(4)]).mean(0)
    assert float((exact - mean_of_logs.detach()).mean()) > 0.8 * gaps[0], "a mean of logarithms gains nothing"


def test_importance_weights_are_the_naive_formula():
    model, density = pca()
    model = perturbed(model, 2)
    x = density.sample((6,))
    rng, k = Rng.batch("naive", total=6), 5
    with torch.no_grad():
        q = model.posterior(x)
        weights = []
        for i in range(k):
            z = q.mean + (0.5 * q.log_var).exp() * rng.at("posterior", i).normal((6, 2)).double()
            likely = Normal(model.decoder(z), 0.4).log_prob(x).sum(1)
            prior, drawn = Normal(0.0, 1.0), Normal(q.mean, (0.5 * q.log_var).exp())
            weights.append(likely + prior.log_prob(z).sum(1) - drawn.log_prob(z).sum(1))
        naive = torch.stack(weights).exp().mean(0).log()
        torch.testing.assert_close(model.log_prob(x, rng, samples=k), naive)


def test_a_bound_says_what_it_is():
    model = tiny()
    assert isinstance(model, Likelihood) and isinstance(model, LatentVariable) and isinstance(model, Autoencoder)
    assert model.likelihood == "bound" and model.estimate(1) == "ELBO" and model.estimate(64) == "IWAE-64"
    assert model.mass and tiny(likelihood="gaussian").mass and tiny(BITS, likelihood="bernoulli").mass
    assert not tiny(POINTS, likelihood="gaussian").mass


# ----------------------------------------------------------------------------------------------------------- the posterior


def posterior(n, dim=3):
    g = torch.Generator().manual_seed(0)
    mean, log_var = (torch.randn(n, dim, generator=g, dtype=torch.float64) for _ in range(2))
    return DiagonalGaussian(mean, log_var)


def test_the_divergence_in_closed_form_is_the_mean_of_a_million_draws():
    q, g = posterior(4), torch.Generator().manual_seed(1)
    exact, total = q.kl(), torch.zeros(4, dtype=torch.float64)
    for _ in range(10):
        wide = DiagonalGaussian(q.mean[:, None].expand(4, 100_000, 3), q.log_var[:, None].expand(4, 100_000, 3))
        z = wide.draw(torch.randn(wide.mean.shape, generator=g, dtype=torch.float64))
        flat = DiagonalGaussian(*(part.flatten(0, 1) for part in wide)), z.flatten(0, 1)
        total += (flat[0].log_prob(flat[1]) - standard_normal(flat[1])).view(4, -1).mean(1) / 10
    assert ((total - exact) / exact).abs().max() < 0.01
    normal = Normal(q.mean, (0.5 * q.log_var).exp())
    torch.testing.assert_close(exact, kl_divergence(normal, Normal(0.0 * q.mean, 1.0)).sum(1))
    wrong = 0.5 * (q.mean.square() + q.log_var.exp() - 1 + q.log_var).sum(1)  # the sign of log σ²
    assert ((wrong - exact) / exact).abs().max() > 0.1


def test_densities_are_those_of_torch():
    q, z = posterior(7), posterior(7).mean.flip(0)
    torch.testing.assert_close(q.log_prob(z), Normal(q.mean, (0.5 * q.log_var).exp()).log_prob(z).sum(1))
    torch.testing.assert_close(standard_normal(z), Normal(0.0, 1.0).log_prob(z).sum(1))
    flat = DiagonalGaussian(torch.zeros(2, 3), torch.zeros(2, 3))
    assert flat.kl().tolist() == [0.0, 0.0]


def gradients(n, mu=0.7, s=1.3, seed=0):
    """Of E[z²] at (μ, s) from n draws, each `(n, 2)`: through the draw, and by the score function."""
    mean = torch.full((n, 1), mu, dtype=torch.float64, requires_grad=True)
    deviation = torch.full((n, 1), s, dtype=torch.float64, requires_grad=True)
    noise = torch.randn(n, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    q = DiagonalGaussian(mean, 2 * deviation.log())
    z = q.draw(noise)
    path = torch.autograd.grad(z.square().sum(), (mean, deviation), retain_graph=True)
    score = torch.autograd.grad((z.detach().square()[:, 0] * q.log_prob(z.detach())).sum(), (mean, deviation))
    return torch.cat(path, 1), torch.cat(score, 1)


def test_the_reparameterised_gradient_is_unbiased_and_varies_less_than_the_score_functions():
    truth = torch.tensor([1.4, 2.6], dtype=torch.float64)
    errors = {}
    for n in (100, 10_000):
        each = [gradients(n, seed=seed)[0].mean(0) - truth for seed in range(60)]
        errors[n] = torch.stack(each).square().mean(0).sqrt()
    ratio = errors[100] / errors[10_000]
    assert (errors[10_000] < 0.06).all() and ((ratio > 7) & (ratio < 14)).all()  # √100 = 10
    path, score = gradients(100_000)
    assert ((score.mean(0) - truth).abs() < 5 * score.std(0) / math.sqrt(100_000)).all(), (
        "the control is right on average"
    )
    assert (path.var(0) < 0.5 * score.var(0)).all()


def test_the_loss_carries_the_gradient_of_the_noise_to_the_posteriors_deviation():
    model = tiny().double()
    x, noise = grid_images(3).double(), torch.ones(3, 4, dtype=torch.float64)

    def recon(numbers):
        losses = model.loss({"x": x}, Turn("main", 0, 1, Given(numbers)))
        return torch.autograd.grad(losses["each"].sum(), model.encoder.body[-1].bias)[0]

    with_noise, without = recon(noise), recon(0 * noise)
    assert not torch.allclose(with_noise[4:], without[4:]), "log σ² sees the reconstruction"
    q = model.posterior(x)
    torch.testing.assert_close(without[4:], (0.5 * (q.log_var.exp() - 1)).sum(0), msg="and without noise the KL alone")


# ------------------------------------------------------------------------------------------------------- decoder distributions


@pytest.mark.parametrize("kind", [Logistic, Gaussian])
@pytest.mark.parametrize("vocab", [2, 17, 256])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_probabilities_of_a_grids_values_sum_to_one(kind, vocab, dtype):
    decoder = kind(Field("image", (1, 1, 1), vocab=vocab, range=(-1.0, 1.0)), 0.0)
    g = torch.Generator().manual_seed(0)
    location = torch.rand(500, 1, 1, 1, generator=g, dtype=dtype) * 4 - 2
    log_scale = torch.rand(500, 1, 1, 1, generator=g, dtype=dtype) * 9 - 8  # below the least scale too
    made = torch.cat([location, log_scale], 1)
    values = torch.linspace(-1, 1, vocab, dtype=dtype)
    total = torch.stack([decoder.log_prob(made, v.expand(500, 1, 1, 1)) for v in values]).exp().sum(0)
    assert (total - 1).abs().max() < 1e-5


@pytest.mark.parametrize(("kind", "reference"), [(Logistic, scipy.stats.logistic), (Gaussian, scipy.stats.norm)])
def test_a_bins_mass_is_scipys_with_open_ends(kind, reference):
    made = torch.tensor([0.3, math.log(0.2)], dtype=torch.float64).view(1, 2, 1, 1).expand(1, 2, 1, 256)
    values = torch.linspace(-1, 1, 256, dtype=torch.float64)
    decoder = kind(Field("image", (1, 1, 256), vocab=256, range=(-1.0, 1.0)), 0.0)
    edges = torch.cat([torch.tensor([-math.inf]), (values[1:] + values[:-1]) / 2, torch.tensor([math.inf])]).numpy()
    cdf = reference.cdf(edges, 0.3, 0.2)
    rows = [decoder.log_prob(made[..., i : i + 1], v.view(1, 1, 1, 1)) for i, v in enumerate(values)]
    torch.testing.assert_close(torch.cat(rows).exp(), torch.from_numpy(cdf[1:] - cdf[:-1]), rtol=1e-6, atol=1e-12)
    for begin in (0, -1 / 255):  # the controls: bins that begin at the value; bins with closed ends
        wrong = reference.cdf(values + begin + 2 / 255, 0.3, 0.2) - reference.cdf(values + begin, 0.3, 0.2)
        assert abs(wrong.sum() - 1) > 1e-4


@pytest.mark.parametrize("kind", [Logistic, Gaussian])
def test_gradients_are_finite_at_the_extremes_and_right(kind):
    decoder = kind(BYTES, 0.0)
    location = torch.tensor([-50.0, -1.0, 0.0, 1.0, 50.0])
    log_scale = torch.tensor([-100.0, -7.0, -3.0, 0.0, 5.0])
    values = torch.tensor([-1.0, -1 + 2 / 255, 0.2 / 255, 1.0])
    at = torch.cartesian_prod(location, log_scale, values)
    made = at[:, :2].reshape(-1, 2, 1, 1).clone().requires_grad_()
    log_p = decoder.log_prob(made, at[:, 2].view(-1, 1, 1, 1))
    (grad,) = torch.autograd.grad(log_p.sum(), made)
    assert torch.isfinite(log_p).all() and (log_p <= 1e-6).all() and torch.isfinite(grad).all()
    exact = made.detach().double().requires_grad_()
    (wide,) = torch.autograd.grad(decoder.log_prob(exact, at[:, 2].double().view(-1, 1, 1, 1)).sum(), exact)
    near = (at[:, 0].abs() < 2) & (at[:, 1] > -4) & (at[:, 1] < 1)
    torch.testing.assert_close(grad[near], wide[near].float(), rtol=2e-3, atol=2e-3)


def test_the_logistic_needs_no_other_formula_in_its_tails():
    """A bin 10⁵ scales away: σ(b) − σ(a) ≈ e^b (1 − e^(a − b)), where the plain difference of sigmoids is 0."""
    x, mean, scale = (torch.tensor(v, dtype=torch.float64) for v in (0.0, 2.0, 2e-5))
    half = 1 / 255
    exact = (half - 2) / 2e-5 + math.log(-math.expm1(-2 * half / 2e-5))
    assert float(discretised_logistic(x, mean, scale, (-1.0, 1.0), 2 / 255)) == pytest.approx(exact, rel=1e-12)
    assert float(torch.sigmoid((x + half - mean) / scale) - torch.sigmoid((x - half - mean) / scale)) == 0


def test_a_bernoulli_that_knows_nothing_takes_one_bit_a_pixel_and_shows_grey():
    decoder = Bernoulli(BITS.x, 0.0)
    x = (grid_images(3) > 0).float()
    assert (decoder.log_prob(torch.zeros_like(x), x) / (-64 * math.log(2))).tolist() == pytest.approx([1, 1, 1])
    assert torch.equal(decoder.mean(torch.zeros_like(x)), torch.full_like(x, 0.5))
    logits = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    reference = torch.distributions.Bernoulli(logits=logits).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(decoder.log_prob(logits, x), reference)
    signed = Bernoulli(Field("image", (1, 8, 8), vocab=2, range=(-1.0, 1.0)), 0.0)
    torch.testing.assert_close(signed.log_prob(logits, 2 * x - 1), reference)
    assert torch.equal(signed.mean(torch.zeros_like(x)), torch.zeros_like(x))


def test_a_fixed_scale_halves_what_the_decoder_makes_and_shown_values_stay_in_range():
    learned, fixed = Logistic(IMAGES.x, 0.0), Logistic(IMAGES.x, 0.1)
    assert learned.out.shape == (2, 8, 8) and fixed.out.shape == (1, 8, 8)
    location = 3 * grid_images(2)
    both = torch.cat([location, torch.full_like(location, math.log(0.1))], 1)
    torch.testing.assert_close(learned.log_prob(both, grid_images(2)), fixed.log_prob(location, grid_images(2)))
    assert torch.equal(fixed.mean(location), location.clamp(-1, 1)) and torch.equal(
        learned.mean(both), fixed.mean(location)
    )


def test_data_that_do_not_fit_the_decoder_are_refused():
    with pytest.raises(
        GencliError, match="bernoulli decoder needs data of two values, got image of 17 values"
    ) as caught:
        tiny(likelihood="bernoulli")
    assert "binarise" in caught.value.hint
    with pytest.raises(GencliError, match="logistic decoder needs values on a grid, got points without a number"):
        tiny(POINTS)


# -------------------------------------------------------------------------------------------------------------------- the loss


def test_the_loss_is_minus_the_elbo_in_nats_and_its_parts_add_up():
    model, x = tiny(), grid_images(6)
    losses = model.loss({"x": x, "label": torch.zeros(6, dtype=torch.long)}, turn(6))
    torch.testing.assert_close(losses["loss"], losses["recon"] + losses["kl"])
    torch.testing.assert_close(losses["bits_per_dim"], losses["loss"].detach() / (64 * math.log(2)))
    noise = turn(6).rng.at("posterior").normal((6, 4))
    with torch.no_grad():
        elbo = model.log_prob(x, Given(noise))
    torch.testing.assert_close(losses["each"].detach().double(), -elbo, rtol=1e-4, atol=1e-3)


def test_the_loss_sums_over_dimensions_and_averages_over_items():
    """TRAPS 43."""
    sizes = {}
    for side in (4, 8):
        model = tiny(Spec(Field("image", (1, side, side), vocab=17, range=(-1.0, 1.0))), **AFFINE)
        with torch.no_grad():
            for p in model.parameters():
                p.zero_()
        x = torch.zeros(3, 1, side, side)
        sizes[side] = model.loss({"x": x}, Turn("main", 0, 1, Given(torch.zeros(3, 4))))["recon"]
    assert float(sizes[8]) == pytest.approx(4 * float(sizes[4]), rel=1e-6)
    model, x, noise = tiny(), grid_images(4), torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    once = model.loss({"x": x}, Turn("main", 0, 1, Given(noise)))["loss"]
    twice = model.loss({"x": x.repeat(2, 1, 1, 1)}, Turn("main", 0, 1, Given(noise.repeat(2, 1))))["loss"]
    torch.testing.assert_close(once, twice)


def test_noise_is_new_at_every_turn_and_labels_change_nothing():
    model, x = tiny(), grid_images(4)
    one, other = (model.loss({"x": x}, turn(4, key))["loss"] for key in (0, 1))
    assert not torch.equal(one, other) and model.spec.cond == {}
    assert torch.equal(one, model.loss({"x": x, "label": torch.arange(4)}, turn(4, 0))["loss"])


def test_low_precision_of_the_networks_leaves_the_bound_in_float32():
    model, x = tiny(), grid_images(8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = model.loss({"x": x}, turn(8))
        bound = model.log_prob(x, Rng.batch("b", total=8))
    full = model.loss({"x": x}, turn(8))
    assert low["each"].dtype == torch.float32 and bound.dtype == torch.float64
    torch.testing.assert_close(low["each"], full["each"], rtol=2e-2, atol=0.5)


# ------------------------------------------------------------------------------------------------------------------- latents


@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_latents_are_flat_and_decode_to_images(network):
    conv = {"width": 8, "residual_width": 4, "residual_blocks": 1}
    nets = {"encoder": {"name": "conv-encoder", **conv}, "decoder": {"name": "conv-decoder", **conv}}
    model = tiny(**(nets if network == "conv" else {})).eval()
    x = grid_images(3)
    z = model.encode(x)
    assert z.shape == (3, *model.latent.shape) == (3, 4)
    assert torch.equal(model.decode(z), model.reconstruct(x)) and model.decode(z).shape == x.shape
    assert model.decode(100 * z).abs().max() <= 1
    prior = model.prior(2000, Rng.rows(range(2000)))
    assert prior.shape == (2000, 4) and abs(float(prior.mean())) < 0.05 and abs(float(prior.std()) - 1) < 0.05
    model.loss({"x": x}, turn(3))["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_the_papers_networks_have_their_parameters():
    mnist = Spec(Field("image", (1, 28, 28), vocab=2, range=(0.0, 1.0)))
    model = VAE.make({"likelihood": "bernoulli", "dim": 20}, mnist)
    encoder = 784 * 500 + 500 + 2 * (500 * 20 + 20)  # one head for μ, one for log σ²
    decoder = 20 * 500 + 500 + 500 * 784 + 784
    assert sum(p.numel() for p in model.encoder.parameters()) == encoder
    assert sum(p.numel() for p in model.decoder.parameters()) == decoder


# ---------------------------------------------------------------------------------------------------------- what is learnt


DIGITS = {"data": {"name": "digits", "image_size": 8}}
LEARNT = {
    "model": {"dim": 8, "scale": 0.0, "encoder": {"width": 128}, "decoder": {"width": 128}},
    "train": {"steps": 400, "batch_size": 64, "lr": 3e-3, "save_every": 400, "warmup": 0},
}


def bits(run, data, samples=1):
    return Bpd.make({"samples": samples})(run, data, Rng.batch("e", total=1))


def histogram_bits(data):
    """Bits/dim of test digits when each pixel has its own histogram: all that a model without a latent can know."""
    levels = {name: torch.from_numpy(data.split(name).x).long().flatten(1) * 16 // 255 for name in ("train", "test")}
    counts = torch.stack([(levels["train"] == v).sum(0) for v in range(17)]) + 0.5
    p = counts / counts.sum(0)
    return float(-p.log2().gather(0, levels["test"]).mean())


def test_a_few_seconds_of_digits_beat_the_best_model_without_a_latent_and_use_it(tmp_path):
    tables = merge(merge(smoke("vae"), LEARNT), DIGITS)
    data = opened(tables["data"])
    run = Run.load(trained(tmp_path, tables))
    test, bar = data.split("test"), histogram_bits(data)
    torch.manual_seed(0)
    untrained = Run.build(tables, data.spec)
    learnt = bits(run, test)
    assert learnt.value < bar - 0.1 and learnt.note == "ELBO" and learnt.kind == "bound" and learnt.name == "bpd"
    assert bits(untrained, test).value > bar + 0.5
    weighted = bits(run, test, samples=16)
    assert weighted.value < learnt.value and weighted.note == "IWAE-16"
    x = run.encode(test.batch(torch.arange(len(test))), Rng.rows(range(len(test))))["x"]
    kl = run.model.posterior(x).kl()
    assert kl.mean() > 5, "the posterior has not collapsed to the prior"
    with torch.no_grad():
        scale = x.std(0).mean()
        assert (run.model.reconstruct(x) - x).square().mean().sqrt() < 0.7 * scale
        made = run.model.decode(run.model.prior(200, Rng.rows(range(200))))
    assert made.std(0).mean() > 0.5 * scale, "samples vary as the data do"


def test_binarised_digits_are_counted_as_codes(tmp_path):
    tables = merge({**smoke("vae-mnist"), **DIGITS}, {"train": {"steps": 2, "batch_size": 8}})
    run = Run.load(trained(tmp_path, tables))
    value = bits(run, opened(tables["data"]).split("test"))
    assert value.name == "bpd[codes]" and value.facts["lossy"] and value.note.startswith("ELBO")
    grey = run.sample(Rng.rows([0, 1]))["x"]
    assert grey.dtype == torch.uint8 and len(grey.unique()) > 2


def test_points_in_the_plane_are_learnt_as_a_density(tmp_path):
    model = {"name": "vae", "dim": 2, "likelihood": "gaussian", "encoder": {"width": 64}, "decoder": {"width": 64}}
    train = {"steps": 300, "batch_size": 128, "lr": 5e-3, "save_every": 300}
    tables = {"model": model, "data": {"name": "toy2d", "size": 2000}, "train": train}
    run = Run.load(trained(tmp_path, tables))
    test = opened(tables["data"]).split("test")
    gaussian = MultivariateNormal(torch.zeros(2), torch.from_numpy(test.x).T.cov())
    entropy = float(-gaussian.log_prob(torch.from_numpy(test.x)).mean()) / (2 * math.log(2))
    value = bits(run, test)
    assert not run.model.mass and value.kind == "bound" and value.name == "bpd"
    assert value.value < entropy - 0.1, "better than a Gaussian of the data's covariance"
