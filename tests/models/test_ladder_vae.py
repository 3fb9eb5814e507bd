"""Ladder VAE: the merge against the product of densities, one layer against `vae`, warm-up, bounds, latents, digits."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from tiny import opened, smoke, trained
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from gencli.bundle import Run
from gencli.config import merge
from gencli.core import Autoencoder, Field, LatentVariable, Likelihood, Rng, Spec, Turn
from gencli.errors import GencliError
from gencli.metrics.bpd import Bpd
from gencli.models.vae.ladder_vae import LEAST_VARIANCE, LadderVAE
from gencli.models.vae.ladder_vae import merge as merged
from gencli.models.vae.vae import VAE
from gencli.nn.gaussian import DiagonalGaussian

IMAGES = Spec(Field("image", (1, 8, 8), vocab=17, range=(-1.0, 1.0)), {"label": Field("label", (), vocab=10)})
POINTS = Spec(Field("points", (2,)))
SMALL = {"latents": [4, 3, 2], "widths": [16, 12, 8], "layers": 1}


def ladder(spec: Spec = IMAGES, seed: int = 0, **settings: object) -> LadderVAE:
    torch.manual_seed(seed)
    return LadderVAE.make({**SMALL, **settings}, spec).double()


def grid(n: int, seed: int = 0) -> Tensor:
    drawn = torch.randint(17, (n, *IMAGES.x.shape), generator=torch.Generator().manual_seed(seed))
    return drawn.double() / 8 - 1


def settled(model: LadderVAE, x: Tensor) -> LadderVAE:
    """In evaluation, with running averages that are not those of the beginning."""
    model.loss({"x": x}, turn(len(x)))
    model.after_step(turn(len(x)))
    return model.eval()


def turn(n: int, step: int = 0, steps: int = 10) -> Turn:
    return Turn("main", step, steps, Rng.batch("ladder", total=n))


def gaussian(seed: int, n: int = 5, dim: int = 3) -> DiagonalGaussian:
    g = torch.Generator().manual_seed(seed)
    mean, log_var = (torch.randn(n, dim, generator=g, dtype=torch.float64) for _ in range(2))
    return DiagonalGaussian(mean, log_var)


# ------------------------------------------------------------------------------------------------------------------- the merge


def test_the_merge_of_two_gaussians_is_their_normalised_product() -> None:
    one, other = gaussian(0), gaussian(1)
    both = merged(one, other)
    z = torch.linspace(-20, 20, 8001, dtype=torch.float64)[:, None, None]
    densities = [Normal(g.mean, (0.5 * g.log_var).exp()).log_prob(z).exp() for g in (one, other, both)]
    product = densities[0] * densities[1]
    product = product / torch.trapezoid(product, z[:, 0, 0], dim=0)
    assert (product - densities[2]).abs().max() < 1e-9
    precision = (-one.log_var).exp() + (-other.log_var).exp()
    torch.testing.assert_close((-both.log_var).exp(), precision)
    torch.testing.assert_close(merged(other, one), both)
    plain = DiagonalGaussian((one.mean + other.mean) / 2, both.log_var)
    assert (plain.mean - both.mean).abs().max() > 0.1, "the control: a mean without precisions"


def test_a_message_of_infinite_variance_leaves_the_prior_and_costs_nothing() -> None:
    p = gaussian(2)
    q = merged(DiagonalGaussian(gaussian(3).mean, torch.full_like(p.mean, math.inf)), p)
    assert torch.equal(q.mean, p.mean) and torch.equal(q.log_var, p.log_var)
    assert q.kl(p).tolist() == [0.0] * 5
    known = DiagonalGaussian(gaussian(3).mean, torch.full_like(p.mean, -40.0))
    torch.testing.assert_close(merged(known, p).mean, known.mean, msg="and one without doubt replaces it")
    assert (merged(known, p).kl(p) > 10).all()


def test_the_merge_has_finite_gradients_at_the_extremes() -> None:
    for size in (-200.0, 200.0):
        parts = [torch.full((2, 3), v, requires_grad=True) for v in (1.0, size, 0.0, 0.0)]
        q = merged(DiagonalGaussian(*parts[:2]), DiagonalGaussian(*parts[2:]))
        (q.mean.sum() + q.log_var.sum()).backward()
        assert all(torch.isfinite(p.grad).all() for p in parts if p.grad is not None)


# ----------------------------------------------------------------------------------------------------------- what it reduces to


class _Posterior(nn.Module):
    """The lowest rung as an encoder that speaks of log σ²."""

    def __init__(self, model: LadderVAE) -> None:
        super().__init__()
        self.rung, self.head = model.rungs[0], model.heads[0]

    def forward(self, x: Tensor, **cond: Tensor) -> Tensor:
        mean, before = self.head(self.rung(x.flatten(1))).chunk(2, 1)
        return torch.cat([mean, (F.softplus(before) + LEAST_VARIANCE).log()], 1)


class _Decoder(nn.Module):
    def __init__(self, model: LadderVAE) -> None:
        super().__init__()
        self.body, self.shape = nn.Sequential(model.steps[0], model.last), model.observed.out.shape

    def forward(self, z: Tensor, **cond: Tensor) -> Tensor:
        return self.body(z).unflatten(1, self.shape)


def test_one_layer_is_the_vae_of_the_same_weights() -> None:
    x = grid(6)
    model = settled(ladder(latents=[5], widths=[16], kl_warmup=0), x)
    vae = VAE.make({"dim": 5}, IMAGES).double().eval()
    vae.encoder, vae.decoder = _Posterior(model), _Decoder(model)
    with torch.no_grad():
        for samples in (1, 5):
            rng = Rng.batch("bound", total=6)
            torch.testing.assert_close(
                model.log_prob(x, rng, samples), vae.log_prob(x, rng, samples), rtol=1e-12, atol=0
            )
        mine, theirs = model.loss({"x": x}, turn(6)), vae.loss({"x": x}, turn(6))
        for key in ("loss", "each", "recon", "kl"):
            torch.testing.assert_close(mine[key], theirs[key], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(model.encode(x), vae.encode(x))
        torch.testing.assert_close(model.reconstruct(x), vae.reconstruct(x))
        other = ladder(latents=[5], widths=[16], kl_warmup=0, seed=1).eval()
        assert (other.log_prob(x, rng) - vae.log_prob(x, rng)).abs().min() > 1e-3


# ---------------------------------------------------------------------------------------------------------- the loss, by hand


def by_hand(model: LadderVAE, x: Tensor, noise: Tensor) -> tuple[Tensor, list[Tensor]]:
    """−log p(x|z) and the layers' KL divergences, topmost first, written without the family, for three layers."""

    def split(made: Tensor) -> tuple[Tensor, Tensor]:
        mean, before = made.chunk(2, 1)
        return mean, F.softplus(before) + LEAST_VARIANCE

    d1 = model.rungs[0](x.flatten(1))
    d2 = model.rungs[1](d1)
    d3 = model.rungs[2](d2)
    (m1, s1), (m2, s2), (m3, s3) = (split(head(d)) for head, d in zip(model.heads, (d1, d2, d3), strict=True))
    e3, e2, e1 = noise.split([2, 3, 4], 1)
    z3 = m3 + s3.sqrt() * e3
    kls = [kl_divergence(Normal(m3, s3.sqrt()), Normal(0.0, torch.ones_like(m3)))]
    h3 = model.steps[2](z3)
    p2, v2 = split(model.priors[1](h3))
    q2 = 1 / (1 / s2 + 1 / v2)
    u2 = (m2 / s2 + p2 / v2) * q2
    kls.append(kl_divergence(Normal(u2, q2.sqrt()), Normal(p2, v2.sqrt())))
    h2 = model.steps[1](u2 + q2.sqrt() * e2)
    p1, v1 = split(model.priors[0](h2))
    q1 = 1 / (1 / s1 + 1 / v1)
    u1 = (m1 / s1 + p1 / v1) * q1
    kls.append(kl_divergence(Normal(u1, q1.sqrt()), Normal(p1, v1.sqrt())))
    made = model.last(model.steps[0](u1 + q1.sqrt() * e1)).unflatten(1, model.observed.out.shape)
    return -model.observed.log_prob(made, x), [kl.sum(1) for kl in kls]


def test_the_loss_is_the_papers_written_out_for_three_layers() -> None:
    x = grid(7)
    model = settled(ladder(kl_warmup=5), x)
    at = turn(7, step=2)
    noise = at.rng.at("posterior").normal((7, 9)).double()
    with torch.no_grad():
        losses, (recon, kls) = model.loss({"x": x}, at), by_hand(model, x, noise)
    for i, kl in enumerate(kls):
        torch.testing.assert_close(losses[f"kl_{i + 1}"], kl.mean(), rtol=1e-9, atol=1e-9)
        assert float(kl.mean()) > 1e-3
    torch.testing.assert_close(losses["each"], recon + 2 / 5 * sum(kls), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(losses["kl"], sum(kls).mean())


def test_what_each_number_carries_sums_to_the_divergence_at_the_same_draw() -> None:
    x, at = grid(6), turn(6)
    model = settled(ladder(), x)
    with torch.no_grad():
        each, losses = model.carried(x, at.rng.at("posterior")), model.loss({"x": x}, at)
    assert each.shape == (6, model.latent.size) and float(each.min()) >= 0
    parts = each.mean(0).split([shape.numel() for shape in model.shapes])
    for i, part in enumerate(parts):
        torch.testing.assert_close(part.sum(), losses[f"kl_{i + 1}"])


def test_the_warm_up_goes_from_nothing_to_all() -> None:
    model, x = ladder(kl_warmup=10), grid(4)
    weights = [float(model.loss({"x": x}, turn(4, step, 20))["warmup"]) for step in (0, 5, 9, 10, 19)]
    assert weights == [0.0, 0.5, 0.9, 1.0, 1.0]
    start = model.loss({"x": x}, turn(4, 0, 20))
    torch.testing.assert_close(start["loss"], start["recon"], msg="at step 0 the KL divergence has no weight")
    assert [ladder(kl_warmup=4).kl_weight(turn(1, step, 1000)) for step in (0, 1, 4)] == [0.0, 0.25, 1.0]
    assert ladder(kl_warmup=0).kl_weight(turn(1)) == 1.0


# ------------------------------------------------------------------------------------------------------------------ the bounds


def test_importance_weights_are_the_naive_formula() -> None:
    x, k = grid(4), 6
    model, rng = settled(ladder(), x), Rng.batch("naive", total=4)
    with torch.no_grad():
        weights = []
        for i in range(k):
            noise = rng.at("posterior", i).normal((4, 9)).double()
            made, groups = model._inferred(model.up(x), noise)
            each = model.observed.log_prob(made, x)
            for group in groups:
                p, q = (Normal(g.mean, (0.5 * g.log_var).exp()) for g in (group.prior, group.posterior))
                each = each + (p.log_prob(group.z) - q.log_prob(group.z)).sum(1)
            weights.append(each)
        naive = torch.stack(weights).logsumexp(0) - math.log(k)
        torch.testing.assert_close(model.log_prob(x, rng, samples=k), naive)


def test_the_bound_rises_with_k_and_stays_below_log_p() -> None:
    """Points in the plane: log p(x) is the log of a mean over the prior's draws, exact to its error."""
    model = ladder(POINTS, latents=[2, 1], widths=[8, 8], likelihood="gaussian", scale=0.7, seed=3)
    g = torch.Generator().manual_seed(0)
    x = torch.randn(300, 2, generator=g, dtype=torch.float64)
    model = settled(model, x)
    with torch.no_grad():
        z = torch.randn(8_000, 3, generator=g, dtype=torch.float64)
        made = model.down(len(z), None, lambda i, p, q: p.draw(model._split(z)[i]))
        apart = -0.5 * torch.cdist(x, made).square() / 0.7**2 - 2 * math.log(0.7 * math.sqrt(2 * math.pi))
        exact = apart.logsumexp(1) - math.log(len(z))
        bounds = [model.log_prob(x, Rng.batch("k", total=300), samples=k) for k in (1, 4, 16, 64)]
    gaps = [float((exact - bound).mean()) for bound in bounds]
    assert all(after < before for before, after in itertools.pairwise(gaps)), gaps
    assert gaps[0] > 0.05 and -0.02 < gaps[-1] < 0.3 * gaps[0]


def test_a_bound_says_what_it_is_and_an_items_is_its_own() -> None:
    x = grid(6)
    model = settled(ladder(), x)
    assert isinstance(model, Likelihood) and isinstance(model, LatentVariable) and isinstance(model, Autoencoder)
    assert model.likelihood == "bound" and model.estimate(1) == "ELBO" and model.estimate(9) == "IWAE-9" and model.mass
    with torch.no_grad():
        whole, part = (model.log_prob(x[:n], Rng.rows(range(n)), samples=3) for n in (6, 2))
    torch.testing.assert_close(whole[:2], part, rtol=1e-12, atol=0)
    assert whole.dtype == torch.float64 and model.couples and not ladder(batch_norm=False).couples


# --------------------------------------------------------------------------------------------------------------------- latents


def test_latents_are_standard_normal_under_the_prior_and_lead_back_to_the_posteriors_means() -> None:
    x = grid(5)
    model = settled(ladder(), x)
    with torch.no_grad():
        z = model.encode(x)
        assert z.shape == (5, 9) == (5, *model.latent.shape)
        means: list[Tensor] = []

        def choose(i: int, p: DiagonalGaussian, q: DiagonalGaussian | None) -> Tensor:
            assert q is not None
            means.append(q.mean)
            return q.mean

        straight = model.observed.mean(model.down(5, model.up(x), choose))
        torch.testing.assert_close(model.decode(z), straight)
        torch.testing.assert_close(model.reconstruct(x), straight)
        torch.testing.assert_close(z[:, :2], means[0], msg="the topmost layer's prior is N(0, I)")
        prior = model.prior(2000, Rng.rows(range(2000)))
        assert prior.shape == (2000, 9) and abs(float(prior.std()) - 1) < 0.05
        assert (model.decode(0.1 * prior[:200]).std(0) < model.decode(prior[:200]).std(0)).double().mean() > 0.9


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(GencliError, match="3 layers of latents and 2 of widths"):
        ladder(widths=[8, 8])
    with pytest.raises(GencliError, match=r"latents \(4, 0, 2\).*the least is 1"):
        ladder(latents=[4, 0, 2])
    with pytest.raises(GencliError, match="bernoulli decoder needs data of two values"):
        ladder(likelihood="bernoulli")


def test_the_papers_networks_have_their_sizes() -> None:
    mnist = Spec(Field("image", (1, 28, 28), vocab=2, range=(0.0, 1.0)))
    with torch.device("meta"):
        model = LadderVAE.make({"likelihood": "bernoulli"}, mnist)
    latents, widths = (64, 32, 16, 8, 4), (512, 256, 128, 64, 32)

    def mlp(ins: int, width: int) -> int:
        return ins * width + width * width + 4 * width  # a gain and a shift in place of a bias

    def head(width: int, size: int) -> int:
        return 2 * size * (width + 2)

    up = sum(mlp(a, b) for a, b in zip((784, *widths[:-1]), widths, strict=True))
    up += sum(head(w, z) for w, z in zip(widths, latents, strict=True))
    down = sum(mlp(z, w) for z, w in zip(latents, widths, strict=True))
    down += sum(head(w, z) for w, z in zip(widths[1:], latents[:-1], strict=True)) + 513 * 784
    assert sum(p.numel() for p in model.parameters()) == up + down


# ------------------------------------------------------------------------------------------------------------- what is learnt

LEARNT = {
    "model": {"latents": [8, 4], "widths": [96, 48], "scale": 0.0, "kl_warmup": 30},
    "data": {"name": "digits", "image_size": 8},
    "train": {"steps": 150, "batch_size": 64, "lr": 8e-3, "save_every": 150, "warmup": 0},
}


def histogram_bits(data: object) -> float:
    """Bits/dim of test digits when each pixel has its own histogram: all that a model without a latent can know."""
    levels = {name: torch.from_numpy(data.split(name).x).long().flatten(1) * 16 // 255 for name in ("train", "test")}
    counts = torch.stack([(levels["train"] == v).sum(0) for v in range(17)]) + 0.5
    return float(-(counts / counts.sum(0)).log2().gather(0, levels["test"]).mean())


def test_a_few_seconds_of_digits_beat_any_model_without_a_latent_and_use_two_layers(tmp_path) -> None:
    tables = merge(smoke("ladder-vae"), LEARNT)
    data = opened(tables["data"])
    run = Run.load(trained(tmp_path, tables))
    test, bar = data.split("test"), histogram_bits(data)
    torch.manual_seed(0)
    untrained = Run.build(tables, data.spec)
    learnt = Bpd.make()(run, test, Rng.batch("e", total=1))
    assert learnt.value < bar - 0.1 and learnt.note == "ELBO"
    assert Bpd.make()(untrained, test, Rng.batch("e", total=1)).value > bar + 0.5
    x = run.encode(test.batch(torch.arange(len(test))), Rng.rows(range(len(test))))["x"]
    with torch.no_grad():
        losses = run.model.loss({"x": x}, turn(len(x)))
    assert float(losses["kl_1"]) > 0.5 and float(losses["kl_2"]) > 3, "neither layer has collapsed to its prior"
