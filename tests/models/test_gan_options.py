"""Options of all GANs: augmentation of what the critic sees, lazy penalties, truncated latents."""

import pytest
import torch
from torch import nn
from two_kinds import turn

from gencli.bundle import Run
from gencli.config import choose
from gencli.core import Field, Rng, Spec
from gencli.errors import GencliError
from gencli.metrics._base import FeatureSet
from gencli.metrics.precision_recall import PrecisionRecall
from gencli.models.gan.dcgan import DcGan
from gencli.models.gan.gan import Gan
from gencli.models.gan.sngan import SnGan
from gencli.models.gan.wgan_gp import WganGp
from gencli.samplers.prior import Prior

PLANE = Spec(Field("points", (2,)))
IMAGES = Spec(Field("image", (1, 8, 8), vocab=256, range=(-1.0, 1.0)))
MLP = {"name": "mlp", "width": 16, "layers": 2, "activation": "tanh"}
CONV = {
    "generator": {"name": "dcgan-generator", "width": 4, "upsamples": 2, "norm": "layer"},
    "critic": {"name": "dcgan-critic", "width": 4, "downsamples": 2},
}


def made(kind, spec=IMAGES, nets=CONV, seed=0, **settings):
    torch.manual_seed(seed)
    return kind.make({"latent": 3, **nets, **settings}, spec)


def images(n=8, low=-1.0):
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * (1 - low) + low


# ---------------------------------------------------------------------------------------------------------------- augmentation


@pytest.mark.parametrize("augment", ["diffaug", "bgc"])
@pytest.mark.parametrize("kind", [Gan, WganGp, DcGan])
def test_the_critic_sees_data_and_samples_augmented_and_at_zero_nothing_changes(kind, augment):
    x, plain = images(), made(kind)
    still, moved = made(kind, augment=augment, augment_p=0.0), made(kind, augment=augment)
    seen = []
    moved.critic.register_forward_hook(lambda module, args, out: seen.append(args[0].detach()))
    for phase in ("critic", "generator"):
        losses = [model({"x": x}, turn(phase))["loss"] for model in (plain, still, moved)]
        assert torch.equal(losses[0], losses[1]) and not torch.equal(losses[0], losses[2])
    rng = turn().rng
    sample = moved.samples(x, rng)
    shown = [moved.seen(x, rng.at("seen", "data")), moved.seen(sample, rng.at("seen", "samples"))]
    assert torch.equal(seen[0], shown[0]) and torch.allclose(seen[1], shown[1], atol=1e-6)
    torch.testing.assert_close(seen[-1], moved.seen(moved.samples(x, turn("generator").rng), rng.at("seen", "samples")))
    moved.zero_grad()
    moved({"x": x}, turn("generator"))["loss"].backward()
    assert all(p.grad.abs().sum() > 0 for p in moved.generator.parameters() if p.ndim > 1), (
        "it learns through the change"
    )


def test_augmentations_are_in_the_datas_own_range():
    unit = Spec(Field("image", (1, 8, 8), vocab=256, range=(0.0, 1.0)))
    a, b = made(Gan, augment="diffaug"), made(Gan, unit, augment="diffaug")
    x = images()
    torch.testing.assert_close(b.seen((x + 1) / 2, turn().rng), (a.seen(x, turn().rng) + 1) / 2)


def test_autocast_leaves_augmentations_in_full_precision():
    model, x = made(Gan, augment="bgc"), images().requires_grad_()
    plain = model.seen(x, turn().rng)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.seen(x, turn().rng), plain)
        losses = model({"x": x.detach()}, turn("generator"))
    losses["loss"].backward()
    assert all(torch.isfinite(p.grad).all() for p in model.generator.parameters())


def test_penalties_look_through_the_augmentation():
    model, x = made(Gan, augment="bgc", smooth="r1", smooth_weight=2.0).double(), images().double()
    losses, rng = model({"x": x}, turn()), turn().rng.at("smooth").at("seen")
    at = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(model.score(model.seen(at, rng)).sum(), at)
    torch.testing.assert_close(losses["r1"], slope.square().sum((1, 2, 3)).mean() / 2)


def test_what_cannot_be_augmented_is_refused():
    two = Spec(Field("image", (2, 8, 8), vocab=256, range=(-1.0, 1.0)))
    with pytest.raises(GencliError, match="--augment bgc turns colours of 1 or 3 channels, the data have 2"):
        made(Gan, two, augment="bgc")
    with pytest.raises(GencliError, match="--augment diffaug changes images, the data are points of shape"):
        made(Gan, PLANE, {"generator": MLP, "critic": MLP}, augment="diffaug")


# --------------------------------------------------------------------------------------------------------------- lazy penalties


@pytest.mark.parametrize("smooth", ["r1", "r2", "dragan"])
def test_a_lazy_penalty_has_a_phase_of_its_own_and_the_weight_of_all_turns(smooth):
    settings = {"smooth": smooth, "smooth_weight": 3.0, "critic_lr": 1e-3}
    model, x = made(Gan, smooth_every=4, **settings), images()
    phases = [(phase.name, phase.every, phase.shares, phase.optim.get("lr")) for phase in model.phases()]
    assert phases == [("critic", 1, None, 1e-3), ("smooth", 4, "critic", 1e-3), ("generator", 1, None, None)]
    assert [phase.name for phase in made(Gan, smooth_every=1, **settings).phases()] == ["critic", "generator"]
    torch.testing.assert_close(model({"x": x}, turn())["loss"], made(Gan)({"x": x}, turn())["loss"])
    lazily, eager = model({"x": x}, turn("smooth")), made(Gan, **settings)({"x": x}, turn())
    torch.testing.assert_close(lazily["loss"], 4 * 3.0 * lazily[smooth])
    torch.testing.assert_close(lazily[smooth], eager[smooth])
    lazily["loss"].backward()
    assert all(p.grad is not None for p in model.critic.parameters())
    assert all(p.grad is None for p in model.generator.parameters())
    spectral = made(
        SnGan,
        nets={
            "critic": {"name": "dcgan-critic", "width": 4, "downsamples": 2, "norm": "spectral"},
            "generator": CONV["generator"],
        },
        smooth_every=2,
        **settings,
    )
    assert torch.isfinite(spectral({"x": x}, turn("smooth"))["loss"])


# ------------------------------------------------------------------------------------------------------------------ truncation


def test_truncated_latents_are_those_of_redrawing_what_is_beyond():
    model = made(Gan, PLANE, {"generator": MLP, "critic": MLP})
    z = torch.randn(400_000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for bound, variance in ((0.5, 0.0806), (1.0, 0.291), (2.0, 0.774)):  # of the truncated normal, in closed form
        found = model.truncate(z, bound)
        assert float(found.abs().max()) <= bound and float(found.var()) == pytest.approx(variance, rel=0.01)
        assert ((found.sort(0).values - found[z.argsort(0)[:, 0]]).abs().max()) == 0, "a growing function of z"
        redrawn = z[z.abs() <= bound]
        for q in (0.1, 0.3, 0.8):
            assert float(found.quantile(q)) == pytest.approx(float(redrawn.quantile(q)), abs=0.01)
    torch.testing.assert_close(model.truncate(z[:1000], 8.0), z[:1000], rtol=0, atol=1e-6)
    assert not model.truncate(z[:1000], 0.0).any()


class Wide(nn.Module):
    """A generator whose samples spread further than its data, as those of z far from 0 do."""

    def forward(self, z, **cond):
        return 2 * z


def test_truncation_trades_recall_for_precision():
    model = made(Gan, PLANE, {"generator": MLP, "critic": MLP}, latent=2)
    model.generator = Wide()
    run = Run(model, [], PLANE, PLANE, {})
    real = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0)).double().numpy()
    found = []
    for bound in (None, 1.5, 1.0, 0.5):
        x = run.sample(Rng.rows(range(1000)), sampler=Prior.make({"truncation": bound}))["x"].double().numpy()
        scores = PrecisionRecall.make({})(FeatureSet(real, "points"), FeatureSet(x, "points"))
        found.append([score.value for score in scores])
    precision, recall = zip(*found, strict=True)
    assert list(precision) == sorted(precision) and precision[-1] > precision[0] + 0.05, precision
    assert list(recall) == sorted(recall, reverse=True) and recall[-1] < recall[0] - 0.4, recall


def test_the_sampler_refuses_what_it_cannot_truncate():
    vae = choose("models", {"name": "vae", "dim": 2, "encoder": MLP, "decoder": MLP}).build(IMAGES)
    with pytest.raises(GencliError, match=r"--truncation 0\.7 is of generators, model vae knows none"):
        Prior.make({"truncation": 0.7}).check(vae)
    Prior.make({"truncation": 0.7}).check(made(Gan))
    with pytest.raises(GencliError, match="truncation is -1"):
        Prior.make({"truncation": -1})
