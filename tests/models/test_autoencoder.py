"""Autoencoders: a linear one is principal components, noise is what the paper says, and sampling needs a fitted prior."""

import pytest
import torch
from tiny import opened, smoke, trained, trainer

from gencli.bundle import Run
from gencli.config import merge
from gencli.core import Autoencoder, Field, LatentVariable, Rng, Spec, Turn
from gencli.errors import GencliError
from gencli.models.vae.autoencoder import PlainAutoencoder

AFFINE = {"encoder": {"name": "mlp", "layers": 0}, "decoder": {"name": "mlp", "layers": 0}}
IMAGES = Spec(Field("image", (1, 8, 8), vocab=256, range=(-1.0, 1.0)), {"label": Field("label", (), vocab=10)})


def matrix(n=64, dim=6):
    """Rows of unequal variances in random directions."""
    g = torch.Generator().manual_seed(0)
    turned = torch.linalg.qr(torch.randn(dim, dim, generator=g, dtype=torch.float64))[0]
    return torch.randn(n, dim, generator=g, dtype=torch.float64) * torch.linspace(2, 0.4, dim) @ turned + 1.0


def turn(n, *key):
    return Turn("main", 0, 10, Rng.batch("ae", *key, total=n))


@pytest.mark.parametrize("dim", [1, 3])
def test_a_linear_one_reaches_the_error_of_as_many_principal_components(dim):
    x = matrix()
    model = PlainAutoencoder.make({"dim": dim, **AFFINE}, Spec(Field("points", (6,)))).double()
    optimiser = torch.optim.LBFGS(model.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        loss = model({"x": x}, turn(len(x)))["loss"]
        loss.backward()
        return loss

    optimiser.step(closure)
    values = torch.linalg.svdvals(x - x.mean(0)).square() / x.numel()
    with torch.no_grad():
        error = float((model.reconstruct(x) - x).square().mean())
    least, next_best = float(values[dim:].sum()), float(values[dim + 1 :].sum() + values[dim - 1])
    assert least * (1 - 1e-9) <= error < 1.01 * least, "PCA is the best, and reached within 1 %"
    assert next_best > 1.01 * least, "other directions miss the bar"


def test_masking_puts_out_the_share_asked_for_and_gaussian_noise_has_its_deviation():
    x = torch.rand(50, 1, 8, 8, generator=torch.Generator().manual_seed(1)) + 0.5
    masked = PlainAutoencoder.make({"corruption": "masking", "amount": 0.25}, IMAGES).corrupted(x, turn(50).rng)
    assert ((masked == -1).flatten(1).sum(1) == 16).all() and torch.equal(masked[masked != -1], x[masked != -1])
    assert 200 < (masked == -1).sum(0).min() * 50 < (masked == -1).sum(0).max() * 50 < 1300, "any pixel"
    noisy = PlainAutoencoder.make({"corruption": "gaussian", "amount": 0.3}, IMAGES).corrupted(x, turn(50).rng)
    assert float((noisy - x).std()) == pytest.approx(0.3, rel=0.05)
    points = PlainAutoencoder.make({"corruption": "masking", "amount": 0.5}, Spec(Field("points", (4,))))
    assert (points.corrupted(torch.ones(3, 4), turn(3).rng).sum(1) == 2).all()
    assert torch.equal(PlainAutoencoder.make({}, IMAGES).corrupted(x, turn(50).rng), x)


def test_both_criteria_are_the_naive_formulas_of_the_clean_item():
    x = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 2 - 1
    for criterion, code in (("squared", "linear"), ("cross-entropy", "sigmoid")):
        torch.manual_seed(0)
        settings = {"criterion": criterion, "code": code, "corruption": "masking", "amount": 0.5}
        model = PlainAutoencoder.make(settings, IMAGES).double()
        back = model.decode(model.encode(model.corrupted(x, turn(5).rng)))
        unit, made = (x + 1) / 2, (back + 1) / 2
        entropy = -(unit * made.log() + (1 - unit) * (1 - made).log())
        naive = (back - x).square() if criterion == "squared" else entropy
        torch.testing.assert_close(model.loss({"x": x}, turn(5))["each"], naive.flatten(1).mean(1))
        if code == "sigmoid":
            z = model.encode(x)
            assert (z > 0).all() and (z < 1).all() and model.latent.range == (0.0, 1.0)


def test_training_with_noise_restores_masked_digits_better_than_training_without():
    errors = {}
    digits = opened({"name": "digits", "image_size": 8}).split("test").batch(torch.arange(150))["x"]
    for corruption in ("none", "masking"):
        nets = {"encoder": {"width": 64}, "decoder": {"width": 64}, "dim": 64}
        over = {"model": {"corruption": corruption, "amount": 0.3, **nets}, "train": {"steps": 250, "batch_size": 64}}
        one = trainer(merge(merge(smoke("autoencoder"), over), {"train": {"lr": 5e-3, "warmup": 10, "ema": 0}}))
        for _ in range(250):
            one.take_step()
        model = one.model.eval().requires_grad_(False)
        x = one.run.encode({"x": digits}, Rng.batch(total=150))["x"]
        masked = x.masked_fill(torch.rand(x.shape, generator=torch.Generator().manual_seed(3)) < 0.3, -1.0)
        errors[corruption] = float((model.reconstruct(masked) - x).square().mean())
        errors["nothing"] = float((masked - x).square().mean())
    assert errors["masking"] < 0.75 * errors["none"] < 0.75 * errors["nothing"], errors


def test_it_is_a_codec_and_no_sampler_and_says_what_would_be_one(tmp_path):
    run = Run.load(trained(tmp_path, smoke("autoencoder")))
    assert isinstance(run.model, Autoencoder) and not isinstance(run.model, LatentVariable)
    with pytest.raises(GencliError, match="cannot be sampled: PlainAutoencoder has no prior") as caught:
        run.default_sampler()
    assert f"gencli train em --codec {run.name}" in caught.value.hint


def test_a_mixture_over_its_codes_is_a_prior_for_it(tmp_path):
    codec = Run.load(trained(tmp_path / "codec", smoke("autoencoder")))
    tables = {**smoke("em"), "data": smoke("autoencoder")["data"]}
    run = Run.load(trained(tmp_path / "prior", tables, codec_run=codec))
    made = run.sample(Rng.rows(range(5)))["x"]
    assert made.shape == (5, 1, 8, 8) and made.dtype == torch.uint8 and run.spec.x == codec.model.latent


def test_what_it_cannot_do_is_refused_with_the_value():
    with pytest.raises(GencliError, match=r"got whole numbers \(codes of 8 values\)"):
        PlainAutoencoder.make({}, Spec(Field("codes", (4, 4), vocab=8)))
    with pytest.raises(GencliError, match="needs data with a range, points have none"):
        PlainAutoencoder.make({"criterion": "cross-entropy"}, Spec(Field("points", (4,))))
    with pytest.raises(GencliError, match=r"--amount 1\.5 is no share"):
        PlainAutoencoder.make({"corruption": "masking", "amount": 1.5}, IMAGES)
