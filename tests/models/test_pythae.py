"""The same batch, weights and draws in pythae's VAE, β-TCVAE and AAE, where its definitions are the papers'."""

import pytest
import torch
from pythae.models import VAE as TheirVAE
from pythae.models import Adversarial_AE, Adversarial_AE_Config, BetaTCVAEConfig, VAEConfig
from pythae.models import BetaTCVAE as TheirBetaTCVAE
from pythae.models.base.base_utils import ModelOutput

from gencli.core import Field, Rng, Spec, Turn
from gencli.models.vae.aae import AAE
from gencli.models.vae.beta_tcvae import BetaTCVAE
from gencli.models.vae.vae import VAE

BITS = Spec(Field("image", (1, 8, 8), vocab=2, range=(0.0, 1.0)))
GREY = Spec(Field("image", (1, 8, 8), vocab=17, range=(-1.0, 1.0)))
NETS = {"dim": 3, "encoder": {"name": "mlp", "width": 16}, "decoder": {"name": "mlp", "width": 16}}
N, ITEMS = 12, 1000


def turn(phase="main"):
    return Turn(phase, 0, 100, Rng.batch("pythae", total=N))


def bits():
    return torch.randint(2, (N, 1, 8, 8), generator=torch.Generator().manual_seed(0)).double()


def seen_by_both(model):
    """A batch of bits, ours of it, and what pythae's losses are told: its reconstruction, moments and draw."""
    x, q = bits(), model.posterior(bits())
    z = q.draw(turn().rng.at("posterior").normal(q.mean.shape).double())
    made = model.decoded(z, {}).sigmoid().view_as(x)
    return x, (made, x, q.mean, q.log_var, z)


def ours(kind, **settings):
    torch.manual_seed(0)
    model = kind.make({**NETS, "likelihood": "bernoulli", **settings}, BITS).double()
    for p in model.parameters():
        p.data = torch.randn_like(p) * 0.3
    return model


def config(kind, **settings):
    return kind(input_dim=(1, 8, 8), latent_dim=3, reconstruction_loss="bce", **settings)


def test_the_bound_of_a_vae():
    model = ours(VAE)
    x, told = seen_by_both(model)
    losses, (loss, recon, kl) = model.loss({"x": x}, turn()), TheirVAE(config(VAEConfig)).loss_function(*told)
    for made, theirs in ((losses["loss"], loss), (losses["recon"], recon), (losses["kl"], kl)):
        torch.testing.assert_close(made, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "weights", [{"alpha": 1.0, "beta": 6.0, "gamma": 1.0}, {"alpha": 0.3, "beta": 2.0, "gamma": 1.7}]
)
def test_the_three_parts_of_a_beta_tcvae_by_weighted_sampling(weights):
    model = ours(BetaTCVAE, **weights)
    model.initialise(iter(()), ITEMS, Rng.batch("i", total=1))
    x, told = seen_by_both(model)
    loss, _, _ = TheirBetaTCVAE(config(BetaTCVAEConfig, **weights, use_mss=False)).loss_function(*told, ITEMS)
    torch.testing.assert_close(model.loss({"x": x}, turn())["loss"], loss, rtol=1e-6, atol=0)  # 2 π is in single there


def test_the_three_turns_of_an_adversarial_autoencoder():
    torch.manual_seed(0)
    model = AAE.make({**NETS, "discriminator": {"name": "mlp", "width": 8}}, GREY)
    x = torch.randint(17, (N, 1, 8, 8)) / 8.0 - 1
    z, drawn = model.code(x, turn().rng), model.prior(N, turn().rng.at("prior"))
    theirs = Adversarial_AE(config(Adversarial_AE_Config, adversarial_loss_scale=1.0, reconstruction_loss_scale=0.0))
    theirs.discriminator = Judge(model)
    theirs.model_config.reconstruction_loss = "mse"
    halved, encoder, discriminator = theirs.loss_function(model.decode(z), x, z, drawn)
    for phase, loss in (("reconstruction", 2 * halved), ("discriminator", discriminator), ("encoder", encoder)):
        torch.testing.assert_close(model.loss({"x": x}, turn(phase))["loss"], loss, rtol=1e-5, atol=0)


class Judge(torch.nn.Module):
    """Our discriminator, as a probability."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, codes):
        return ModelOutput(embedding=self.model.score(codes).sigmoid())
